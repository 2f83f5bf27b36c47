"""A run.root that cannot hold results is one line, wherever a stage first makes its folder."""

from pathlib import Path

import pytest

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import StageOutput
from pipeline.crawl import main, run_crawl
from tests.pipeline.small_site import config


def _places(tmp_path: Path) -> list[str]:
    file = tmp_path / "file"
    file.write_text("x")
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    return ["/proc/x", str(file), str(file / "below"), str(dangling), "/sys/x"]


def test_a_root_that_cannot_be_is_named_with_the_mend(tmp_path: Path) -> None:
    for place in _places(tmp_path):
        output = StageOutput.of(place, "crawl", 1, {}, {})
        said = f"run.root = '{place}' is no folder that results can be written to"
        with pytest.raises(UserError, match=said), output.lock():
            pass
        with pytest.raises(UserError, match=f"{said}.*; name another"):
            output.check_root()


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    output = StageOutput.of(str(tmp_path / "data"), "crawl", 1, {}, {})
    output.check_root()
    assert list(tmp_path.iterdir()) == []
    with output.lock():
        output.check_root()
    assert [path.name for path in Path(output.url).iterdir()] == [".lock"]


def test_a_crawl_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in _places(tmp_path):
        with pytest.raises(UserError, match=r"run\.root"):
            run_crawl(config("http://127.0.0.1:9/"), RunConfig(root=place))
    file = tmp_path / "run.toml"
    file.write_text('[crawl]\nseeds = ["http://127.0.0.1:9/"]\nallow_private = true\n')
    assert main(["--config", str(file), "run.root=/proc/x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
