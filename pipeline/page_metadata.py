"""What a page declares about itself: its date, its language and its licence.

Read from the tags of the tree that page_tree.py made; no second parse. All of it is written by
strangers: each value is checked against its standard, bounded, and left out if it does not fit.
"""

import datetime as dt
import email.utils
import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numba
import numpy as np

from pipeline.page_tags import CLASS, ITEMPROP, TAG_IDS, TYPE
from pipeline.page_tree import PageTree

MAX_LICENSE = 200  # characters of a text
MAX_URL = 500  # characters
MAX_DATES = 8  # of a page
EARLIEST = dt.date(1990, 1, 1)  # there was no page before
_MAX_TAG = 4000  # bytes of a tag that are read
_MAX_TAGS = 200  # of a kind
_MAX_LINKED_DATA = 200_000  # bytes of one script
_META, _TIME, _SCRIPT = (TAG_IDS[name] for name in ("meta", "time", "script"))
_IS_WANTED, _IS_LINK = np.zeros((2, len(TAG_IDS)), np.uint8)
_IS_WANTED[[_META, _TIME, _SCRIPT]] = 1
_IS_LINK[[TAG_IDS[name] for name in ("a", "link", "area")]] = 1
_NEEDLE = np.frombuffer(b"license", np.uint8)  # creativecommons.org/licenses/ has it as well
_QUOTE, _MORE = 0x22, 0x3E
_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)
_ATTRIBUTE = re.compile(rb'\s([^\s=">]+)(?:="([^"]*)")?|(>)')
# RFC 5646 without its grandfathered and private tags; a language alone has two or three letters.
_LANGUAGE = re.compile(
    r"([a-z]{2,3})(?:-[a-z]{3}){0,3}(?:-[a-z]{4})?(?:-(?:[a-z]{2}|\d{3}))?"
    r"(?:-(?:[a-z0-9]{5,8}|\d[a-z0-9]{3})){0,3}(?:-[0-9a-wyz](?:-[a-z0-9]{2,8}){1,4}){0,2}"
)
_MAX_LANGUAGE = 35  # RFC 5646 4.4.1
_NOBODYS = {"und", "mul", "zxx", "mis"}
# What stands for "published" in the heads of pages, the surest first.
_PUBLISHED = (
    "article:published_time", "og:article:published_time", "og:published_time", "datepublished",
    "article.published", "citation_publication_date", "parsely-pub-date", "sailthru.date",
    "publish-date", "publish_date", "publishdate", "pubdate", "publication_date", "dc.date.issued",
    "dcterms.issued", "dc.date.created", "dcterms.created", "dcterms.date", "dc.date", "dc:date",
    "citation_date", "date",
)  # fmt: skip
_RIGHTS = ("dcterms.license", "dc.rights.license", "dcterms.rights", "dc.rights", "dc:rights")
_OF_ENTRY = re.compile(r"\b(?:published|pubdate|entry-date|post-date|date-published)\b")
_INNER = ("@graph", "mainEntity", "mainEntityOfPage")  # where linked data keeps the page's item
_NUMBERS = re.compile(r"(\d{4})([-/.]?)(\d{1,2})\2(\d{1,2})(?!\d)")
_IN_WORDS = re.compile(r"([A-Za-z]{3})[a-z]{0,6}\.? (\d{1,2})(?:st|nd|rd|th)?,? (\d{4})\b")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_COMMONS = re.compile(r"https?://creativecommons\.org/licenses/[a-z0-9+./-]{2,60}")


@dataclass(frozen=True)
class PageMetadata:
    """As declared, checked and bounded. `dates`: ISO 8601, the surest first; which of them lie in
    the future only the time of fetching can say. `language`: BCP 47. `license_link` is a
    reference, to be joined with the page's URL; `license` is said in words, or a URL."""

    dates: tuple[str, ...] = ()
    language: str = ""
    license_link: str = ""
    license: str = ""


NOTHING = PageMetadata()


def metadata_of(tree: PageTree) -> PageMetadata:
    """Never raises; a value that does not fit is as good as none."""
    if not len(tree.tag):
        return NOTHING
    page = _Tags(tree)
    named, spoken = page.metas()
    data = list(page.linked_data())
    dates = _dates_of(named, data, page)
    language = next(filter(None, map(language_tag, _languages(page, named, spoken))), "")
    link, words = _license_of(named, data, page)
    return PageMetadata(tuple(dates), language, link, words)


