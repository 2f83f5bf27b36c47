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
from pipeline.resolver import Network, SystemResolver, is_loopback, may_reach
from pipeline.urls import Scope, canonical, registrable_domain, trap_of

_PORTS = {"http:": 80, "https:": 443}
_LOOKUPS = 100  # of seeds' names, at a time
_SHOWN = 5
_KEYS = {  # which key a refusal comes from
    "excluded": "exclude_paths",
    "included": "include_paths",
    "blocked": "blocked_domains",
    "port": "ports",
    "trap": "traps = false, or the seed",
}


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
    outside = next((name for name in [*names, *wide] if not is_loopback(name)), None)
    contact = config.contact
    if outside and not ("@" in contact or contact.startswith(("http://", "https://"))):
        given = f"; {contact!r} is neither" if contact else ""
        raise UserError(
            f"crawling {outside} needs crawl.contact: a URL (http…) or an e-mail address in the"
            f" user agent, for the site's owner to turn to{given}"
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


def check_scope(config: CrawlConfig, seeds: Sequence[str], scope: Scope, year: int) -> list[str]:
    """What is wrong with the seeds that the crawl's own rules refuse. Raises UserError if that is
    all of them."""
    problems: list[str] = []
    for seed in seeds:
        reason = scope.refusal(seed, 0) or (trap_of(seed, year) if config.traps else None)
        if reason:
            key = next((k for part, k in _KEYS.items() if part in reason), "scope")
            problems.append(
                f"crawl.seeds: {seed} is refused by the crawl's own rules ({reason}); change"
                f" crawl.{key}"
            )
    return _shown(problems, len(seeds))


def _shown(problems: Sequence[str], num_seeds: int) -> list[str]:
    """The first few, and how many more. Raises UserError if no seed is without."""
    if problems and len(problems) == num_seeds:
        more = f" (and so for {num_seeds - 1:,} more)" if num_seeds > 1 else ""
        raise UserError(problems[0] + more)
    left_out = len(problems) - _SHOWN
    return [*problems[:_SHOWN], *[f"… and {left_out:,} more of crawl.seeds"] * (left_out > 0)]


def read_networks(config: CrawlConfig) -> tuple[Network, ...]:
    """The private networks that may be reached. Raises UserError for what is none."""
    try:
        return tuple(map(ipaddress.ip_network, config.allow_networks))
    except ValueError as error:
        raise UserError(
            f"crawl.allow_networks: {error}; write a network as in 10.1.0.0/16"
        ) from None


async def check_addresses(
    config: CrawlConfig,
    urls: Iterable[str],
    resolver: AbstractResolver | None,
    timeout_s: float = 10.0,
) -> list[str]:
    """What is wrong with the seeds whose hosts have no address or none that may be reached: the
    crawl will count them. Who has not answered after `timeout_s` in all is not waited for. Raises
    UserError if no host is without a fault. Behind a proxy names and addresses are the proxy's
    business."""
    hosts = {} if config.proxy else {_hostname(url): _port(url) for url in urls}
    asked = resolver or SystemResolver()
    networks, turns = read_networks(config), asyncio.Semaphore(_LOOKUPS)

    async def problem(name: str, port: int) -> str | None:
        async with turns:
            return await _problem(config, networks, asked, name, port)

    tasks = [asyncio.create_task(problem(name, port)) for name, port in hosts.items()]
    done = (await asyncio.wait(tasks, timeout=timeout_s))[0] if tasks else set()
    late = [task for task in tasks if task not in done]
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    if resolver is None:
        await asked.close()  # without waiting for its threads
    said = [task.result() for task in tasks if task in done]
    problems = _shown([line for line in said if line], len(hosts))
    if late:
        problems.append(
            f"crawl.seeds: no answer on {len(late):,} of {len(hosts):,} hosts' addresses within"
            f" {timeout_s:g} s; the crawl asks for them again"
        )
    return problems


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
