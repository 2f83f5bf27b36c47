"""Files of a crawl that were damaged: one line that names the file and the mend."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.crawl import LAYOUT, current_output, run_crawl
from pipeline.crawl_status import STATUS, CrawlStatus, read_status
from tests.pipeline.small_site import config

WRONG_LAYOUTS = [
    b"",
    b"[]",
    b"{}",
    b"1",
    b'{"num_shards":1e999}',
    b'{"num_shards":1.5}',
    b'{"num_shards":"1"}',
    b'{"num_shards":null}',
    b"[" * 100_000,
    b"\xff\xfe",
]


@pytest.mark.parametrize("content", WRONG_LAYOUTS, ids=range(len(WRONG_LAYOUTS)))
def test_a_layout(run: RunConfig, content: bytes) -> None:
    wish = config("http://127.0.0.1:1/")
    folder = Path(current_output(wish, run).url)
    folder.mkdir(parents=True)
    (folder / LAYOUT).write_bytes(content)
    with pytest.raises(UserError, match=r"layout.json is damaged; delete it if crawl.num_shards"):
        run_crawl(wish, run)


def test_a_folder_in_place_of_a_file(run: RunConfig, tmp_path: Path) -> None:
    wish = config("http://127.0.0.1:1/")
    (Path(current_output(wish, run).url) / LAYOUT).mkdir(parents=True)
    with pytest.raises(UserError, match=r"layout.json is damaged"):
        run_crawl(wish, run)
    (tmp_path / STATUS).mkdir()
    with pytest.raises(UserError, match=r"status.json is damaged"):
        read_status(tmp_path)


STATUS_NOW = CrawlStatus(
    started=1e9,
    at=1e9 + 5,
    state="crawling",
    max_pages=10,
    num_known=3,
    num_archived=1,
    num_bytes=5,
    num_waiting=2,
    hosts=1,
    busy=0,
    statuses={"200": 1},
    dropped={"robots": 1},
    refused_links={},
    retries={},
    shards=[[0, 1, "crawling", 1, 2]],
    timeline=[[0.0, 0, 0], [5.0, 1, 5]],
    waits=[["a.test", 2, 0.5]],
)


def written(folder: Path, values: Any) -> Path:
    (folder / STATUS).write_text(values if isinstance(values, str) else json.dumps(values))
    return folder


def test_a_whole_status(tmp_path: Path) -> None:
    assert read_status(written(tmp_path, dataclasses.asdict(STATUS_NOW))) == STATUS_NOW


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(CrawlStatus)])
@pytest.mark.parametrize(
    "value",
    ["{}", '{"a": null}', '["x"]', "[[1]]", "[[[]]]", '[["a"]]', "1e999", '"\\ud800"', "[0]"],
)
def test_a_field_of_a_status(tmp_path: Path, name: str, value: str) -> None:
    """Either it is what the field may hold, or it is damage."""
    values = {**dataclasses.asdict(STATUS_NOW), name: "HERE"}
    folder = written(tmp_path, json.dumps(values).replace('"HERE"', value))
    try:
        read_status(folder)
    except UserError as error:
        told = str(error)
    else:
        told = ""
    if told:
        assert told.startswith(f"{folder / STATUS} is damaged (")
        assert "\n" not in told
        return
    found = read_status(folder)
    assert type(getattr(found, name)) is type(json.loads(value))
    assert not isinstance(getattr(found, name), float) or math.isfinite(getattr(found, name))


@pytest.mark.parametrize("text", ["", "[1]", "null", "[" * 100_000, '{"started": "x"}'])
def test_a_status_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"status.json is damaged .*a running crawl renews it"):
        read_status(written(tmp_path, text))
    (tmp_path / STATUS).write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"status.json is damaged"):
        read_status(tmp_path)
