"""Where a crawl begins: the seeds, checked before the first request, so that a mistake shows."""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Sequence

import ada_url
from aiohttp.abc import AbstractResolver

from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_url
from pipeline.crawl_config import CrawlConfig
from pipeline.resolver import Network, SystemResolver, may_reach
from pipeline.urls import Scope, canonical, registrable_domain

_PORTS = {"http:": 80, "https:": 443}
_LOOKUPS = 100  # of seeds' names, at a time
_SHOWN = 5


def read_seeds(config: CrawlConfig) -> list[str]:
    """The seeds as canonical URLs without doubles. Raises UserError for none, for what is no
    http(s) URL, and for a crawl beyond this machine without a contact."""
    if not config.seeds:
        raise UserError('crawl.seeds is empty; name a URL, as in seeds = ["https://example.org/"]')
    checked = [canonical_url(seed) for seed in config.seeds]
    urls = list(dict.fromkeys(canonical(url) or url for url in checked))
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise UserError(
                f"crawl.seeds: {url!r} is neither http nor https; only these are crawled"
            )
    for host in config.allowed_hosts:
        if not ada_url.check_url(f"http://{host}/") or "/" in host:
            raise UserError(f"crawl.allowed_hosts: {host!r} is no host name, as www.example.org is")
    names = [*map(_hostname, urls), *(_hostname(f"http://{h}/") for h in config.allowed_hosts)]
    wide = ["the whole web"] if config.scope == "any" else list(config.allowed_domains)
    outside = next((name for name in [*names, *wide] if not _is_loopback(name)), None)
    contact = config.contact
    if outside and not ("@" in contact or contact.startswith(("http://", "https://"))):
        raise UserError(
            f"crawling {outside} needs crawl.contact: a URL or e-mail address in the user agent,"
            " for the site's owner to turn to"
        )
    return urls


def read_scope(config: CrawlConfig, seeds: Sequence[str]) -> Scope:
    """What the crawl may take. Raises UserError for a pattern, port or host that is none."""
    hosts: list[str] = []
    domains: list[str] = []
    if config.scope != "any":
        hosts = [str(ada_url.URL(url).host) for url in seeds] + config.allowed_hosts
        domains = list(config.allowed_domains)
    if config.scope == "domains":
        domains += [registrable_domain(_hostname(url)) for url in seeds]
    return Scope(
        allowed_hosts=hosts,
        allowed_domains=domains,
        blocked_domains=config.blocked_domains,
        ports=config.ports,
        include=tuple(config.include_paths),
        exclude=tuple(config.exclude_paths),
        max_depth=config.max_depth,
    )


def read_networks(config: CrawlConfig) -> tuple[Network, ...]:
    """The private networks that may be reached. Raises UserError for what is none."""
    try:
        return tuple(map(ipaddress.ip_network, config.allow_networks))
    except ValueError as error:
        raise UserError(
            f"crawl.allow_networks: {error}; write a network as in 10.1.0.0/16"
        ) from None


async def check_addresses(
    config: CrawlConfig, urls: Iterable[str], resolver: AbstractResolver | None
) -> list[str]:
    """What is wrong with the seeds whose hosts have no address or none that may be reached: the
    crawl will count them. Raises UserError if that is all of them. Behind a proxy names and
    addresses are the proxy's business."""
    hosts = {} if config.proxy else {_hostname(url): _port(url) for url in urls}
    resolver = resolver or SystemResolver()
    networks, turns = read_networks(config), asyncio.Semaphore(_LOOKUPS)

    async def problem(name: str, port: int) -> str | None:
        async with turns:
            return await _problem(config, networks, resolver, name, port)

    found = await asyncio.gather(*(problem(name, port) for name, port in hosts.items()))
    problems = [said for said in found if said]
    if problems and len(problems) == len(hosts):
        raise UserError(problems[0])
    shown = problems[:_SHOWN]
    return shown + [f"… and {len(problems) - _SHOWN:,} seeds more"] * (len(problems) > _SHOWN)


async def _problem(
    config: CrawlConfig,
    networks: Sequence[Network],
    resolver: AbstractResolver,
    name: str,
    port: int,
) -> str | None:
    addresses = [name.strip("[]")]
    if not _is_address(addresses[0]):
        try:
            answers = await resolver.resolve(name, port, socket.AF_UNSPEC)
        except (OSError, UnicodeError) as error:  # a label too long has no IDNA form
            why = getattr(error, "strerror", None) or error
            return (
                f"crawl.seeds: host {name!r} does not resolve ({why});"
                " check its spelling and the network"
            )
        addresses = [answer["host"] for answer in answers]
    if config.allow_private or any(may_reach(address, networks) for address in addresses):
        return None
    return (
        f"crawl.seeds: {name} is {addresses[0]}, an address that is not public; if that is"
        " meant, set crawl.allow_private = true or name its network in crawl.allow_networks"
    )


def _port(url: str) -> int:
    parsed = ada_url.URL(url)
    return int(parsed.port or _PORTS[str(parsed.protocol)])


def _hostname(url: str) -> str:
    return str(ada_url.URL(url).hostname)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    bare = name.strip("[]")
    if _is_address(bare):
        return ipaddress.ip_address(bare).is_loopback
    return bare == "localhost" or bare.endswith(".localhost")
