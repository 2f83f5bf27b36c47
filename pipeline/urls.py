"""One name for each page (canonical URLs), who owns it, and which URLs are not worth a request.

URLs are parsed as https://url.spec.whatwg.org says; owners by https://publicsuffix.org.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

import ada_url
import xxhash

from pipeline.core.errors import UserError

MAX_URL_CHARS = 4096
MAX_TRAP_FREE_CHARS = 2048
MAX_SEGMENTS = 20  # Heritrix's limit too
MAX_SAME_SEGMENT = 3
MAX_PARAMETERS = 20

TRACKING = (
    *("utm_*", "mtm_*", "pk_*", "hsa_*", "_hs*", "ga_*", "__hst*", "__hss*", "oly_*"),
    *("fbclid", "gclid", "gclsrc", "dclid", "gbraid", "wbraid", "msclkid", "yclid", "twclid"),
    *("ttclid", "igshid", "igsh", "li_fat_id", "mc_cid", "mc_eid", "mkt_tok", "_ga", "_gl"),
    *("vero_id", "vero_conv", "wickedid", "s_kwcid", "ef_id", "srsltid", "_openstat"),
)
SESSIONS = (
    *("phpsessid", "jsessionid", "aspsessionid*", "asp.net_sessionid", "cfid", "cftoken"),
    *("oscsid", "zenid", "xtcsid", "sessid"),
)
MAYBE_SESSIONS = ("sid", "s", "session", "sessionid", "session_id")

# Servlet containers and ASP.NET (`/(S(…))/`, with A, F and X beside it) write sessions into paths.
_PATH_SESSION = re.compile(r";(?:jsessionid|phpsessid|sid)=[^/;]*", re.IGNORECASE | re.ASCII)
_PATH_TICKET = re.compile(
    r"/\((?:[AFX]\([0-9A-Za-z_-]+\))*S\([0-9a-z]{24}\)(?:[AFX]\([^()/]+\))*\)(?=/)"
)
_LONG_HEX = re.compile(r"[0-9a-fA-F]{16,}")

_MAYBE_YEAR = re.compile(r"[12][0-9]{3}")
# A calendar by its name; one that is only named after its events shows months, not an event.
_CALENDAR = re.compile(
    r"calend|kalend|agenda|[?&](?:year|month|week|day|date|tribe-bar-date)=", re.I
)
_EVENTS = re.compile(
    r"/(?:events?|termine?|veranstaltung(?:en)?|[eé]v[eé]nements?|eventos?|eventi|whats-on)/"
    r"(?:[a-z]+/)?[0-9/-]+(?:$|[?])",
    re.I,
)
_MONTHS = r"(?:0?[1-9]|1[0-2]|(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*)"
_YEARS = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        rf"(?<![0-9])([12][0-9]{{3}})[-/]{_MONTHS}(?!-?[a-z]|[0-9])",
        rf"(?<![0-9a-z]){_MONTHS}[-/]([12][0-9]{{3}})(?![0-9])",
        r"[?&](?:year|yr|jahr)=([0-9]{4})(?![0-9])",
        r"[?&][a-z-]*(?:date|month|day|week)=([12][0-9]{3})(?:0[1-9]|1[0-2])(?:[0-3][0-9])?(?![0-9])",
        r"[ck]alend[a-z]*/([12][0-9]{3})/?$",
        r"[ck]alend[^?]*/(2[0-9]{3})(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?![0-9])",
    )
)
_DAY = re.compile(
    r"(?<![0-9])(2[0-9]{3})([-/])(?:0[1-9]|1[0-2])\2(?:0[1-9]|[12][0-9]|3[01])(?![0-9])"
)


@functools.cache
def _suffixes() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """The list's ICANN section in lower-case ASCII: rules, parents of wildcards, exceptions."""
    import tldextract  # takes 0.15 s, and only who names a domain needs it

    listed = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None).tlds
    rules = [ada_url.idna_to_ascii(rule.lstrip("*.!")).decode() for rule in listed]
    kinds = list(zip((rule[0] for rule in listed), rules, strict=True))
    return (
        frozenset(rule for kind, rule in kinds if kind not in "*!"),
        frozenset(rule for kind, rule in kinds if kind == "*"),
        frozenset(rule for kind, rule in kinds if kind == "!"),
    )


