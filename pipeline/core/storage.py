"""Files at any fsspec URL, written so that a reader never sees half of one.

A plain path is a local file. A local write goes to a temporary name, is fsynced and renamed;
an object store's write is atomic by itself, and `mode="create"` becomes If-None-Match there.
"""

import contextlib
import errno
import os
import posixpath
import sqlite3
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any, Literal, cast

import fsspec
from fsspec.core import split_protocol

from pipeline.core.errors import UserError, is_disk_full

WriteMode = Literal["replace", "create"]


def is_local(url: str) -> bool:
    return split_protocol(url)[0] in (None, "file", "local")


def local_path(url: str) -> Path:
    """The path of a local URL; asserts that it is one."""
    assert is_local(url), url
    return Path(split_protocol(url)[1])


def join(url: str, *parts: str) -> str:
    return posixpath.join(url, *parts)


def exists(url: str) -> bool:
    if is_local(url):
        return local_path(url).exists()
    fs, path = _filesystem(url)
    return bool(fs.exists(path))


def size(url: str) -> int:
    """Bytes in the file. Raises FileNotFoundError."""
    if is_local(url):
        return local_path(url).stat().st_size
    fs, path = _filesystem(url)
    return int(fs.size(path))


@contextlib.contextmanager
def open_read(url: str) -> Generator[IO[bytes]]:
    if is_local(url):
        with local_path(url).open("rb") as file:
            yield file
        return
    fs, path = _filesystem(url)
    with fs.open(path, "rb") as file:
        yield cast(IO[bytes], file)


def read_bytes(url: str) -> bytes:
    with open_read(url) as file:
        return file.read()


def write_bytes(url: str, data: bytes, mode: WriteMode = "replace") -> None:
    """Write the whole file or nothing. With `create`, raises FileExistsError if it is there."""
    with atomic_file(url, mode) as path:
        path.write_bytes(data)


@contextlib.contextmanager
def atomic_file(url: str, mode: WriteMode = "replace") -> Generator[Path]:
    """Yield a local path to write to; on a clean exit its bytes stand at `url`, else nothing does.

    Errors: FileExistsError (mode `create`); OSError as the file system raises it (ENOSPC …),
    naming `url`.
    """
    if not is_local(url):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / posixpath.basename(url)
            yield temporary
            fs, path = _filesystem(url)
            fs.put_file(str(temporary), path, mode="create" if mode == "create" else "overwrite")
        return
    target = local_path(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        fsync(temporary)
        if mode == "create":
            os.link(temporary, target)  # unlike rename, refuses to replace
            temporary.unlink()
        else:
            temporary.replace(target)
        fsync(target.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise OSError(errno.ENOSPC, "no space left on the disk", url) from error
        raise


def remove(url: str) -> None:
    """Delete a file if it is there."""
    if is_local(url):
        local_path(url).unlink(missing_ok=True)
        return
    fs, path = _filesystem(url)
    if fs.exists(path):
        fs.rm_file(path)


def _filesystem(url: str) -> tuple[Any, str]:
    """Raises UserError for a kind of place that this installation cannot reach."""
    try:
        fs, path = cast(tuple[Any, str], fsspec.url_to_fs(url))
    except ImportError as error:
        raise UserError(
            f"{url!r} needs a package that is not installed ({error}); install it, or set run.root"
            " to a local folder"
        ) from None
    except ValueError as error:  # an unknown protocol
        raise UserError(f"{url!r} is no place to keep files: {error}; set run.root") from None
    return fs, path


def fsync(path: Path) -> None:
    """Have the file, or the folder's list of names, on the disk before this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def sqlite_at(path: Path) -> Generator[None]:
    """SQLite calls it an "I/O error" when a quota or a limit on files stops a write: writing once
    more without it raises the OSError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        # Python's own errors (a text that is not UTF-8) have no code.
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_WRITE:
            with path.open("ab") as file:
                file.write(bytes(1 << 16))
        raise
