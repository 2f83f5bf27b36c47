"""What a response means to a crawl: where to go on, and whether it may be kept."""

import dataclasses

from pipeline.crawl_config import CrawlConfig
from pipeline.fetch import Page
from pipeline.frontier_state import Entry
from pipeline.links import PageFacts, read_page
from pipeline.opt_outs import OptOuts
from pipeline.politeness import page_policy, refusal
from pipeline.sitemaps import sitemap_links
from pipeline.urls import Scope, UrlRules, canonical

MAX_HOPS = 10  # redirects in a row; Fetch standard allows 20
REDIRECTS = (301, 302, 303, 307, 308)
HTML = ("text/html", "application/xhtml+xml")


@dataclasses.dataclass(frozen=True)
class Found:
    """What a response makes known. `outside`: the host that it redirects to, if beyond the scope;
    `refusal`: why it is not to be kept."""

    links: list[Entry] = dataclasses.field(default_factory=list[Entry])
    outside: str = ""
    refusal: str = ""


class ResponseReader:
    """Reads the responses of one crawl. `agent` is the name that robots.txt knows it by."""

    def __init__(self, config: CrawlConfig, scope: Scope, rules: UrlRules, agent: str) -> None:
        self.config, self.scope, self.rules, self.agent = config, scope, rules, agent

    def read(self, entry: Entry, page: Page, opt_outs: OptOuts | None = None) -> Found:
        """What a response makes known, and whether it may be kept. `opt_outs`: of its origin, if
        they count."""
        hops = entry.hops + 1
        if page.status in REDIRECTS:
            target = canonical(page.headers.get("location", ""), entry.url, self.rules)
            if target is None or hops > MAX_HOPS:
                return Found()
            return Found([dataclasses.replace(entry, url=target, hops=hops)], self._outside(target))
        if page.status != 200:
            return Found()
        is_html = page.content_type in HTML  # whatever a robots.txt calls it
        is_sitemap = entry.is_sitemap and not is_html
        facts = PageFacts([])
        if is_html:
            facts = read_page(page.payload, entry.url, page.charset, self.rules, self.agent)
        policy = page_policy(
            page.headers,
            facts.robots_directives,
            agent=self.agent,
            now=page.exchange.fetched_at,
            also_obey=self.config.also_obey,
            tdm_meta=facts.tdm_reservation,
            tdm_origin=opt_outs.tdmrep.reserved(entry.url) if opt_outs else None,
        )
        reason = refusal(policy, self.config.honour_ai_optouts, page.content_type)
        if is_sitemap:  # read, even if it is not to be kept
            return Found(self._of_sitemap(entry, page), refusal=reason or "")
        if reason is None and opt_outs is not None:
            reason = opt_outs.refusal(entry.url, page.content_type)
        depth = entry.depth + 1
        links = [Entry(url, depth, priority=depth) for url in facts.links if policy.follow]
        return Found(links, refusal=reason or "")

    def _of_sitemap(self, entry: Entry, page: Page) -> list[Entry]:
        pages, sitemaps = sitemap_links(page.payload, entry.url, self.rules)
        hops = entry.hops + 1
        further = [Entry(url, 0, hops, is_sitemap=True) for url in sitemaps if hops <= MAX_HOPS]
        return [Entry(url, 0) for url in pages] + further

    def _outside(self, url: str) -> str:
        return Entry(url, 0).host if self.scope.refusal(url, 0) else ""
