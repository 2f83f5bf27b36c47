"""The list of what a crawl did not get, from its log."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.crawl import run_crawl
from pipeline.frontier_log import FrontierLog
from pipeline.frontier_state import Entry
from pipeline.not_kept import NOT_KEPT, read_not_kept, write_not_kept
from tests.pipeline import small_site
from tests.pipeline.small_site import SMALL, config, html

serve = small_site.serve  # the fixture


def test_a_crawl_lists_what_it_did_not_get(serve: Any, run: RunConfig) -> None:
    home = html("home", "/a", "/private/x", "/gone", "/dead", "/500")
    site = serve({**SMALL, "/": home, "/dead": lambda n: None, "/500": (500, {}, b"broken")})
    manifest = run_crawl(config(site.url, max_retries=0), run)
    rows = {url.removeprefix(site.url): rest for url, *rest in _rows(Path(manifest.url))}
    assert rows == {
        "private/x": ["robots", ""],
        "gone": ["status 404", "404"],
        "500": ["status 500", "500"],
        "dead": ["connection", ""],
    }


def _rows(folder: Path) -> list[tuple[str, str, str]]:
    return [row for path in folder.glob(f"*/{NOT_KEPT}") for row in read_not_kept(path)]


def _archived(address: int, status: int) -> str:
    return f"=\t{address}\t{status}\tdigest\tx.warc.gz\t9\t1\t\t\t\tnow"


def test_urls_are_found_in_all_segments_of_a_log(tmp_path: Path) -> None:
    """What a hung owner wrote behind its successor's start does not count."""
    log = FrontierLog(tmp_path, 1)
    first = log.append([Entry(f"http://h/{n}", 0).line("+") for n in range(5)])
    log.append([f"-\t{first[1]}\ttimeout", _archived(first[2], 404), _archived(first[3], 200)])
    second = FrontierLog(tmp_path, 2)
    log.append([f"-\t{first[4]}\tnot counted"])
    later = second.append([Entry("http://h/" + "x" * 4000, 0).line("+")])
    second.append([f"-\t{later[0]}\ttoo large", f"-\t{first[0]}\tsome\treason"])
    write_not_kept(tmp_path / NOT_KEPT, tmp_path)
    wanted = [
        ("http://h/1", "timeout", ""),
        ("http://h/2", "status 404", "404"),
        ("http://h/" + "x" * 4000, "too large", ""),
        ("http://h/0", "some reason", ""),
    ]
    assert list(read_not_kept(tmp_path / NOT_KEPT)) == wanted
    data = (tmp_path / NOT_KEPT).read_bytes()
    assert gzip.decompress(data).splitlines()[0] == b"url\twhy\tstatus"
    write_not_kept(tmp_path / NOT_KEPT, tmp_path)
    assert (tmp_path / NOT_KEPT).read_bytes() == data
    log.close()
    second.close()


def test_an_empty_log_and_a_damaged_list(tmp_path: Path) -> None:
    log = FrontierLog(tmp_path, 1)
    log.close()
    write_not_kept(tmp_path / NOT_KEPT, tmp_path)
    assert list(read_not_kept(tmp_path / NOT_KEPT)) == []
    (tmp_path / NOT_KEPT).write_bytes((tmp_path / NOT_KEPT).read_bytes()[:12])
    with pytest.raises(UserError, match="cannot be read"):
        list(read_not_kept(tmp_path / NOT_KEPT))
