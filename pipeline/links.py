"""What a page points to, in its order, canonical and without doubles; and what it says to crawlers.

Markup is read by its tokens alone (https://html.spec.whatwg.org/#tokenization), not as a tree:
one pass in linear time whatever the page, where tree builders take minutes over hostile ones.
"""

import dataclasses
import html.entities
import re
from collections.abc import Iterable, Iterator

from pipeline.urls import DEFAULT_RULES, UrlRules, canonical
from pipeline.web_charsets import byte_order_mark, charset_in_page, codec_of

MAX_LINKS = 100_000  # of a page: more is no page for readers
MAX_LINK_CHARS = 10_000_000  # of them together: a long base would make much of little
_PRESCAN_BYTES = 1024

_S = rb"[\t\n\f\r ]"


def _any_case(name: bytes) -> bytes:
    return b"".join(b"[%c%c]" % (letter, letter - 32) for letter in name)


# Possessive throughout (`*+`), and the end of input closes everything: no byte is read twice.
_VALUE = rb"""(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z)|[^\t\n\f\r >"'][^\t\n\f\r >]*+)"""
_ATTRIBUTES = rb"(?:[^=>]*+=" + _S + rb"*+" + _VALUE + rb"?+)*+[^>]*+"
_NAME_ENDS = rb"(?=[\t\n\f\r />])"
_WANTED = (
    b"(?:" + b"|".join(map(_any_case, (b"a", b"area", b"link", b"meta", b"base", b"frame"))) + b")"
) + _NAME_ENDS


def _raw_text(name: bytes) -> bytes:
    """From the name of such an element to its end tag: text, whatever it looks like. An empty
    one (`<title/>`, in SVG and XHTML) ends at once."""
    name = _any_case(name) + _NAME_ENDS
    inside = rb"(?:(?<=/)>|(?:>|\Z)(?:[^<]++|<(?!/" + name + rb"))*+)"
    return name + _ATTRIBUTES + inside


_RAW_TEXT = b"|".join(
    _raw_text(name)
    for name in (b"script", b"style", b"textarea", b"title", b"xmp", b"iframe", b"noembed")
)
_COMMENT = rb"!--(?:-?>|(?:[^-]++|-(?!-!?>))*+(?:--!?>|\Z))"
_TAG = re.compile(
    rb"[^<]*+(?:<(?:" + _COMMENT + b"|" + _RAW_TEXT + b"|(?!" + _WANTED + rb")/?[a-zA-Z]"
    rb"" + _ATTRIBUTES + rb"(?:>|\Z)|/(?![a-zA-Z])[^>]*+|[!?][^>]*+|(?![a-zA-Z/!?]))[^<]*+)*+"
    rb"(?:<(" + _WANTED + rb")(" + _ATTRIBUTES + rb")(>|\Z)|\Z)"
)
_ATTRIBUTE = re.compile(
    rb"[\t\n\f\r /]*+([^\t\n\f\r />][^\t\n\f\r />=]*+)(?:" + _S + rb"*+=" + _S + rb"*+"
    rb"""(?:"([^"]*+)"?+|'([^']*+)'?+|([^\t\n\f\r >"'][^\t\n\f\r >]*+))?+)?+"""
)
_QUOTED = rb"""=(?:"[^"]*+"|'[^']*+')[\t\n\f\r /]*+"""  # the common form first
_HREF = re.compile(
    rb"[\t\n\f\r /]*+(?:(?!" + _any_case(b"href") + rb"(?:[\t\n\f\r />=]|\Z))"
    rb"[^\t\n\f\r />][^\t\n\f\r />=]*+(?:" + _QUOTED + rb"|[\t\n\f\r /]*+"
    rb"(?:=" + _S + rb"*+" + _VALUE + rb"?+[\t\n\f\r /]*+)?+))*+"
    rb"" + _any_case(b"href") + _S + rb"*+=" + _S + rb"*+"
    rb"""(?:"([^"]*+)|'([^']*+)|([^\t\n\f\r >"'][^\t\n\f\r >]*+))"""
)
# https://html.spec.whatwg.org/#shared-declarative-refresh-steps
_REFRESH = re.compile(
    rb"""\s*(?:\d+|(?=\.))[\d.]*(?:\s*[;,]|\s)\s*(?:url\s*=\s*)?(?:"([^"]*)|'([^']*)|(.*))""",
    re.IGNORECASE | re.DOTALL,
)
_RELATION = re.compile(rb"canonical|next|prev|hreflang")
_DIRECTIVE = re.compile(r"\s*unavailable_after\s*:.*|[^,]+", re.DOTALL)  # its date has commas
_REFERENCE = re.compile(
    r"&(?:#(?:[xX]([0-9a-fA-F]+)|([0-9]+));?|([0-9A-Za-z]+)(;|(?![=0-9A-Za-z])))"
)
_NOT_ASCII_LIKE = re.compile(r"utf-(?:16|32)|iso2022|hz")  # "<" may stand for something else


