"""From fixed WARC files on the corpus is the same bytes: any workers, Ray or not, after kills."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.manifest import MANIFEST, Manifest, read_manifest
from pipeline.core.remote import InlineRuntime, Runtime, open_runtime
from pipeline.dedupe import DedupeConfig, run_dedupe
from pipeline.extract import ExtractConfig, run_extract
from pipeline.quality import QualityConfig, run_quality
from pipeline.shard import ShardConfig, run_shard

STAGES = ("extract", "quality", "dedupe", "shard")


def run_corpus(source: Manifest, run: RunConfig, runtime: Runtime) -> dict[str, Manifest]:
    docs = run_extract(ExtractConfig(), source, run, runtime)
    quality = run_quality(QualityConfig(min_language_score=0.3), docs, run, runtime)
    dedupe = run_dedupe(DedupeConfig(line_min_docs=5), docs, quality, run, runtime)
    config = ShardConfig(heldout_fraction=0.2, max_rows_per_shard=10)
    shard = run_shard(config, docs, quality, dedupe, run, runtime)
    return dict(zip(STAGES, (docs, quality, dedupe, shard), strict=True))


@pytest.fixture(scope="module")
def source(tmp_path_factory, english, warc_record, source_manifest) -> Manifest:
    """Four WARC files of ten pages: menus, copies, near-copies, errors, and a torn record."""
    folder = tmp_path_factory.mktemp("warcs")
    files: list[Path] = []
    for part in range(4):
        records = []
        for number in range(10):
            text = english(1000 if number == 3 else part * 10 + number, 200)
            if number == 4:
                text = english(part * 10, 200).rsplit("\n", 2)[0]
            body = "".join(
                f"<p>{line}</p>" for line in ["Home, news and contact", *text.split("\n")]
            )
            html = f"<html><title>{part}</title><body><main>{body}</main></body></html>".encode()
            url = f"http://host{part % 2}.test/{part}/{number}"
            records.append(warc_record(url, html, status=404 if number == 5 else 200))
        if part == 1:
            records.append(records[0][:-30])
        files.append(folder / f"part-{part}.warc.gz")
        files[-1].write_bytes(b"".join(records))
    return source_manifest(str(folder), files)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, source) -> dict[str, Manifest]:
    run = RunConfig(root=str(tmp_path_factory.mktemp("undisturbed")), workers=1)
    return run_corpus(source, run, InlineRuntime())


def assert_same(manifests: dict[str, Manifest], expected: dict[str, Manifest]) -> None:
    for stage in STAGES:
        assert manifests[stage].content == expected[stage].content
        for entry in expected[stage].files:
            ours = storage.read_bytes(manifests[stage].file_url(entry.name))
            assert ours == storage.read_bytes(expected[stage].file_url(entry.name)), entry.name


def test_the_corpus_is_worth_comparing(undisturbed):
    assert undisturbed["extract"].counts.quarantined
    assert undisturbed["extract"].counts.dropped == {"status-404": 4}
    assert set(undisturbed["dedupe"].counts.dropped) == {"exact-duplicate", "near-duplicate"}
    assert undisturbed["dedupe"].facts["removed_lines"] > 20
    names = [entry.name.split("-")[0] for entry in undisturbed["shard"].files]
    assert names.count("train") >= 2
    assert names.count("heldout") == 1
    for before, after in zip(STAGES, STAGES[1:-1], strict=False):
        assert undisturbed[after].counts.rows_in == undisturbed[before].counts.rows_out
    assert undisturbed["shard"].counts.rows_in == undisturbed["extract"].counts.rows_in == 41


class Counting(InlineRuntime):
    """Counts the tasks that it runs, by phase: map_shards hands on the function with each task."""

    def __init__(self) -> None:
        self.tasks: Counter[str] = Counter()

    def map(self, function, items):
        self.tasks.update(call[0].__name__ for call in items if callable(call[0]))
        return super().map(function, items)


class Backwards:
    """Runs the tasks in this process, the last one first."""

    num_workers = 1

    def map(self, function, items):
        for index in reversed(range(len(items))):
            yield index, function(items[index])

    def service(self, factory, *args):
        return InlineRuntime().service(factory, *args)


def test_the_order_of_the_tasks_does_not_show(tmp_path, source, undisturbed):
    run = RunConfig(root=str(tmp_path), workers=1)
    assert_same(run_corpus(source, run, Backwards()), undisturbed)


@pytest.mark.parametrize(
    ("backend", "workers"),
    [
        pytest.param("local", 2, marks=pytest.mark.long),
        pytest.param("local", 4, marks=pytest.mark.long),
        pytest.param("ray", 1, marks=pytest.mark.long),
        ("ray", 2),
        pytest.param("ray", 4, marks=pytest.mark.long),
    ],
)
def test_same_bytes_at_any_number_of_workers(tmp_path, source, undisturbed, backend, workers):
    run = RunConfig(root=str(tmp_path), backend=backend, workers=workers)
    with open_runtime(run) as runtime:
        assert_same(run_corpus(source, run, runtime), undisturbed)


SLOW = """
import sys, time
from pipeline.core.config import RunConfig
from pipeline.core.manifest import read_manifest
from pipeline.core.remote import InlineRuntime

sys.path.insert(0, {tests!r})
from test_corpus_invariance import run_corpus

class Slow(InlineRuntime):
    def map(self, function, items):
        for result in super().map(function, items):
            time.sleep(0.3)
            yield result

run_corpus(read_manifest({source!r}), RunConfig(root={root!r}, workers=1), Slow())
"""


@pytest.mark.parametrize(
    ("stage", "phase", "task"),
    [
        ("extract", "extract", "extract_file"),
        pytest.param("quality", "judge", "judge_file", marks=pytest.mark.long),
        pytest.param("dedupe", "hash", "hash_file", marks=pytest.mark.long),
        pytest.param("dedupe", "sign", "sign_file", marks=pytest.mark.long),
        pytest.param("shard", "join", "join_file", marks=pytest.mark.long),
        ("shard", "write", "write_shard"),
    ],
)
def test_same_bytes_after_a_kill_in_the_middle(
    tmp_path: Path,
    source: Manifest,
    undisturbed: dict[str, Manifest],
    kill_when: Callable[[list[str], Callable[[], bool]], None],
    stage: str,
    phase: str,
    task: str,
):
    root = tmp_path / "data"
    for earlier in STAGES[: STAGES.index(stage)]:  # what came before is done already
        shutil.copytree(storage.local_path(undisturbed[earlier].url).parent, root / earlier)
    script = SLOW.format(tests=str(Path(__file__).parent), source=source.url, root=str(root))
    receipt = f"{stage}/*/{phase}-*.done.json"
    kill_when(["-c", script], lambda: any(root.glob(receipt)))
    key = undisturbed[stage].key
    assert not (root / stage / key / MANIFEST).exists()
    finished = len(list(root.glob(receipt)))

    runtime = Counting()
    assert_same(run_corpus(source, RunConfig(root=str(root), workers=1), runtime), undisturbed)
    wholes = [entry.name for entry in undisturbed["shard"].files if "rejects" not in entry.name]
    number = len(wholes) if phase == "write" else len(undisturbed["extract"].files)
    assert 0 < finished < number
    assert runtime.tasks[task] == number - finished  # what was done is not done again
    assert read_manifest(str(root / stage / key)).content == undisturbed[stage].content