class _Tags:
    """The tags of a page that may say something, with all their attributes."""

    def __init__(self, tree: PageTree) -> None:
        self.tree = tree
        self._source = memoryview(tree.source)
        found = np.flatnonzero(_IS_WANTED[tree.tag])
        kinds = tree.tag[found]
        self._of = {
            kind: found[kinds == kind][:_MAX_TAGS].tolist() for kind in (_META, _TIME, _SCRIPT)
        }

    def attributes(self, element: int) -> dict[str, str]:
        """Lower-case names to values without references; the first _MAX_TAG bytes of the tag."""
        start = int(self.tree.opens[element])
        found: dict[str, str] = {}
        for match in _ATTRIBUTE.finditer(self._source[start : start + _MAX_TAG]):
            name, value, end = match.groups()
            if end is not None:
                break
            text = (value or b"").decode("utf-8", "replace")
            found.setdefault(
                name.decode("utf-8", "replace"), html.unescape(text) if "&" in text else text
            )
        return found

    def metas(self) -> tuple[dict[str, str], str]:
        """Contents by lower-case name, property or itemprop, the first of each; and what
        http-equiv says of the language."""
        named: dict[str, str] = {}
        spoken = ""
        for element in self._of[_META]:
            found = self.attributes(element)
            content = found.get("content", "")
            if found.get("http-equiv", "").lower() == "content-language":
                spoken = spoken or content
            for key in ("property", "name", "itemprop"):
                if name := found.get(key, ""):
                    named.setdefault(name.lower(), content)
        return named, spoken

    def times(self) -> Iterator[str]:
        """What <time> elements say that call themselves the date of publication."""
        tree = self.tree
        for element in self._of[_TIME]:
            is_entry = tree.value(element, ITEMPROP) == "datePublished" or _OF_ENTRY.search(
                tree.value(element, CLASS)[:_MAX_TAG]
            )
            found = self.attributes(element)
            if is_entry or "pubdate" in found:
                yield found.get("datetime", "")

    def only_time(self) -> str:
        """What all <time> elements of the page agree on."""
        values = {self.attributes(element).get("datetime", "")[:10] for element in self._of[_TIME]}
        return values.pop() if len(values) == 1 else ""

    def linked_data(self) -> Iterator[Mapping[str, Any]]:
        """The items of JSON-LD that stand for the page: on top, in a graph, or the main entity."""
        tree = self.tree
        scripts = [
            e for e in self._of[_SCRIPT] if tree.value(e, TYPE).lower() == "application/ld+json"
        ]
        for element in scripts:
            index = int(np.searchsorted(tree.text_before, element, side="right"))
            if index >= len(tree.text_parent) or tree.text_parent[index] != element:
                continue
            start, end = int(tree.text_start[index]), int(tree.text_end[index])
            text = self._source[start : min(end, start + _MAX_LINKED_DATA)].tobytes()
            if b'"datePublished"' not in text and b'"license"' not in text:
                continue
            try:
                data = json.loads(text.decode("utf-8", "replace"), strict=False)
            except (ValueError, RecursionError):
                continue
            yield from _items(data, 4)

    def licensed(self) -> list[dict[str, str]]:
        """The attributes of the links in whose tags a licence is spoken of."""
        tree = self.tree
        found = _links_with(tree.source, tree.tag, tree.opens, _IS_LINK, _NEEDLE, _MAX_TAGS)
        return [self.attributes(element) for element in found.tolist()]


@_compiled
def _links_with(source: Any, tag: Any, opens: Any, is_link: Any, needle: Any, most: Any) -> Any:
    """The first `most` links whose tags (_MAX_TAG bytes at most) hold the needle."""
    found = np.zeros(most, np.int32)
    num, length = 0, needle.shape[0]
    for e in range(tag.shape[0]):
        if not is_link[tag[e]]:
            continue
        at = opens[e]
        stop = min(source.shape[0] - length, at + _MAX_TAG)
        quoted = False
        while at < stop:
            byte = source[at]
            if byte == _QUOTE:
                quoted = not quoted
            elif byte == _MORE and not quoted:
                break
            elif byte == needle[0] and source[at + 1] == needle[1]:
                k = 2
                while k < length and source[at + k] == needle[k]:
                    k += 1
                if k == length:
                    found[num] = e
                    num += 1
                    break
            at += 1
        if num == most:
            break
    return found[:num]