@dataclasses.dataclass(frozen=True)
class PageFacts:
    """`links`: where to go on from the page; none if it says nofollow. `canonical`: the URL that
    it names as its own. `robots_directives`: lower case, of meta robots and of our own name;
    "none" stands with the "noindex" and "nofollow" that it means."""

    links: list[str]
    canonical: str | None = None
    robots_directives: frozenset[str] = frozenset()
    tdm_reservation: str | None = None


def read_page(
    payload: bytes,
    base_url: str,
    charset: str | None,
    rules: UrlRules = DEFAULT_RULES,
    agent: str = "",
) -> PageFacts:
    """http(s) targets of <a href> and <area href>, of <link> with rel canonical, next or prev, and
    of hreflang alternates, <frame src> and <meta http-equiv=refresh>; and what the page says to all
    robots, or to `agent` by name.

    Links marked rel=nofollow count as absent; so do all links of a page that says nofollow, and
    those after the first 100,000 or ten million characters.
    """
    charset = charset_of(payload, charset)
    if _NOT_ASCII_LIKE.match(charset):
        payload, charset = payload.decode(charset, "replace").encode(), "utf-8"
    found = _Tags(charset, frozenset({"robots", agent.lower()} - {""}))
    for match in _TAG.finditer(payload):
        tag, attributes, end = match.groups()
        if not end:  # a tag that the end of the page tore says nothing
            continue
        if tag == b"a" or tag == b"A":
            found.anchor(attributes)
        else:
            found.take(tag.lower(), attributes)
    base = (found.base and canonical(found.base, base_url)) or base_url
    links: list[str] = []
    if "nofollow" not in found.directives:
        links = _distinct(canonical(href, base, rules) for href in found.urls())
    own = canonical(found.canonical, base, rules) if found.canonical else None
    return PageFacts(links, own, frozenset(found.directives), found.tdm_reservation)


