"""A finished file is compared with its manifest before it is read, and made again if it is not."""

import pickle
from pathlib import Path

import pytest

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.manifest import (
    Counts,
    DamagedOutput,
    Manifest,
    StageOutput,
    describe_file,
    open_checked,
)
from pipeline.core.remote import InlineRuntime
from pipeline.core.shard_tasks import ShardResult, forget, map_shards


class Doubler:
    """A stage that writes `part-N` for each of its numbers, and counts how often."""

    def __init__(self, root: Path) -> None:
        self.output = StageOutput.of(str(root), "double", 1, {}, {})
        self.made: list[int] = []

    def _make(self, number: int) -> ShardResult:
        self.made.append(number)
        url = self.output.path(f"part-{number}")
        storage.write_bytes(url, b"%d twice is %d" % (number, 2 * number))
        return ShardResult((describe_file(url, f"part-{number}", 1),), Counts(1, 1))

    def run(self) -> Manifest:
        if done := self.output.finished():
            return done
        tasks = {str(number): number for number in range(3)}
        results = map_shards(InlineRuntime(), self.output, "make", self._make, tasks)
        files = [entry for result in results for entry in result.files]
        return self.output.commit(files, Counts(3, 3), started=0.0)


def read(url: str) -> bytes:
    with open_checked(url) as file:
        return file.read()


@pytest.fixture
def stage(tmp_path: Path) -> Doubler:
    return Doubler(tmp_path)


def test_what_is_whole_is_read(stage: Doubler, tmp_path: Path) -> None:
    manifest = stage.run()
    assert read(manifest.file_url("part-2")) == b"2 twice is 4"
    other = str(tmp_path / "other")  # no manifest beside it
    storage.write_bytes(other, b"x")
    assert read(other) == b"x"
    storage.write_bytes(stage.output.path("between"), b"y")  # no part of the output
    assert read(stage.output.path("between")) == b"y"
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "nothing"))


def test_one_bit_is_enough(stage: Doubler) -> None:
    manifest = stage.run()
    url = manifest.file_url("part-1")
    assert read(url) == b"1 twice is 2"
    storage.write_bytes(url, b"1 twice is 3")  # as long as before: its size does not tell
    with pytest.raises(DamagedOutput, match=r"part-1 is missing or changed; delete .* and rerun"):
        read(url)
    storage.write_bytes(url, b"1 twice is 2")
    assert read(url) == b"1 twice is 2"
    path = storage.local_path(manifest.url) / "manifest.json"
    path.write_text(path.read_text().replace('"num_rows": 1', '"num_rows": 2', 1))
    with pytest.raises(UserError, match="was changed after it was written"):
        read(url)


def test_what_is_damaged_is_made_again_and_nothing_else(stage: Doubler) -> None:
    first = stage.run()
    url = first.file_url("part-1")
    for harm in (lambda: storage.write_bytes(url, b"1 twice is 3"), lambda: storage.remove(url)):
        harm()
        with pytest.raises((DamagedOutput, FileNotFoundError)):
            read(url)
        stage.made.clear()
        error = pickle.loads(pickle.dumps(DamagedOutput(first.url, "part-1")))  # from a worker
        assert (error.stage, error.url) == ("double", url)
        forget(error)
        assert stage.run().content == first.content
        assert stage.made == [1]
        assert read(url) == b"1 twice is 2"


def test_a_file_that_is_cut_short_or_gone_is_found_without_reading(stage: Doubler) -> None:
    manifest = stage.run()
    url = manifest.file_url("part-0")
    storage.write_bytes(url, b"0 twice")
    with pytest.raises(DamagedOutput, match="part-0"):
        stage.run()
    storage.remove(url)
    with pytest.raises(DamagedOutput, match="part-0"):
        stage.run()


def test_forgetting_half_way_is_no_harm(stage: Doubler) -> None:
    """A kill before the manifest is gone: the damage is found anew."""
    first = stage.run()
    storage.remove(stage.output.path("make-1.done.json"))
    storage.remove(first.file_url("part-1"))
    with pytest.raises(DamagedOutput) as caught:
        stage.run()
    forget(caught.value)
    assert stage.run().content == first.content
