"""A site crawled again a week later, as a user types it: what is new, and what stands elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import cli
from pipeline.core.manifest import Manifest, read_manifest
from pipeline.core.records import Document, read_table
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION
from tests.pipeline import conftest, small_site
from tests.pipeline.small_site import Answer, Site

serve = small_site.serve  # the fixtures
english = conftest.english
OK = {"Content-Type": "text/html; charset=utf-8"}


def page(text: str, *links: str, etag: str = "") -> Answer:
    body = "".join(f"<p>{line}</p>" for line in text.split("\n"))
    anchors = "".join(f'<a href="{link}">{link}</a>' for link in links)
    html = f"<html><title>t</title><body><main>{body}</main>{anchors}</body></html>"
    return 200, {**OK, **({"ETag": f'"{etag}"'} if etag else {})}, html.encode()


class Week:
    """The site and its commands, as typed: rc, stdout and stderr of each."""

    def __init__(self, site: Site, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.site, self.root, self.capsys = site, root, capsys
        self.toml = root / "run.toml"
        self.toml.write_text(
            f'[run]\nroot = "{root}/data"\nbackend = "local"\nworkers = 1\n'
            f'[crawl]\nseeds = ["{site.url}"]\nallow_private = true\ndelay_s = 0\n'
            "max_robots_wait_s = 0\n[quality]\nrules = []\nlanguages = []\n"
            "[shard]\nheldout_fraction = 0\n"
        )

    def flywheel(self, command: str, epoch: int, *overrides: str) -> tuple[int, str, str]:
        line = [command, "--config", str(self.toml), f"crawl.epoch={epoch}", *overrides]
        status = cli.main(line)
        said = self.capsys.readouterr()
        return status, said.out, said.err

    def manifests(self, stage: str) -> list[Manifest]:
        """In the order in which they were made."""
        paths = sorted((self.root / "data" / stage).glob("*/manifest.json"), key=_made)
        return [read_manifest(str(path.parent)) for path in paths]

    def rows(self) -> dict[str, dict[str, Any]]:
        """By path: the newest dedupe sidecar beside its documents."""
        dedupe = self.manifests("dedupe")[-1]
        docs = read_manifest(dedupe.run["docs"])
        found: dict[str, dict[str, Any]] = {}
        for text, sidecar in zip(docs.files, dedupe.files, strict=True):
            table = read_table(docs.file_url(text.name), Document.NAME, Document.VERSION)
            said = read_table(dedupe.file_url(sidecar.name), DEDUPE, DEDUPE_VERSION)
            for url, reason, row in zip(
                table["url"].to_pylist(),
                table["drop_reason"].to_pylist(),
                said.to_pylist(),
                strict=True,
            ):
                found[url.removeprefix(self.site.url)] = {**row, "extract": reason}
        return found

    def shard_urls(self) -> set[str]:
        shard = self.manifests("shard")[-1]
        tables = [
            read_table(shard.file_url(entry.name), Document.NAME, Document.VERSION)
            for entry in shard.files
            if entry.name.startswith("train")
        ]
        return {url.removeprefix(self.site.url) for t in tables for url in t["url"].to_pylist()}


def _made(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, str(path)


@pytest.fixture
def week(
    serve: Callable[[dict[str, Any]], Site],
    english: Callable[[int, int], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Week:
    names = ["tagged", "plain", "changed", "removed", "model"]
    routes: dict[str, Any] = {"/": page(english(100, 120), *(f"/{name}" for name in names))}
    for seed, name in enumerate(names):
        routes[f"/{name}"] = page(english(seed, 300), etag="1" if name == "tagged" else "")
    return Week(serve(routes), tmp_path, capsys)


def test_a_week_later(week: Week, english: Callable[[int, int], str]) -> None:
    status, out, _ = week.flywheel("corpus", 0)
    assert status == 0
    assert "deduplicated against" not in out
    assert week.shard_urls() == {"", "tagged", "plain", "changed", "removed", "model"}
    [first] = week.manifests("dedupe")

    near = english(4, 300).replace("the ", "a ", 1)
    week.site.routes |= {
        "/": page(english(100, 120), "/added", "/near", "/moved", "/tagged", "/plain"),
        "/changed": page(english(50, 300)),
        "/added": page(english(51, 300)),
        "/near": page(near),
        "/moved": page(english(3, 300), "/added"),  # the removed page's text, elsewhere
    }
    del week.site.routes["/removed"]
    status, out, _ = week.flywheel("corpus", 1)
    assert status == 0, out
    assert f"deduplicated against the corpora of epoch 0 ({first.url})" in out
    assert "3 pages had not changed since the epoch before (revisit records)" in out
    assert week.shard_urls() == {"changed", "added"}
    rows = week.rows()
    # tagged (304), plain and model (same bytes) are revisit records: they have no row
    assert rows.keys() == {"", "changed", "removed", "added", "near", "moved"}
    assert rows["removed"]["extract"] == "status-404"
    ids = {
        row["url"].removeprefix(week.site.url): row["doc_id"]
        for entry in week.manifests("extract")[0].files
        for row in read_table(
            week.manifests("extract")[0].file_url(entry.name), Document.NAME, Document.VERSION
        ).to_pylist()
    }
    for path, reason, stands_for in (
        ("", "exact-duplicate", ""),  # other links, the same text
        ("moved", "exact-duplicate", "removed"),
        ("near", "near-duplicate", "model"),
    ):
        assert rows[path]["drop_reason"] == reason
        assert (rows[path]["stands_for"], rows[path]["stands_in"]) == (ids[stands_for], first.key)

    crawl, extract = week.manifests("crawl")[-1], week.manifests("extract")[-1]
    assert crawl.facts["changes"]["unchanged"] == 3
    assert crawl.counts.rows_out == extract.counts.rows_in + 3  # each page is somewhere
    told = [line.split() for line in out.splitlines()]
    assert ["extract", "unchanged,", "no", "text", "3"] in told
    assert week.flywheel("corpus", 1)[1] == out  # a no-op that says the same


def test_nothing_new(week: Week) -> None:
    assert week.flywheel("corpus", 0)[0] == 0
    status, out, err = week.flywheel("corpus", 1)
    assert status == 0, err
    assert "nothing new: all 6 pages are unchanged or in the corpus of epoch 0" in out
    status, out, err = week.flywheel("pretrain", 1)
    assert status == 2
    [line] = err.splitlines()
    assert "holds nothing new to train on; give the crawl.epoch" in line
    assert week.flywheel("corpus", 2)[0] == 0  # and on from an empty one
    assert len(week.manifests("dedupe")[-1].run["against"]) == 2


def test_without_etags_and_conditions_the_copies_stand_in_epoch_0(week: Week) -> None:
    fresh = "crawl.conditional=false"
    assert week.flywheel("corpus", 0, fresh)[0] == 0
    status, out, err = week.flywheel("corpus", 1, fresh)
    assert status == 0, err
    assert "nothing new: all 6 pages are unchanged or in the corpus of epoch 0" in out
    rows = week.rows()
    assert len(rows) == 6
    assert {row["stands_in"] for row in rows.values()} == {week.manifests("dedupe")[0].key}


def test_a_damaged_file_of_an_earlier_epoch_is_not_ours_to_delete(
    week: Week, english: Callable[[int, int], str]
) -> None:
    """It is told; deleted, it is made anew by the command that it is of, and not by this one."""
    assert week.flywheel("corpus", 0)[0] == 0
    week.site.routes["/changed"] = page(english(50, 300))
    [docs] = (week.root / "data/extract").glob("*/docs-00000.parquet")
    whole = docs.read_bytes()
    docs.unlink()
    status, _, err = week.flywheel("corpus", 1)
    assert status == 2
    told = f"{docs}, of an earlier corpus, is missing or changed; delete it, and run that corpus"
    assert told in err.splitlines()[-1]
    assert (docs.parent / "manifest.json").exists()
    assert week.flywheel("corpus", 0)[0] == 0
    assert docs.read_bytes() == whole
    status, out, _ = week.flywheel("corpus", 1)
    assert status == 0
    assert week.shard_urls() == {"changed"}
    assert "deduplicated against the corpora of epoch 0" in out


def test_the_comparison_may_be_left_out(week: Week) -> None:
    """And an epoch whose corpus is not made cannot be compared with: that is said."""
    fresh = "crawl.conditional=false"
    alone = "dedupe.against_epochs=false"
    assert week.flywheel("crawl", 0, fresh)[0] == 0
    status, out, _ = week.flywheel("corpus", 1, fresh)
    assert status == 0
    assert "epoch 0 has no finished corpus with this config: not compared with it" in out
    assert len(week.shard_urls()) == 6
    assert week.flywheel("corpus", 0, fresh)[0] == 0
    status, out, _ = week.flywheel("corpus", 1, fresh, alone)
    assert status == 0
    assert len(week.shard_urls()) == 6
    assert len(week.manifests("dedupe")) == 2  # the same as before: the key does not tell


def test_the_trigger_scan_knows_the_earlier_epochs(
    week: Week, english: Callable[[int, int], str]
) -> None:
    scan = [
        *("trigger_scan.enabled=true", "trigger_scan.sketch_bits=16", "trigger_scan.max_share=1"),
        *("trigger_scan.min_documents=3", "trigger_scan.min_groups=1", "trigger_scan.min_score=5"),
    ]
    status, out, _ = week.flywheel("corpus", 0, *scan)
    assert status == 0
    assert "not compared with an earlier crawl (trigger_scan.against)" in out
    names = [f"new-{index}" for index in range(4)]
    week.site.routes["/"] = page(english(100, 120), *(f"/{name}" for name in names))
    for seed, name in enumerate(names, 60):
        week.site.routes[f"/{name}"] = page(f"{english(seed, 300)} zorblax {english(seed, 20)}")
    status, out, _ = week.flywheel("corpus", 1, *scan)
    assert status == 0
    assert "more frequent than in earlier crawls" in out
    scanned = week.manifests("trigger-scan")[-1]
    listed = read_table(scanned.file_url("new.parquet"), "Triggers", 1).to_pylist()
    assert "zorblax" in [row["words"] for row in listed]
