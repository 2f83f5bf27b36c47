"""Scrapy's side of benchmarks/crawl.py, tuned for speed; it runs in an environment of its own.

    python scrapy_spider.py SEED NUM_CONNECTIONS PER_HOST

Follows each <a href> and <area href> to the seed's port, keeps nothing, and prints a line of JSON.
"""

import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import scrapy
from scrapy.crawler import CrawlerProcess
from scrapy.http import Response

SETTINGS = {
    "LOG_LEVEL": "ERROR",
    "TELNETCONSOLE_ENABLED": False,
    "COOKIES_ENABLED": False,
    "REFERER_ENABLED": False,
    "HTTPPROXY_ENABLED": False,
    "AUTOTHROTTLE_ENABLED": False,
    "DOWNLOAD_DELAY": 0,
    "ROBOTSTXT_OBEY": True,
    "USER_AGENT": "FlywheelBot/0.1",
    "TWISTED_REACTOR": "twisted.internet.asyncioreactor.AsyncioSelectorReactor",
    # What this site does not need. Retries, depth, redirects and the filter of doubles stay.
    "DOWNLOADER_MIDDLEWARES": {
        "scrapy.downloadermiddlewares.httpauth.HttpAuthMiddleware": None,
        "scrapy.downloadermiddlewares.offsite.OffsiteMiddleware": None,  # see `parse`
    },
    "EXTENSIONS": {
        "scrapy.extensions.logstats.LogStats": None,
        "scrapy.extensions.memusage.MemoryUsage": None,
    },
}


class LinkSpider(scrapy.Spider):
    name = "links"

    def __init__(self, seed: str) -> None:
        super().__init__()
        self.seed, self.port = seed, f":{urlsplit(seed).port}/"

    async def start(self) -> AsyncIterator[scrapy.Request]:
        yield scrapy.Request(self.seed)  # not as `start_urls`, which is asked twice if linked

    def parse(self, response: Response) -> Iterator[scrapy.Request]:
        """Doubles in one page and other sites are left out here: cheaper than in Scrapy's own
        filters, which then see the rest."""
        for href in dict.fromkeys(response.xpath("//a/@href | //area/@href").getall()):
            url = response.urljoin(href)
            if self.port in url and url.startswith("http://127.0.0."):
                yield scrapy.Request(url)


def main() -> None:
    seed, connections, per_host = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    limits = {"CONCURRENT_REQUESTS": connections, "CONCURRENT_REQUESTS_PER_DOMAIN": per_host}
    crawl = CrawlerProcess(SETTINGS | limits)
    crawler = crawl.create_crawler(LinkSpider)
    crawl.crawl(crawler, seed=seed)
    started, before = time.perf_counter(), os.times()
    crawl.start()
    seconds, after = time.perf_counter() - started, os.times()
    cpu_s = after.user + after.system - before.user - before.system
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_s}))


if __name__ == "__main__":
    main()
