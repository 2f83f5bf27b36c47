import contextlib
import errno
import importlib.util
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from pipeline.core import storage
from pipeline.core.errors import UserError


@pytest.mark.parametrize("root", ["{tmp}", "file://{tmp}", "memory://{tmp}"])
def test_written_bytes_are_read_back_and_create_refuses_to_replace(
    root: str, tmp_path: Path
) -> None:
    url = storage.join(root.format(tmp=tmp_path), "deep", "er", "file.bin")
    assert not storage.exists(url)
    storage.write_bytes(url, b"one", mode="create")
    storage.write_bytes(url, b"two")
    assert storage.read_bytes(url) == b"two"
    assert (storage.exists(url), storage.size(url)) == (True, 3)
    if not url.startswith("memory"):  # fsspec's memory file system knows no exclusive write
        with pytest.raises(FileExistsError):
            storage.write_bytes(url, b"three", mode="create")
        assert storage.read_bytes(url) == b"two"
    storage.remove(url)
    assert not storage.exists(url)
    storage.remove(url)
    fsspec.filesystem("memory").store.clear()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    url = str(tmp_path / "f")
    storage.write_bytes(url, b"old")
    with pytest.raises(RuntimeError), storage.atomic_file(url) as path:
        path.write_bytes(b"half of the n")
        raise RuntimeError
    assert storage.read_bytes(url) == b"old"
    assert os.listdir(tmp_path) == ["f"]  # noqa: PTH208


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    url = str(tmp_path / "f")
    storage.write_bytes(url, b"old")
    code = (
        "import os, signal, sys; from pipeline.core import storage\n"
        "with storage.atomic_file(sys.argv[1]) as path:\n"
        "    path.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, url], check=False).returncode == -9
    assert storage.read_bytes(url) == b"old"


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    url = str(tmp_path / "f")
    with pytest.raises(OSError, match="no space left") as caught, storage.atomic_file(url) as path:
        path.write_bytes(b"half")
        with open("/dev/full", "wb") as full:  # noqa: PTH123
            full.write(b"x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, url)
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.parametrize(
    ("url", "why"),
    [("foo://x/y", "no place to keep files"), ("gs://b/x", "gcsfs")],
)
def test_a_place_that_cannot_be_reached_is_one_line(url: str, why: str) -> None:
    if why != "no place to keep files" and importlib.util.find_spec(why):
        pytest.skip(f"{why} is installed here")
    for look in (storage.exists, storage.size, storage.read_bytes, storage.remove):
        with pytest.raises(UserError, match=why) as caught:
            look(url)
        assert url in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=why):
        storage.write_bytes(url, b"x")


def test_an_error_of_pythons_own_comes_through(tmp_path: Path) -> None:
    """A text that is not UTF-8 is no fault of SQLite's, and has no code of it."""
    path = tmp_path / "x.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        query = "SELECT CAST(x'ff' AS TEXT)"
        with pytest.raises(sqlite3.OperationalError, match="decode"), storage.sqlite_at(path):
            db.execute(query).fetchall()
