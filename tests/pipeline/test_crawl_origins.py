"""What a host's origins say of themselves, in whole crawls: dead ports, robots.txt elsewhere."""

import socket
from typing import Any

from pipeline.core.config import RunConfig
from pipeline.crawl import run_crawl
from tests.pipeline import small_site
from tests.pipeline.small_fetcher import Names
from tests.pipeline.small_site import Site, config, html, redirect

serve = small_site.serve  # the fixture


def named(site: Site, name: str) -> str:
    return site.url.replace("127.0.0.1", f"{name}.example")


def test_a_dead_port_does_not_hold_up_its_host(serve: Any, run: RunConfig) -> None:
    """Another origin of the host: its URLs wait for its robots.txt, the others go on."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
        routes = {"/": html("home", f"{dead}/x", f"{dead}/y", *[f"/{i}" for i in range(10)])}
        site = serve(routes | {f"/{i}": html(str(i)) for i in range(10)})
        seeds = [f"{dead}/z", site.url]
        config_ = config(*seeds, max_retries=0, max_robots_wait_s=2.0)
        manifest = run_crawl(config_, run)
    assert manifest.counts.rows_out == 11
    assert manifest.counts.dropped == {"robots unreachable: connection": 3}
    times = [at for at, path in ((at, path) for path, at in site.asked if path != "/robots.txt")]
    assert times[-1] - times[0] < 2.0, "nobody waited for the dead one"


def test_many_hosts_whose_robots_point_to_one_ask_it_at_its_pace(
    serve: Any, run: RunConfig
) -> None:
    victim = serve({})
    hosts = [serve({"/": html(str(i))}) for i in range(6)]
    for i, host in enumerate(hosts):
        host.routes["/robots.txt"] = redirect(f"{named(victim, 'victim')}{i}")
    seeds = [named(host, f"h{i}") for i, host in enumerate(hosts)]
    manifest = run_crawl(
        config(*seeds, delay_s=0.3, contact="a@b"), run, resolver=Names(["127.0.0.1"])
    )
    assert manifest.counts.rows_out == 6
    times = sorted(at for _, at in victim.asked)
    assert len(times) == 6
    assert min(b - a for a, b in zip(times, times[1:], strict=False)) >= 0.29