def suffix_list_digest() -> str:
    """16 hex digits that change when a rule of the bundled list changes, and owners with it."""
    text = "\n".join(" ".join(sorted(rules)) for rules in _suffixes())
    return xxhash.xxh3_64_hexdigest(text.encode())


@functools.lru_cache(maxsize=1 << 16)
def registrable_domain(host: str) -> str:
    """The part of a host name that its owner registered: "b.co.uk" of "www.b.co.uk".

    Lower-case ASCII, a port left out. An IP address, a single label and a public suffix are their
    own. Only the list's ICANN section counts: the private one would tear one owner's servers (all
    of s3.amazonaws.com, of github.io) into many; their limits belong together in one shard.
    """
    name = host.lower()
    name = name.partition("]")[0] + "]" if name[:1] == "[" else name.partition(":")[0].rstrip(".")
    if not name.isascii():
        name = ada_url.idna_to_ascii(name).decode() or name
    last = name.rpartition(".")[2]
    if last == name or name.startswith("[") or last.isdigit() or last.startswith("0x"):
        return name
    rules, wildcards, exceptions = _suffixes()
    labels = name.split(".")
    for start in range(max(0, len(labels) - 8), len(labels)):  # the longest rule wins; none has 8
        suffix = ".".join(labels[start:])
        if suffix in exceptions:
            return suffix
        if suffix in rules or suffix.partition(".")[2] in wildcards:
            return ".".join(labels[max(0, start - 1) :])
    return ".".join(labels[-2:])  # an unlisted top level domain is a suffix of one label


def shard_of(host: str, num_shards: int) -> int:
    """The shard that a host belongs to: the same for all hosts of one owner.

    It moves only with `num_shards` and with the suffix list (`suffix_list_digest`).
    """
    return xxhash.xxh3_64_intdigest(registrable_domain(host).encode()) % num_shards


@dataclasses.dataclass(frozen=True)
class UrlRules:
    """Which query parameters say nothing about the page.

    `drop_parameters` are names without regard to case, with * and ? as in file names, and
    `extra_parameters` (a site's own) are dropped like them;
    `session_parameters` are dropped only with a value of 16 or more hexadecimal digits.
    Raises UserError for an empty name.
    """

    drop_parameters: tuple[str, ...] = TRACKING + SESSIONS
    extra_parameters: tuple[str, ...] = ()
    session_parameters: tuple[str, ...] = MAYBE_SESSIONS
    sort_parameters: bool = False
    drop_path_sessions: bool = True
    _dropped: re.Pattern[str] = dataclasses.field(init=False, repr=False, compare=False)
    _found: re.Pattern[str] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        dropped = (*self.drop_parameters, *self.extra_parameters)
        for name in (*dropped, *self.session_parameters):
            if not name or set(name) & set("=&#"):
                raise UserError(f"query parameter {name!r}: give a name like 'ref' or 'utm_*'")
        always = "|".join(map(_as_pattern, dropped))
        sessions = "|".join(map(_as_pattern, self.session_parameters))
        one = rf"(?:(?:{always or '(?!)'})(?:=[^&]*)?|(?:{sessions or '(?!)'})={_LONG_HEX.pattern})"
        flags = re.IGNORECASE | re.ASCII
        object.__setattr__(self, "_dropped", re.compile(one, flags))
        object.__setattr__(self, "_found", re.compile(rf"[?&]{one}(?:&|\Z)", flags))

    def clean(self, url: str) -> str:
        """A URL as WHATWG serialises it, without what the rules drop."""
        head, mark, query = url.partition("?")
        if mark and (self.sort_parameters or not query or self._found.search(url)):
            pieces = [piece for piece in query.split("&") if not self._dropped.fullmatch(piece)]
            if self.sort_parameters:
                pieces.sort(key=lambda piece: piece.partition("=")[0])
            query = "&".join(pieces)
            url = f"{head}?{query}" if query else head
        if self.drop_path_sessions and (";" in head or "/(" in head):
            path = _PATH_TICKET.sub("", _PATH_SESSION.sub("", head))
            if path != head:  # "..;jsessionid=1" has become a dot segment
                url = ada_url.normalize_url(path + url[len(head) :])
        return url


