"""Sitemaps, feeds and lists of URLs: what they hold, and hostile ones."""

import gzip
import subprocess
import sys

from pipeline.sitemaps import (
    MAX_SITEMAP_URLS,
    Sitemap,
    SitemapEntry,
    read_sitemap,
    sitemap_links,
)


def test_sitemaps() -> None:
    urls = (
        b'<?xml version="1.0"?><urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
        b"<url><loc> http://h/a?x=1&amp;y=2 </loc><lastmod>2026</lastmod></url>"
        b"<url><loc>/b</loc></url><url><loc>/b</loc></url></urlset>"
    )
    wanted = (["http://h/a?x=1&y=2", "http://h/b"], [])
    assert sitemap_links(urls, "http://h/map.xml") == wanted
    assert sitemap_links(gzip.compress(urls), "http://h/map.xml.gz") == wanted
    assert sitemap_links(b"\xef\xbb\xbf" + urls, "http://h/map.xml") == wanted
    index = b"<sitemapindex><sitemap><loc>http://h/1.xml</loc></sitemap></sitemapindex>"
    assert sitemap_links(index, "http://h/") == ([], ["http://h/1.xml"])
    for nothing in (b"", b"\x1f\x8bjunk", b"<html><p>404</p>", b"plain", urls[:150]):
        assert sitemap_links(nothing, "http://h/")[1] == []
    lol = b'<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(8)
    )
    assert (
        sitemap_links(lol + b"]><urlset><url><loc>&i;</loc></url></urlset>", "http://h/")[1] == []
    )


def test_what_a_sitemap_says_of_its_pages() -> None:
    urls = b"""<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"
        xmlns:xhtml="http://www.w3.org/1999/xhtml">
      <url><loc>/a</loc><lastmod>2026-01-02</lastmod><priority>0.8</priority>
        <xhtml:link rel="alternate" hreflang="de" href="/de/a"/></url>
      <url><loc>/b?utm_source=map</loc><priority>high</priority></url>
      <url><loc>/c</loc><priority>7</priority></url><url><priority>1</priority></url>
      <url><loc>javascript:x</loc></url></urlset>"""
    assert read_sitemap(urls, "http://h/") == Sitemap(
        [
            SitemapEntry("http://h/a", "2026-01-02", 0.8),
            SitemapEntry("http://h/de/a"),
            SitemapEntry("http://h/b"),
            SitemapEntry("http://h/c"),
        ],
        [],
    )
    torn = urls[: urls.index(b"<url><loc>/c")]
    assert [page.url[-2:] for page in read_sitemap(torn, "http://h/").pages] == ["/a", "/a", "/b"]


def test_feeds_and_lists() -> None:
    rss = b"""<rss version="2.0"><channel><link>http://h/</link>
      <item><link>/1</link><guid>/n</guid><pubDate>Fri, 2 Jan 2026 00:00:00 GMT</pubDate></item>
      <item><guid isPermaLink="true">/2</guid></item><item><guid isPermaLink="false">n</guid></item>
      <item><link><![CDATA[http://h/3?a=1&b=2]]></link></item></channel></rss>"""
    assert read_sitemap(rss, "http://h/feed").pages == [
        SitemapEntry("http://h/1", "Fri, 2 Jan 2026 00:00:00 GMT"),
        SitemapEntry("http://h/2"),
        SitemapEntry("http://h/3?a=1&b=2"),
    ]
    atom = b"""<feed xmlns="http://www.w3.org/2005/Atom"><link href="/"/>
      <entry><link href="/1"/><updated>2026-01-02T00:00:00Z</updated></entry>
      <entry><link rel="self" href="/n"/><link rel="alternate" href="/2"/></entry></feed>"""
    assert read_sitemap(atom, "http://h/feed").pages == [
        SitemapEntry("http://h/1", "2026-01-02T00:00:00Z"),
        SitemapEntry("http://h/2"),
    ]
    rdf = b"""<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
      xmlns="http://purl.org/rss/1.0/"><item><link>http://h/1</link></item></r:RDF>"""
    assert sitemap_links(rdf, "http://h/") == (["http://h/1"], [])
    plain = (
        b"\xef\xbb\xbfhttp://h/1\r\n  HTTPS://h/2 \n# note\n/3\nftp://h/\nhttp://h/a b\nhttp://h/1"
    )
    assert sitemap_links(plain, "http://h/") == (["http://h/1", "https://h/2"], [])
    assert sitemap_links(gzip.compress(plain), "http://h/")[0][1] == "https://h/2"


def test_large_and_hostile_sitemaps_end() -> None:
    url = b"<url><loc>http://h/1</loc></url>"
    bomb = gzip.compress(b"<urlset>" + url + b"\n" * 60_000_000 + url.replace(b"1", b"2"), 1)
    assert sitemap_links(bomb, "http://h/") == (["http://h/1"], [])  # what is behind 50 MB is not
    many = b"<urlset>" + b"<url><loc>http://h/%d</loc></url>" * 120_000 % tuple(range(120_000))
    assert len(sitemap_links(many, "http://h/")[0]) == MAX_SITEMAP_URLS
    assert sitemap_links(b"<url>" * 200_000, "http://h/") == ([], [])
    assert sitemap_links(b"http://" * 300_000, "http://h/") == ([], [])
    assert sitemap_links(b"<urlset><url>" + b"<loc>http://h/1" * 50_000, "http://h/")[1] == []


def test_a_sitemap_of_nothing_costs_no_memory() -> None:
    """A tree of its elements would be thirty times as large as the map."""
    code = (
        "from pathlib import Path; from pipeline.sitemaps import sitemap_links\n"
        "def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "bomb = b'<urlset><url><loc>http://h/1</loc></url><x>' + b'<a/>' * 2_000_000 + b'</x>'\n"
        "before = peak()\n"
        "assert sitemap_links(bomb, 'http://h/')[0] == ['http://h/1']\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50_000  # kB
