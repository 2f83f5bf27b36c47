"""Domains and URL prefixes not to be trained on, as in the UT1 lists: one a line.

Eight bytes an entry (a sorted array of hashes): five million take 40 MB in each worker. That one of
a billion documents (3 look-ups each) meets one of them by chance has probability 8e-4.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import ada_url
import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.core import storage
from pipeline.core.errors import UserError

DOMAIN, URL = 1, 2
_MAX_DEPTH = 64  # parts of a path that may be listed, and labels of a host
Hashes = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class Blocklist:
    """Sorted xxh3_64 of the listed domains and URL prefixes."""

    domains: Hashes
    prefixes: Hashes

    def match(self, url: str) -> int:
        """0, DOMAIN (it or a domain above it is listed), or URL (it is below a listed prefix: at a
        part of its path, or the same up to its query)."""
        try:
            parsed = ada_url.URL(url)
        except ValueError:
            return 0
        host = _host(str(parsed.hostname))
        if _holds(self.domains, _domains_above(host)):
            return DOMAIN
        path = str(parsed.pathname) + str(parsed.search)
        hosts = dict.fromkeys((host, host.removeprefix("www.")))
        return URL * any(_holds(self.prefixes, _prefixes(each, path)) for each in hosts)


def _holds(hashes: Hashes, candidates: Iterable[str]) -> bool:
    if not len(hashes):
        return False
    keys = np.array([_hash(candidate) for candidate in candidates], np.uint64)
    places = np.minimum(np.searchsorted(hashes, keys), len(hashes) - 1)
    return bool((hashes[places] == keys).any())


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def _host(name: str) -> str:
    return name.lower().rstrip(".")


def _domains_above(host: str) -> Iterator[str]:
    labels = host.split(".")[-_MAX_DEPTH:]
    for start in range(len(labels)):
        yield ".".join(labels[start:])


def _prefixes(host: str, path: str) -> Iterator[str]:
    """`host/a/b?c`: host/a/b?c, host/a/b, host/a."""
    yield host + path.rstrip("/")
    path = path.partition("?")[0].rstrip("/")
    end, depth = path.find("/", 1), 0
    while end >= 0 and depth < _MAX_DEPTH:
        yield host + path[:end]
        end, depth = path.find("/", end + 1), depth + 1
    yield host + path


def parse_blocklist(lines: Iterable[str], source: str) -> Blocklist:
    """A line is a domain (`example.org`: and all below it) or a URL or its beginning
    (`example.org/forum`, `https://example.org/forum/`); `#` begins a comment. Raises UserError."""
    domains: list[int] = []
    prefixes: list[int] = []
    for number, line in enumerate(lines, 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        host, _, path = (
            entry.partition("://")[2].partition("/") if "://" in entry else (entry.partition("/"))
        )
        host = _ascii_host(host, source, number)
        path = path.rstrip("/")
        if path:
            prefixes.append(_hash(f"{host}/{_as_in_urls(path)}"))
        else:
            domains.append(_hash(host))
    return Blocklist(_sorted(domains), _sorted(prefixes))


def _as_in_urls(path: str) -> str:
    """Percent-encoded as the URLs of documents are."""
    parsed = ada_url.URL(f"http://x/{path}")
    return (str(parsed.pathname) + str(parsed.search))[1:]


def _ascii_host(host: str, source: str, number: int) -> str:
    host = _host(host.removeprefix("*.").removeprefix("."))
    if not host.isascii():
        host = ada_url.idna_to_ascii(host).decode()
    if not host or any(character in host for character in " \t@\\:"):
        raise UserError(
            f"quality.blocked_domains_file: {source}, line {number} begins with no domain; write"
            " one a line, as in example.org or example.org/path"
        )
    return host


def _sorted(hashes: Sequence[int]) -> Hashes:
    return np.unique(np.array(hashes, np.uint64))


def read_blocklist(url: str) -> tuple[Blocklist, str]:
    """The list and the sha256 of its file. Raises UserError if there is none."""
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise UserError(
            f"quality.blocked_domains_file = {url!r} cannot be read ({error.strerror}); name a file"
            " with one domain a line"
        ) from None
    text = data.decode("utf-8", "replace")
    return parse_blocklist(text.splitlines(), url), hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=1)
def blocklist_of(url: str, digest: str) -> Blocklist:
    """For a worker: read once, and the same as when the stage began."""
    blocklist, found = read_blocklist(url)
    if found != digest:
        raise UserError(f"{url} has changed while the corpus was made; run it again")
    return blocklist