def _as_pattern(name: str) -> str:
    return re.escape(name).replace(r"\*", "[^=&]*").replace(r"\?", "[^=&]")


DEFAULT_RULES = UrlRules()


def canonical(href: str, base: str | None = None, rules: UrlRules = DEFAULT_RULES) -> str | None:
    """The absolute http(s) URL that `href` on the page `base` means: the one name of its page.

    Without fragment, user name, password, empty query and what `rules` drop. None for another
    scheme, for what the WHATWG standard refuses and for more than 4096 characters. Idempotent.
    Unlike the standard, "example.org." is "example.org" (the dot says only that no domain is to be
    searched for it), and a name that ends in more dots, which no resolver knows, is None.
    """
    href, fragment, _ = href.partition("#")
    if fragment and href and href[-1] <= " ":
        href += "#"  # blanks count here; at the end of the whole they would not
    if len(href) > MAX_URL_CHARS:
        return None
    try:
        url = ada_url.join_url(base, href) if base is not None else ada_url.normalize_url(href)
    except ValueError:
        text = _scalar(href)
        return None if text is None else canonical(text, base, rules)
    if not url.startswith(("https://", "http://")):
        return None
    if "#" in url:
        url = url.partition("#")[0]
    if "@" in url:
        url = _without_user(url)
    if "./" in url or ".:" in url:
        dotless = _without_dot(url)
        if dotless is None:
            return None
        url = dotless
    if "?" in url or ";" in url or "/(" in url:
        url = rules.clean(url)
    return url if len(url) <= MAX_URL_CHARS else None


def _scalar(text: str) -> str | None:
    """Lone surrogates become U+FFFD, as the standard's USVString has it; None if there are none."""
    if text.isascii():
        return None
    fixed = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return fixed if fixed != text else None


def _without_user(url: str) -> str:
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}/{path}"


def _without_dot(url: str) -> str | None:
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    name, colon, port = authority.partition(":")  # an IPv6 address ends in a bracket
    if not name.endswith("."):
        return url
    name = name[:-1]
    if not name or name.endswith("."):
        return None
    return f"{scheme}://{name}{colon}{port}/{path}"


def trap_of(url: str, year: int) -> str | None:
    """Why a canonical URL looks like one of endlessly many, or None. `year` is the current one.

    More than 2,048 characters; more than 20 path segments; one segment (not a number) more than
    3 times; more than 20 query parameters; a calendar's page before 1970 or later than the next
    year, or any whole date more than 10 years ahead (but before 3000: that is no date). So a
    calendar by the day costs at most 730 pages ahead. Dates in the past are what archives have.
    """
    if len(url) > MAX_TRAP_FREE_CHARS:
        return "trap: long"
    path, _, query = url.partition("?")
    num_slashes = path.count("/") - 2
    if num_slashes > MAX_SAME_SEGMENT:
        segments = path.split("/")[3:]
        if num_slashes > MAX_SEGMENTS:
            return "trap: too many segments"
        if len(segments) - len(set(segments)) >= MAX_SAME_SEGMENT and any(
            segments.count(segment) > MAX_SAME_SEGMENT and not segment.isdigit()
            for segment in set(segments)
        ):
            return "trap: repeated segments"
    if query.count("&") >= MAX_PARAMETERS:
        return "trap: too many parameters"
    return "trap: calendar" if _is_far_date(url, year) else None


def _is_far_date(url: str, year: int) -> bool:
    if not _MAYBE_YEAR.search(url):
        return False
    if any(int(found[1]) > year + 10 for found in _DAY.finditer(url)):
        return True
    calendar = _CALENDAR.search(url) or _EVENTS.search(url)
    if not calendar:
        return False
    # What comes before the word is no date of it: 1850/12/agenda.html.
    start = calendar.start()
    years = [int(found[1]) for pattern in _YEARS for found in pattern.finditer(url, start)]
    first = 1970 if calendar[0].isalpha() else 0  # "?date=1931-03-02" is an archive's
    return any(found < first or found > year + 1 for found in years)


