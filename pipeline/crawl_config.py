"""[crawl]: what is crawled, how politely, and within what limits."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pipeline.core.config import Section, operational

TEXT_TYPES = [
    "text/",
    "application/xhtml+xml",
    "application/xml",
    "application/rss+xml",
    "application/atom+xml",
    "application/gzip",  # sitemaps
    "application/x-gzip",
]


DAY_S = 86_400.0
MOST = 1_000_000_000_000_000  # bytes or pages: as good as no limit, and still a number for SQLite


def _with_token(user_agent: str) -> str:
    if not re.match(r"[A-Za-z0-9_.-]+(?:[/ ]|$)", user_agent):
        mend = "begin with the name that robots.txt is to know it by, as in 'MyBot/1.0 (me)'"
        raise PydanticCustomError("user_agent", mend)
    return user_agent


class CrawlConfig(Section):
    """[crawl]. `epoch` tells a recrawl from the crawl before it. No number is infinite."""

    model_config = ConfigDict(allow_inf_nan=False)

    seeds: list[str] = Field(default_factory=list, description="where to begin, whole URLs")
    epoch: int = Field(0, ge=0, le=100_000, description="raise it to crawl the same seeds again")
    conditional: bool = Field(
        True, description="a later epoch asks the one before for what has not changed"
    )
    num_shards: int = operational(
        1, ge=1, le=4096, description="parts of the frontier, each with a worker of its own"
    )
    # What belongs to the crawl
    scope: Literal["hosts", "domains", "any"] = Field(
        "hosts", description="the seeds' hosts, their domains with all sub-domains, or anything"
    )
    allowed_hosts: list[str] = Field(default_factory=list, description="beside the seeds' own")
    allowed_domains: list[str] = Field(
        default_factory=list, description="with all their sub-domains, beside the seeds' own"
    )
    blocked_domains: list[str] = Field(
        default_factory=list, description="with all their sub-domains, whatever else allows them"
    )
    ports: list[int] = Field(default_factory=list, description="only these; empty: any")
    include_paths: list[str] = Field(
        default_factory=list, description="regular expressions; one must match path and query"
    )
    exclude_paths: list[str] = Field(
        default_factory=list, description="regular expressions; none may match path and query"
    )
    drop_parameters: list[str] = Field(
        default_factory=list, description="query parameters to cut off, beside the usual trackers"
    )
    traps: bool = Field(True, description="leave out what looks endless: calendars, loops in paths")
    accept_types: list[str] = Field(
        default_factory=lambda: list(TEXT_TYPES),
        description="beginnings of content types; others are not read; empty: any",
    )
    sitemaps: bool = Field(True, description="take the URLs of the sitemaps that robots.txt names")
    # How much
    max_pages: int = Field(
        1000,
        ge=1,
        le=MOST,
        description="responses, in a recrawl those that are new or changed; which ones, with"
        " several hosts, depends on their speed",
    )
    max_depth: int = Field(20, ge=0, le=1_000_000, description="links away from a seed or sitemap")
    max_pages_per_host: int | None = Field(None, ge=1, le=MOST, description="responses of one host")
    max_bytes_per_host: int | None = Field(None, ge=1, le=MOST, description="bytes of one host")
    max_seconds_per_host: float | None = Field(
        None, gt=0, le=10_000 * DAY_S, description="from a host's first request on"
    )
    max_bytes_total: int | None = Field(
        None, ge=1, le=MOST, description="bytes of the whole crawl, and what is in flight"
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        le=10_000 * DAY_S,
        description="of the whole crawl from its last start on, and what is in flight",
    )
    # How politely
    user_agent: Annotated[str, AfterValidator(_with_token)] = Field(
        "FlywheelBot/0.1", pattern=r"^[!-~][ -~]*$", description="robots.txt name"
    )
    contact: str = operational(
        "", pattern=r"^[ -~]*$", description="URL or e-mail that a site's owner can turn to"
    )
    delay_s: float = operational(
        1.0, ge=0, le=DAY_S, description="pause between two requests to a host"
    )
    max_delay_s: float = operational(300.0, gt=0, le=DAY_S, description="what a pause may grow to")
    latency_factor: float = operational(
        1.0,
        ge=0,
        le=1000,
        description="a pause is at least this many times the host's mean latency",
    )
    connections_per_ip: int = operational(
        8, ge=1, le=100_000, description="requests of one shard at a time to one address"
    )
    delay_per_ip_s: float = operational(
        0.0, ge=0, le=DAY_S, description="pause between two requests to one address"
    )
    honour_ai_optouts: bool = Field(
        True, description="noai, TDM reservation and the groups of also_obey count as refusals"
    )
    also_obey: list[str] = Field(
        default_factory=list, description="further robots.txt names that bind us, such as CCBot"
    )
    max_robots_wait_s: float = operational(
        120.0,
        ge=0,
        le=30 * DAY_S,
        description="how long a host's URLs wait for a robots.txt that fails",
    )
    # How
    concurrency: int = operational(
        64, ge=1, le=100_000, description="hosts that one shard asks at a time"
    )
    max_bytes: int = Field(10_000_000, ge=1, le=MOST, description="a larger body is dropped")
    timeout_s: float = Field(30.0, ge=0.01, le=DAY_S, description="for one whole response")
    min_bytes_per_s: float = Field(100.0, ge=0, le=1e9, description="a slower response is dropped")
    max_retries: int = Field(
        2, ge=0, le=50, description="after time-outs, broken connections, 429, 5xx"
    )
    retry_delay_s: float = operational(
        1.0, ge=0, le=DAY_S, description="doubles with each retry, up to max_delay_s or itself"
    )
    allow_private: bool = Field(False, description="may loopback and private networks be reached?")
    allow_networks: list[str] = Field(
        default_factory=list, description="private networks that may be, as in 10.1.0.0/16"
    )
    proxy: str = operational(
        "",
        pattern=r"^(https?://[!-~]+)?$",
        description="URL of an HTTP proxy; it must refuse inner addresses",
    )
    verify_tls: bool = operational(True, description="refuse invalid certificates")
    warc_max_bytes: int = Field(
        1_000_000_000, ge=1, le=MOST, description="then the next WARC file begins"
    )
    lease_s: float = operational(
        60.0,
        ge=3,  # it is renewed once a second or so
        le=DAY_S,
        description="a shard's owner who is silent for so long is replaced",
    )
    metrics_port: int = operational(
        0, ge=0, le=65535, description="of Prometheus metrics on loopback; 0: none"
    )

    @property
    def agent_header(self) -> str:
        """The User-Agent that servers see."""
        return f"{self.user_agent} (+{self.contact})" if self.contact else self.user_agent

    @property
    def warc_info(self) -> dict[str, str]:
        """Whose crawl it is, and with what manners, in the names of WARC 1.1 (and of Heritrix)."""
        return {
            "operator": self.contact,
            "robots": "obey",
            "http-header-user-agent": self.agent_header,
        }
