"""The URLs that a page or a sitemap points to, in its order, canonical and without doubles."""

import zlib
from collections.abc import Iterable
from typing import Any

import ada_url
from lxml import (
    etree,  # pyright: ignore[reportAttributeAccessIssue]  # a C extension without stubs
    html,
)

from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_url

MAX_URL_CHARS = 4096
MAX_SITEMAP_BYTES = 50 << 20  # sitemaps.org's own limit, uncompressed


def page_links(payload: bytes, base_url: str, charset: str | None) -> list[str]:
    """http(s) targets of <a href> and <area href>.

    Links marked rel=nofollow count as absent, and so do all of a page whose meta robots says it.
    """
    root = _parse(payload, charset)
    if root is None or _says_nofollow(root):
        return []
    for base in root.iter("base"):
        if href := base.get("href"):
            base_url = resolve(href, base_url) or base_url
            break
    hrefs = (
        element.get("href", "")
        for element in root.iter("a", "area")
        if element.get("href") and "nofollow" not in (element.get("rel") or "").lower().split()
    )
    return _distinct(resolve(href, base_url) for href in dict.fromkeys(hrefs))


def sitemap_links(payload: bytes, base_url: str) -> tuple[list[str], list[str]]:
    """(pages, further sitemaps) of an XML sitemap or sitemap index, gzipped or not.

    What is none gives nothing. https://www.sitemaps.org/protocol.html
    """
    if payload.startswith(b"\x1f\x8b"):
        try:
            payload = zlib.decompressobj(31).decompress(payload, MAX_SITEMAP_BYTES)
        except zlib.error:
            return [], []
    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True)
    try:
        root = etree.fromstring(payload[:MAX_SITEMAP_BYTES], parser)
    except (etree.XMLSyntaxError, ValueError):
        return [], []
    if root is None:
        return [], []
    locations = [(element.text or "").strip() for element in root.iterfind("./{*}*/{*}loc")]
    links = _distinct(resolve(location, base_url) for location in locations)
    is_index = etree.QName(root).localname == "sitemapindex"
    return ([], links) if is_index else (links, [])


def resolve(href: str, base_url: str) -> str | None:
    """The canonical absolute URL, or None if it is no http(s) URL or absurdly long."""
    if len(href) > MAX_URL_CHARS:
        return None
    try:
        url = canonical_url(str(ada_url.URL(href, base=base_url).href))
    except (ValueError, UserError):
        return None
    if not url.startswith(("http://", "https://")) or len(url) > MAX_URL_CHARS:
        return None
    return url


def _parse(payload: bytes, charset: str | None) -> Any:
    """The root element, or None for what holds no markup."""
    try:
        parser = html.HTMLParser(encoding=charset)
    except LookupError:  # a charset that libxml2 does not know: let it look into the page
        parser = html.HTMLParser()
    try:
        return html.document_fromstring(payload, parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError):
        return None


def _says_nofollow(root: Any) -> bool:
    return any(
        (meta.get("name") or "").lower() == "robots"
        and {"nofollow", "none"}
        & set((meta.get("content") or "").lower().replace(",", " ").split())
        for meta in root.iter("meta")
    )


def _distinct(urls: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(url for url in urls if url is not None))