@dataclasses.dataclass(frozen=True)
class Scope:
    """Which canonical URLs a crawl may take. An empty list of hosts and domains, of ports or of
    `include` patterns allows all.

    `allowed_hosts` are hosts as in a URL ("example.org", "example.org:8080": without a port the
    scheme's own); domains stand for themselves and all below them; a blocked one wins. `include`
    and `exclude` are regular expressions that are searched in path and query. Raises UserError
    for an entry that can never match.
    """

    allowed_hosts: Sequence[str] = ()
    allowed_domains: Sequence[str] = ()
    blocked_domains: Sequence[str] = ()
    schemes: Sequence[str] = ("http", "https")
    ports: Sequence[int] = ()
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    max_depth: int = 20
    _hosts: frozenset[str] = dataclasses.field(init=False, repr=False, compare=False)
    _domains: frozenset[str] = dataclasses.field(init=False, repr=False, compare=False)
    _blocked: frozenset[str] = dataclasses.field(init=False, repr=False, compare=False)
    _include: tuple[re.Pattern[str], ...] = dataclasses.field(init=False, repr=False, compare=False)
    _exclude: tuple[re.Pattern[str], ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for scheme in self.schemes:
            if scheme not in ("http", "https"):
                raise UserError(f"scheme {scheme!r}: only 'http' and 'https' can be crawled")
        for port in self.ports:
            if not 0 < port < 1 << 16:
                raise UserError(f"port {port}: give one from 1 to 65535")
        fields = {
            "_hosts": frozenset(_as_host(host) for host in self.allowed_hosts),
            "_domains": frozenset(map(_as_domain, self.allowed_domains)),
            "_blocked": frozenset(map(_as_domain, self.blocked_domains)),
            "_include": _compiled(self.include),
            "_exclude": _compiled(self.exclude),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def refusal(self, url: str, depth: int) -> str | None:
        """Why a canonical URL that is `depth` links from a seed is out of scope, or None."""
        if depth > self.max_depth:
            return "scope: depth"
        scheme, _, rest = url.partition("://")
        host, _, path = rest.partition("/")
        if scheme not in self.schemes:
            return "scope: scheme"
        name, has_port, port = host.rpartition(":")
        if not has_port or host.endswith("]"):
            name, port = host, ""
        if self.ports and int(port or (443 if scheme == "https" else 80)) not in self.ports:
            return "scope: port"
        if self._blocked and _is_below(name, self._blocked):
            return "scope: blocked domain"
        is_any = not self._hosts and not self._domains
        if not is_any and host not in self._hosts and not _is_below(name, self._domains):
            return "scope: host"
        return self._path_refusal(f"/{path}") if self._include or self._exclude else None

    def _path_refusal(self, path: str) -> str | None:
        if any(pattern.search(path) for pattern in self._exclude):
            return "scope: path excluded"
        if self._include and not any(pattern.search(path) for pattern in self._include):
            return "scope: path not included"
        return None


def _is_below(host: str, domains: frozenset[str]) -> bool:
    host = host.rstrip(".")
    while host not in domains:
        host = host.partition(".")[2]
        if not host:
            return False
    return True


def _as_host(entry: str) -> str:
    url = canonical(f"http://{entry}/")
    if url is None or url.count("/") != 3 or set(entry) & set("@?#*"):
        raise UserError(f"host {entry!r}: give a name like 'example.org' or 'example.org:8080'")
    return url[len("http://") : -1]


def _as_domain(entry: str) -> str:
    host = _as_host(entry)
    if ":" in host and not host.endswith("]"):
        raise UserError(f"domain {entry!r}: leave out its port; `ports` is for that")
    return host.rstrip(".")


def _compiled(patterns: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    compiled: list[re.Pattern[str]] = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(f"path pattern {pattern!r}: {error}; mend the expression") from None
    return tuple(compiled)
