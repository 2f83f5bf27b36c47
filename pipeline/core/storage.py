"""Files at any fsspec URL, written so that a reader never sees half of one.

A plain path is a local file. A local write goes to a temporary name, is fsynced and renamed;
an object store's write is atomic by itself, and `mode="create"` becomes If-None-Match there. Keys
and endpoints of object stores come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL …).
"""

import contextlib
import errno
import os
import posixpath
import sqlite3
import sys
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import IO, Any, Literal, cast

import fsspec
from fsspec.core import split_protocol

from pipeline.core.errors import UserError, is_disk_full

WriteMode = Literal["replace", "create"]
_READ_AHEAD = 4 << 20
# A busy store (503, SlowDown) and one that does not answer are asked again, some minutes in all.
_S3 = {
    "config_kwargs": {
        "retries": {"mode": "standard", "max_attempts": 8},
        "connect_timeout": 10,
        "read_timeout": 60,
    },
    "use_listings_cache": False,  # other workers write, too
}


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
    fs, path = filesystem(url)
    with _reaching(url):
        return bool(fs.exists(path))


def size(url: str) -> int:
    """Bytes in the file. Raises FileNotFoundError."""
    if is_local(url):
        return local_path(url).stat().st_size
    fs, path = filesystem(url)
    with _reaching(url):
        return int(fs.size(path))


def sizes(url: str, names: Iterable[str]) -> dict[str, int]:
    """The bytes of those of these files that are in the folder; a remote one is listed once."""
    if is_local(url):
        paths = {name: local_path(url) / name for name in names}
        return {name: path.stat().st_size for name, path in paths.items() if path.exists()}
    present = _listing(url)
    return {name: present[name] for name in names if name in present}


def names_in(url: str) -> list[str]:
    """The files of a folder, sorted; none if there is no such folder. For looking after what went
    wrong: what is there and what belongs there, a manifest says."""
    if is_local(url):
        folder = local_path(url)
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return sorted(_listing(url))


def _listing(url: str) -> dict[str, int]:
    fs, path = filesystem(url)
    with _reaching(url):
        found = cast(dict[str, dict[str, Any]], fs.find(path, detail=True))
    start = len(path.rstrip("/")) + 1
    return {name[start:]: int(info["size"]) for name, info in found.items()}


def mark(url: str) -> tuple[object, ...] | None:
    """Another one as soon as the file is another; None if there is none."""
    if is_local(url):
        try:
            found = local_path(url).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
    fs, path = filesystem(url)
    try:
        with _reaching(url):
            info = fs.info(path)
    except FileNotFoundError:
        return None
    return tuple(str(info.get(name)) for name in ("ETag", "etag", "LastModified", "size"))


@contextlib.contextmanager
def open_read(url: str, *, in_order: bool = True) -> Generator[IO[bytes]]:
    """The file, seekable. Who reads here and there, not `in_order`, gets from a remote one just the
    bytes asked for, one request for each read."""
    if is_local(url):
        with local_path(url).open("rb") as file:
            yield file
        return
    fs, path = filesystem(url)
    cache = {"block_size": _READ_AHEAD} if in_order else {"cache_type": "none"}
    with _reaching(url), fs.open(path, "rb", **cache) as file:
        yield cast(IO[bytes], file)


def read_bytes(url: str) -> bytes:
    if is_local(url):
        return local_path(url).read_bytes()
    fs, path = filesystem(url)
    with _reaching(url):
        return cast(bytes, fs.cat_file(path))


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
            fs, path = filesystem(url)
            how = "create" if mode == "create" else "overwrite"
            try:
                with _reaching(url):
                    fs.put_file(str(temporary), path, mode=how)
            except FileNotFoundError as error:
                raise UserError(f"{url!r} cannot be written: {error}; make the bucket") from None
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
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError), _reaching(url):
        fs.rm_file(path)


@contextlib.contextmanager
def _reaching(url: str) -> Generator[None]:
    """In one line what S3's library says of missing keys, a bad profile or a dead endpoint, and
    HTTP's of a dead server."""
    try:
        yield
    except _store_errors() as error:
        hint = "; keys, region and endpoint come from the environment (AWS_ACCESS_KEY_ID …)"
        is_s3 = split_protocol(url)[0] in ("s3", "s3a")
        raise UserError(f"{url!r} cannot be reached: {error}{hint if is_s3 else ''}") from None


def _store_errors() -> tuple[type[Exception], ...]:
    """Known as soon as the libraries are loaded."""
    s3, http = sys.modules.get("botocore.exceptions"), sys.modules.get("aiohttp")
    return (*((s3.BotoCoreError,) if s3 else ()), *((http.ClientError,) if http else ()))


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's, and the path there. Raises UserError for a kind of place that this installation
    cannot reach."""
    options = _S3 if split_protocol(url)[0] in ("s3", "s3a") else {}
    try:
        fs, path = cast(tuple[Any, str], fsspec.url_to_fs(url, **options))
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
