"""The scenario of run.py, and the parts of it whose answer can be known without hosts."""

import base64
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.core.manifest import Counts, FileEntry, Manifest

HERE = Path(__file__).parent
CANNOT = 77


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """run.py as a module, found as when it runs: beside its siblings."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("run")


def _record(kind: str, url: str, body: bytes) -> bytes:
    digest = base64.b32encode(hashlib.sha1(b"one").digest()).decode()
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + body
    head = (
        f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\n"
        f"WARC-Payload-Digest: sha1:{digest}\r\nContent-Type: application/http\r\n"
        f"Content-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def test_what_was_archived_is_read_as_a_set_and_every_difference_is_named(
    script: ModuleType, tmp_path: Path
) -> None:
    records = [
        _record("response", "http://a.example/robots.txt", b"User-agent: *"),
        _record("response", "http://a.example/1", b"one"),
        _record("response", "http://a.example/1", b"one"),  # asked for again after a kill
        _record("request", "http://a.example/2", b""),
        _record("revisit", "http://a.example/3", b""),
    ]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(records))
    files = (FileEntry("a.warc.gz", "", 0), FileEntry("a.cdxj", "", 0))
    manifest = Manifest("crawl", 1, "", {}, {}, files, Counts(0, 0), None, {}, {}, str(tmp_path))
    one = hashlib.sha256(b"one").hexdigest()
    found, num_records = script.archived(manifest)
    assert found == {("http://a.example/1", one), ("http://a.example/3", one)}
    assert num_records == 3
    assert script.difference(found, {"http://a.example/1": one, "http://a.example/3": one}) == ""
    said = script.difference(found, {"http://a.example/1": "other", "http://a.example/9": one})
    assert said == (
        "1 missing: ['http://a.example/9']; 1 too many: ['http://a.example/3'];"
        " 1 of other content: ['http://a.example/1']"
    )


@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv (util-linux)")
def test_where_hosts_cannot_be_made_it_says_why_and_ends_with_77() -> None:
    lesser = ["setpriv", "--inh-caps=-sys_admin", "--bounding-set=-sys_admin"]
    done = subprocess.run(
        [*(lesser if os.geteuid() == 0 else []), sys.executable, HERE / "run.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (CANNOT, "")
    reasons = ("it needs root", "not found; install", "the kernel refuses namespaces: ")
    assert done.stdout.startswith("cannot be done here: ")
    assert any(reason in done.stdout for reason in reasons)
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.long
@pytest.mark.timeout(600)
def test_ray_submit_crawls_the_known_truth_although_a_worker_host_dies() -> None:
    done = subprocess.run(
        [sys.executable, HERE / "run.py"], capture_output=True, text=True, check=False, timeout=580
    )
    if done.returncode == CANNOT:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "has lost its power" in done.stdout
    assert "are the known truth" in done.stdout