class _Tags:
    """What the tags of one page have said so far; hrefs are not yet resolved."""

    def __init__(self, charset: str, names: frozenset[str]) -> None:
        self.charset, self.names = charset, names
        self.sought = re.compile(
            b"|".join(re.escape(name.encode()) for name in (*names, "tdm-reservation", "refresh"))
        )
        self.hrefs: dict[bytes, None] = {}  # raw: their doubles are not worth decoding
        self.base = self.canonical = ""
        self.directives: set[str] = set()
        self.tdm_reservation: str | None = None

    def take(self, tag: bytes, attributes: bytes) -> None:
        """Thousands of tags a page come through here: look for words first, then at attributes."""
        if tag == b"area":
            self.anchor(attributes)
            return
        words = attributes.lower()
        if tag == b"link" and not _RELATION.search(words):
            return
        if tag == b"meta" and not self.sought.search(words):
            return
        values: dict[str, bytes] = {}
        for found in _ATTRIBUTE.finditer(attributes):
            value = found[2] or found[3] or found[4] or b""
            values.setdefault(found[1].decode("latin-1").lower(), value)
        if tag == b"link":
            self._link(values)
        elif tag == b"meta":
            self._meta(values)
        elif tag == b"frame":
            self._add(values.get("src", b""))
        elif not self.base:
            self.base = self._text(values.get("href", b""))

    def anchor(self, attributes: bytes) -> None:
        """<a> or <area>. All its fragments are one and the same link of a page to itself."""
        found = _HREF.match(attributes)
        if not found:
            return
        href = found[found.lastindex or 1]
        if href[:1] == b"#":
            href = b"#"
        if href in self.hrefs:
            return
        if not (b"nofollow" in attributes.lower() and self._is_nofollow(attributes)):
            self._add(href)

    def _add(self, href: bytes) -> None:
        if href and len(self.hrefs) < MAX_LINKS:
            self.hrefs[href] = None

    def urls(self) -> Iterator[str]:
        return map(self._url, self.hrefs)

    def _is_nofollow(self, attributes: bytes) -> bool:
        for found in _ATTRIBUTE.finditer(attributes):
            if found[1].lower() == b"rel":
                return b"nofollow" in (found[2] or found[3] or found[4] or b"").lower().split()
        return False

    def _link(self, values: dict[str, bytes]) -> None:
        relations = set(values.get("rel", b"").lower().split())
        href = values.get("href", b"")
        if not href or b"nofollow" in relations:
            return
        if b"canonical" in relations and not self.canonical:
            self.canonical = self._url(href)
        is_language = b"alternate" in relations and "hreflang" in values
        if is_language or relations & {b"canonical", b"next", b"prev"}:
            self._add(href)

    def _meta(self, values: dict[str, bytes]) -> None:
        name = self._text(values.get("name", b"")).strip().lower()
        content = self._text(values.get("content", b"")).lower()
        if name in self.names:
            for part in _DIRECTIVE.findall(content):
                self.directives.update([part.strip()] if ":" in part else part.split())
            if "none" in self.directives:
                self.directives |= {"noindex", "nofollow"}
        elif name == "tdm-reservation":
            self.tdm_reservation = self.tdm_reservation or content.strip()
        if values.get("http-equiv", b"").strip().lower() == b"refresh":
            found = _REFRESH.match(values.get("content", b""))
            self._add(found[found.lastindex or 1] if found else b"")

    def _text(self, raw: bytes) -> str:
        text = raw.decode(self.charset, "replace")
        return _REFERENCE.sub(_referenced, text) if "&" in text else text

    def _url(self, raw: bytes) -> str:
        """In a page of a legacy charset, its bytes are what a query's letters stand for."""
        text = self._text(raw)
        if text.isascii() or self.charset == "utf-8" or "?" not in text:
            return text
        path, _, query = text.partition("?")
        coded = query.encode(self.charset, "xmlcharrefreplace")
        kept = "".join(chr(byte) if byte < 0x80 else f"%{byte:02X}" for byte in coded)
        return f"{path}?{kept}"


def _referenced(found: re.Match[str]) -> str:
    """The characters of a reference in an attribute; one that names none stays as it is."""
    if name := found[3]:
        return html.entities.html5.get(name + found[4], found[0])
    digits = found[1] or found[2]
    number = int(digits, 16 if found[1] else 10) if len(digits) < 9 else 0
    if 0x80 <= number < 0xA0:  # windows-1252's, by a table of the standard's
        return html.unescape(f"&#{number};")
    is_character = 0 < number <= 0x10FFFF and not 0xD800 <= number < 0xE000
    return chr(number) if is_character else "\ufffd"


def charset_of(payload: bytes, header: str | None) -> str:
    """The codec that Python knows a page's charset by: of its byte order mark, the HTTP header,
    a <meta> in the first 1,024 bytes; else UTF-8. Latin-1 and ASCII mean windows-1252, as in
    browsers. https://encoding.spec.whatwg.org"""
    if mark := byte_order_mark(payload):
        return mark[1]
    known = codec_of(header) if header else None
    return known or charset_in_page(payload, _PRESCAN_BYTES) or "utf-8"


def _distinct(urls: Iterable[str | None]) -> list[str]:
    found: dict[str, None] = {}
    num_chars = 0
    for url in urls:
        if url is None or url in found:
            continue
        found[url] = None
        num_chars += len(url)
        if num_chars > MAX_LINK_CHARS:
            break
    return list(found)