def _items(data: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    if isinstance(data, list) and depth:
        for one in cast("list[Any]", data)[:_MAX_TAGS]:
            yield from _items(one, depth - 1)
    elif isinstance(data, dict) and depth:
        item = cast("dict[str, Any]", data)
        yield item
        for key in _INNER:
            yield from _items(item.get(key), depth - 1)


# ---------------------------------------------------------------------------------------- dates


def _dates_of(
    named: Mapping[str, str], data: list[Mapping[str, Any]], page: _Tags
) -> dict[str, None]:
    """The dates that are declared, in order of trust."""
    first, *rest = (named.get(name, "") for name in _PUBLISHED)
    linked = (item.get("datePublished", "") for item in data)
    found: dict[str, None] = {}
    for text in (first, *linked, *rest, *page.times(), page.only_time()):
        date = iso_date(text) if isinstance(text, str) else ""
        if date and len(found) < MAX_DATES:
            found[date] = None
    return found


def iso_date(text: str) -> str:
    """YYYY-MM-DD of an ISO 8601 date or time, of an e-mail's date (RFC 5322) or of "May 6, 2024";
    empty for what is none, is ambiguous (05/06/2024), or lies before 1990."""
    text = text[:80].strip()
    if not text:
        return ""
    if match := _NUMBERS.match(text):
        numbers = int(match[1]), int(match[3]), int(match[4])
    elif match := _IN_WORDS.match(text):
        if match[1].lower() not in _MONTHS:
            return ""
        numbers = int(match[3]), _MONTHS.index(match[1].lower()) + 1, int(match[2])
    else:
        parsed = email.utils.parsedate(text) if text[:3].isalpha() or text[0].isdigit() else None
        if parsed is None:
            return ""
        numbers = parsed[:3]
    try:
        date = dt.date(*numbers)
    except (ValueError, OverflowError):
        return ""
    return date.isoformat() if date >= EARLIEST else ""


# ------------------------------------------------------------------------------------- language


def _languages(page: _Tags, named: Mapping[str, str], spoken: str) -> Iterator[str]:
    root = page.attributes(0)
    yield root.get("lang", "")
    yield root.get("xml:lang", "")
    yield spoken  # a list of audiences is no language, as HTML says, and fits no tag
    yield named.get("content-language", "") or named.get("language", "")
    yield named.get("og:locale", "")


def language_tag(text: str) -> str:
    """The tag in BCP 47's own spelling (zh-Hant-TW), or empty if it is none, or nobody's."""
    tag = text[: _MAX_LANGUAGE + 2].strip().replace("_", "-").lower()
    match = _LANGUAGE.fullmatch(tag) if len(tag) <= _MAX_LANGUAGE else None
    if match is None or match[1] in _NOBODYS:
        return ""
    first, *rest = tag.split("-")
    after = False  # behind a singleton all is lower case (RFC 5646 2.1.1)
    parts = [first]
    for part in rest:
        after = after or len(part) == 1
        spelled = part.upper() if len(part) == 2 else part.title() if len(part) == 4 else part
        parts.append(part if after or part[0].isdigit() else spelled)
    return "-".join(parts)


# -------------------------------------------------------------------------------------- licence


def _license_of(
    named: Mapping[str, str], data: list[Mapping[str, Any]], page: _Tags
) -> tuple[str, str]:
    """(reference, words): a link that says it is the licence, the head, linked data, or a link to
    Creative Commons."""
    links = page.licensed()
    declared = (
        _reference(found.get("href", ""))
        for found in links
        if "license" in found.get("rel", "").lower().split()
    )
    link = next(filter(None, declared), "")
    said = (_words(named.get(name, "")) for name in _RIGHTS)
    linked = (_words(_of_item(item.get("license"))) for item in data)
    commons = (_COMMONS.match(_words(found.get("href", ""))) for found in links)
    words = next(filter(None, (*said, *linked)), "")
    return link, words or next((match[0] for match in commons if match), "")


def _of_item(value: Any) -> str:
    if isinstance(value, list) and value:
        value = cast("list[Any]", value)[0]
    if isinstance(value, dict):
        item = cast("dict[str, Any]", value)
        value = item.get("url") or item.get("@id") or item.get("name")
    return value if isinstance(value, str) else ""


def _reference(text: str) -> str:
    """A link as it can be stored: no control characters, no white space, not too long."""
    link = "".join(filter(str.isprintable, text[: MAX_URL + 1].strip()))
    return link if len(link) <= MAX_URL and " " not in link and not link.startswith("#") else ""


def _words(text: str) -> str:
    """At most MAX_LICENSE printable characters, white space joined; a longer URL is none."""
    is_url = text.lstrip().startswith(("http://", "https://"))
    limit = MAX_URL if is_url else MAX_LICENSE
    joined = " ".join(text[: 4 * limit].split())
    plain = "".join(filter(str.isprintable, joined))
    return "" if is_url and (len(plain) > limit or " " in plain) else plain[:limit].strip()
