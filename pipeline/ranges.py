"""Byte ranges of files elsewhere: asked for again while the server is busy, never more than asked.

HTTP(S) by urllib3, all else by fsspec (s3:// needs s3fs). RFC 9110 §14 (ranges), §10.2.3.
"""

import contextlib
import dataclasses
import errno
import io
import random
import re
import tempfile
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, cast

import fsspec
import urllib3
from fsspec.core import split_protocol
from urllib3.util import parse_url

from pipeline.core import storage
from pipeline.core.errors import UserError

USER_AGENT = "FlywheelBot/0.1"

_BLOCK = 4 << 20
_KEPT_BLOCKS = 3
_PIECE = 256 << 10
_SLOWEST = 10_000  # bytes a second; a server that drips longer than that counts as busy
_MAX_RETRY_AFTER_S = 300.0
_MAX_WAIT_S = 60.0
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class RangeError(OSError):
    """A range that cannot be had; `reason` is short and the same for all of its kind.

    `busy`: the server may well give it another time.
    """

    def __init__(self, reason: str, url: str, *, busy: bool = False) -> None:
        super().__init__(errno.EIO, reason, url)
        self.reason, self.busy = reason, busy


@dataclasses.dataclass(frozen=True)
class Remote:
    """What a server says of a file. `size` None: it does not say, or gives no ranges."""

    size: int | None
    etag: str


