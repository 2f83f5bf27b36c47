"""Where a crawl begins: the seeds, checked before the first request, so that a mistake shows."""

import ipaddress
import socket
from collections.abc import Iterable, Sequence

import ada_url
from aiohttp.abc import AbstractResolver

from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_url
from pipeline.fetch import is_public

_PORTS = {"http:": 80, "https:": 443}


def read_seeds(seeds: Sequence[str], allowed_hosts: Sequence[str], contact: str) -> list[str]:
    """The seeds as canonical URLs without doubles. Raises UserError for none, for what is no
    http(s) URL, and for a crawl beyond this machine without a contact."""
    if not seeds:
        raise UserError('crawl.seeds is empty; name a URL, as in seeds = ["https://example.org/"]')
    urls = list(dict.fromkeys(canonical_url(seed) for seed in seeds))
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise UserError(
                f"crawl.seeds: {url!r} is neither http nor https; only these are crawled"
            )
    for host in allowed_hosts:
        if not ada_url.check_url(f"http://{host}/") or "/" in host:
            raise UserError(f"crawl.allowed_hosts: {host!r} is no host name, as www.example.org is")
    names = [*map(_hostname, urls), *(_hostname(f"http://{host}/") for host in allowed_hosts)]
    outside = next((name for name in names if not _is_loopback(name)), None)
    if outside and not ("@" in contact or contact.startswith(("http://", "https://"))):
        raise UserError(
            f"crawling {outside} needs crawl.contact: a URL or e-mail address in the user agent,"
            " for the site's owner to turn to"
        )
    return urls


async def check_addresses(
    urls: Iterable[str], allow_private: bool, resolver: AbstractResolver
) -> None:
    """Raises UserError for a seed whose host has no address, or none that may be reached."""
    for url in urls:
        name, parsed = _hostname(url), ada_url.URL(url)
        port = int(parsed.port or _PORTS[str(parsed.protocol)])
        addresses = [name.strip("[]")]
        if not _is_address(addresses[0]):
            try:
                found = await resolver.resolve(name, port, socket.AF_UNSPEC)
            except OSError as error:
                raise UserError(
                    f"crawl.seeds: host {name!r} does not resolve ({error.strerror or error});"
                    " check its spelling and the network"
                ) from None
            addresses = [answer["host"] for answer in found]
        if not allow_private and not any(map(is_public, addresses)):
            raise UserError(
                f"crawl.seeds: {name} is {addresses[0]}, an address that is not public;"
                " if that is meant, set crawl.allow_private = true"
            )


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
