"""What sitemaps and feeds point to. https://www.sitemaps.org/protocol.html"""

import dataclasses
import io
import re
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]  # a C extension, no stubs

from pipeline.urls import DEFAULT_RULES, UrlRules, canonical

MAX_SITEMAP_BYTES = 50 << 20  # sitemaps.org's own limit, uncompressed
MAX_SITEMAP_ELEMENTS, _MAX_ENTRY_ELEMENTS = 3_000_000, 10_000
MAX_SITEMAP_URLS = 100_000  # twice sitemaps.org's limit


@dataclasses.dataclass(frozen=True)
class SitemapEntry:
    """A page of a sitemap or feed; `lastmod` and `priority` (0 to 1) as the site claims them."""

    url: str
    lastmod: str | None = None
    priority: float | None = None


@dataclasses.dataclass(frozen=True)
class Sitemap:
    pages: list[SitemapEntry]
    sitemaps: list[str]


def sitemap_links(
    payload: bytes, base_url: str, rules: UrlRules = DEFAULT_RULES
) -> tuple[list[str], list[str]]:
    """(pages, further sitemaps) of `read_sitemap`."""
    found = read_sitemap(payload, base_url, rules)
    return [page.url for page in found.pages], found.sitemaps


def read_sitemap(payload: bytes, base_url: str, rules: UrlRules = DEFAULT_RULES) -> Sitemap:
    """An XML sitemap (with its hreflang alternates), a sitemap index, an RSS or Atom feed or a
    plain list of URLs; gzipped or not. What is none gives nothing, a torn one what it holds.

    At most 100,000 URLs of at most 50 MB.
    """
    if payload.startswith(b"\x1f\x8b"):
        try:
            payload = zlib.decompressobj(31).decompress(payload, MAX_SITEMAP_BYTES)
        except zlib.error:
            return Sitemap([], [])
    payload = payload[:MAX_SITEMAP_BYTES]
    is_xml = payload[:64].lstrip(b"\xef\xbb\xbf\xff\xfe\0\t\n\r ").startswith(b"<")
    pages: dict[str, SitemapEntry] = {}
    sitemaps: dict[str, None] = {}
    for kind, href, lastmod, priority in _entries(payload) if is_xml else _lines(payload):
        url = canonical(href, base_url, rules)
        if url is None:
            continue
        if kind == "sitemap":
            sitemaps[url] = None
        else:
            pages.setdefault(url, SitemapEntry(url, lastmod, priority))
        if len(pages) + len(sitemaps) >= MAX_SITEMAP_URLS:
            break
    return Sitemap(list(pages.values()), list(sitemaps))


_Found = tuple[str, str, str | None, float | None]  # kind, href, lastmod, priority


def _lines(payload: bytes) -> Iterator[_Found]:
    for found in re.finditer(rb"(?im)^[\xef\xbb\xbf \t]*(https?://[^\s<>]+)[ \t]*\r?$", payload):
        yield "url", found[1].decode(errors="replace"), None, None


def _entries(payload: bytes) -> Iterator[_Found]:
    """One after the other, each forgotten at once: a map of 50 MB would be a tree of 500."""
    source = io.BytesIO(payload)
    events = etree.iterparse(source, resolve_entities=False, no_network=True, recover=True)
    num_in_entry = 0
    try:
        for _, element in islice(events, MAX_SITEMAP_ELEMENTS):
            num_in_entry += 1
            kind = str(element.tag).rpartition("}")[2]
            if kind not in ("url", "sitemap", "item", "entry"):
                if num_in_entry > _MAX_ENTRY_ELEMENTS:
                    return
                continue
            num_in_entry = 0
            yield from _entry(kind, element)
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
    except etree.XMLSyntaxError:
        return


def _entry(kind: str, element: Any) -> Iterator[_Found]:
    if kind in ("url", "sitemap"):
        lastmod = _text_of(element, "lastmod")
        if href := _text_of(element, "loc"):
            yield kind, href, lastmod, _priority(_text_of(element, "priority"))
    elif kind == "item":  # RSS
        guid = element.find("{*}guid")
        lasting = guid is not None and guid.get("isPermaLink", "true").lower() == "true"
        href = _text_of(element, "link") or (_text_of(element, "guid") if lasting else None)
        if href:
            yield "url", href, _text_of(element, "pubDate"), None
    for link in element.iterfind("{*}link"):  # Atom's own, and the alternates of a sitemap
        if kind in ("entry", "url") and link.get("rel", "alternate") == "alternate":
            yield "url", link.get("href", ""), _text_of(element, "updated"), None


def _text_of(element: Any, name: str) -> str | None:
    return (element.findtext(f"{{*}}{name}") or "").strip() or None


def _priority(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None