class RangeClient:
    """Reads ranges, from any number of threads. Waits double from `backoff_s`, with jitter."""

    def __init__(
        self,
        *,
        user_agent: str = USER_AGENT,
        connections: int = 8,
        timeout_s: float = 60.0,
        max_attempts: int = 8,
        backoff_s: float = 1.0,
        rng: random.Random | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._max_attempts, self._backoff_s, self._timeout_s = max_attempts, backoff_s, timeout_s
        self._rng, self._sleep = rng or random.Random(), sleep
        self._headers = {"User-Agent": user_agent, "Accept-Encoding": "identity"}
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._connections = connections

    def describe(self, url: str) -> Remote:
        """Raises RangeError; reason `status-404` where there is no such file."""
        if not is_http(url):
            fs, path = _filesystem(url)
            info: dict[str, Any] = self._retried(lambda: _guarded(fs.info, url, path))
            return Remote(info.get("size"), str(info.get("ETag") or info.get("etag") or ""))
        return self._retried(lambda: self._describe_http(url))

    def read(self, url: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises RangeError."""
        if length == 0:
            return b""
        if is_http(url):
            return self._retried(lambda: self._read_http(url, start, length))
        fs, path = _filesystem(url)
        return self._retried(lambda: _read_fsspec(fs, url, path, start, length))

    def read_all(self, url: str, max_bytes: int) -> bytes:
        """A whole small file. Raises RangeError, reason `too large` above `max_bytes`."""

        def attempt() -> bytes:
            with self._ask(url, {}) as response:
                _check_status(response, url, (200,))
                return self._body(response, url, max_bytes)

        if is_http(url):
            return self._retried(attempt)
        with storage.open_read(url) as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise RangeError("too large", url)
        return data

    @contextlib.contextmanager
    def open(self, url: str, ahead: int = 2) -> Generator[IO[bytes]]:
        """The file, seekable; the next `ahead` blocks of 4 MiB come while this one is read.

        A server without ranges gives the file whole, into a temporary one.
        """
        found = self.describe(url)
        if found.size is None:
            with tempfile.TemporaryFile() as file:
                self._retried(lambda: self._download(url, file))
                file.seek(0)
                yield file
            return
        remote = _RemoteFile(self, url, found.size, ahead)
        with contextlib.closing(remote), io.BufferedReader(remote, _PIECE) as file:
            yield cast(IO[bytes], file)

    def _retried(self, attempt: Callable[[], Any]) -> Any:
        for number in range(1, self._max_attempts + 1):
            try:
                return attempt()
            except _BusyError as error:
                if number == self._max_attempts:
                    raise RangeError(error.reason, error.url, busy=True) from error
                wait_s = min(_MAX_WAIT_S, self._backoff_s * 2 ** (number - 1))
                self._sleep(max(error.wait_s, wait_s * self._rng.uniform(0.5, 1.0)))
        raise AssertionError("the last attempt returns or raises")

    def _describe_http(self, url: str) -> Remote:
        with self._ask(url, {"Range": "bytes=0-0"}) as response:
            _check_status(response, url, (200, 206, 416))
            etag = response.headers.get("ETag", "")
            span = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            has_size = response.status != 200 and span and span[3] != "*"
            return Remote(int(span[3]) if span and has_size else None, etag)

    def _read_http(self, url: str, start: int, length: int) -> bytes:
        with self._ask(url, {"Range": f"bytes={start}-{start + length - 1}"}) as response:
            _check_status(response, url, (206,))
            span = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if span and span[1] and (int(span[1]), int(span[2])) != (start, start + length - 1):
                if span[3] != "*" and int(span[3]) < start + length:
                    raise RangeError("beyond the end of the file", url)
                raise _BusyError("another range than asked for", url)
            data = self._body(response, url, length)
        if len(data) < length:
            raise _BusyError("body cut off", url)
        return data

    def _download(self, url: str, file: IO[bytes]) -> None:
        file.seek(0)
        file.truncate()
        with self._ask(url, {}) as response:
            _check_status(response, url, (200,))
            for piece in self._pieces(response, url):
                file.write(piece)

    def _body(self, response: Any, url: str, max_bytes: int) -> bytes:
        body = bytearray()
        for piece in self._pieces(response, url):
            body += piece
            if len(body) > max_bytes:
                raise _BusyError("more bytes than asked for", url)
        return bytes(body)

    def _pieces(self, response: Any, url: str) -> Generator[bytes]:
        started, num_bytes = time.monotonic(), 0
        while piece := response.read1(_PIECE):
            num_bytes += len(piece)
            if time.monotonic() - started > self._timeout_s + num_bytes / _SLOWEST:
                raise _BusyError("too slow", url)
            yield piece

    @contextlib.contextmanager
    def _ask(self, url: str, headers: dict[str, str]) -> Generator[Any]:
        """One GET; the connection goes back to the pool only if the body was read to its end."""
        response = None
        try:
            response = self._pool(url).request(
                "GET",
                url,
                headers={**self._headers, **headers},
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=self._timeout_s, read=self._timeout_s),
                retries=urllib3.Retry(5, connect=0, read=0, status=0, other=0, redirect=5),
            )
            yield response
        except urllib3.exceptions.LocationValueError as error:
            raise RangeError(f"no URL: {error}", url) from None
        except urllib3.exceptions.HTTPError as error:
            raise _BusyError(_kind(error), url) from error
        finally:
            if response is not None:
                if response.length_remaining != 0:
                    response.close()
                response.release_conn()

    def _pool(self, url: str) -> urllib3.PoolManager:
        scheme = url.partition(":")[0].lower()
        if scheme not in self._pools:
            host = parse_url(url).host or ""
            proxy = urllib.request.getproxies().get(scheme)
            use = proxy and not urllib.request.proxy_bypass(host)
            kind: Any = urllib3.ProxyManager if use else urllib3.PoolManager
            options = {"maxsize": self._connections, "block": True}
            self._pools[scheme] = kind(proxy, **options) if use else kind(**options)
        return self._pools[scheme]


class _BusyError(Exception):
    """Worth another attempt, in `wait_s` at the earliest."""

    def __init__(self, reason: str, url: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.url, self.wait_s = reason, url, wait_s


class _RemoteFile(io.RawIOBase):
    """A file read by blocks; a few are kept, and the next ones fetched meanwhile."""

    def __init__(self, client: RangeClient, url: str, size: int, ahead: int) -> None:
        self._client, self._url, self._size, self._ahead = client, url, size, ahead
        self._position = 0
        self._kept: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._threads = ThreadPoolExecutor(max(1, ahead), "ahead")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._position, 2: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]  # BufferedReader gives a memoryview
        if self._position >= self._size:
            return 0
        index, at = divmod(self._position, _BLOCK)
        for wanted in range(index, index + 1 + self._ahead):
            if wanted * _BLOCK < self._size:
                self._fetch(wanted)
        data = self._kept[index].result()[at : at + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._kept.clear()
        super().close()

    def _fetch(self, index: int) -> None:
        if index in self._kept:
            self._kept.move_to_end(index)
            return
        length = min(_BLOCK, self._size - index * _BLOCK)
        self._kept[index] = self._threads.submit(
            self._client.read, self._url, index * _BLOCK, length
        )
        while len(self._kept) > _KEPT_BLOCKS + self._ahead:
            self._kept.popitem(last=False)[1].cancel()


def is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


@contextlib.contextmanager
def open_archive(url: str, client: RangeClient | None, ahead: int = 2) -> Generator[IO[bytes]]:
    """A file to read and seek in, wherever it lies. `client` is for HTTP(S)."""
    opened = (client or RangeClient()).open(url, ahead) if is_http(url) else storage.open_read(url)
    with opened as file:
        yield file


def _check_status(response: Any, url: str, expected: tuple[int, ...]) -> None:
    if response.status in expected:
        return
    if response.status in _BUSY:
        after = response.headers.get("Retry-After", "")
        wait_s = min(float(after), _MAX_RETRY_AFTER_S) if after.isdecimal() else 0.0
        raise _BusyError(f"status-{response.status}", url, wait_s)
    if response.status == 416:
        raise RangeError("beyond the end of the file", url)
    if response.status == 200:
        raise RangeError("the server gives no byte ranges", url)
    raise RangeError(f"status-{response.status}", url)


def _kind(error: BaseException) -> str:
    inner = getattr(error, "reason", None)
    cause = inner if isinstance(inner, BaseException) else error
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(cause).__name__).lower()


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        return cast(tuple[Any, str], fsspec.url_to_fs(url))
    except ImportError as error:
        scheme = split_protocol(url)[0]
        raise UserError(f"{url}: {scheme}:// needs another package: {error}") from None


def _guarded(call: Callable[..., Any], url: str, path: str, **options: Any) -> Any:
    """fsspec's errors in our terms."""
    try:
        return call(path, **options)
    except FileNotFoundError:
        raise RangeError("status-404", url) from None
    except PermissionError:
        raise RangeError("status-403", url) from None
    except (OSError, TimeoutError) as error:  # s3fs: SlowDown, after five attempts of its own
        raise _BusyError(str(error)[:100], url) from error


def _read_fsspec(fs: Any, url: str, path: str, start: int, length: int) -> bytes:
    data = cast(bytes, _guarded(fs.cat_file, url, path, start=start, end=start + length))
    if len(data) != length:
        raise RangeError("beyond the end of the file", url)
    return data
