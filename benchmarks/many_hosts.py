"""Ten thousand hosts behind one server: is each one's delay kept, does none starve, how fast is it?

    .venv/bin/python benchmarks/many_hosts.py [--hosts 10000] [--delay 30] [--seconds 270]

Each live host answers after its own latency, 10 ms to 10 s (uniform in the logarithm); 5% are
broken. Delays are measured at the server: from the end of one of a host's requests to the beginning
of its next, robots.txt included. With --one-address all hosts share an address and its limit.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from rows import record, row
from simulated_hosts import BROKEN, Simulated, serve

SCRIPT = "many_hosts.py"


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=10_000)
    parser.add_argument("--delay", type=float, default=30.0, help="seconds, for each host")
    parser.add_argument("--seconds", type=float, default=270.0, help="of the crawl")
    parser.add_argument("--pages", type=int, help="of each host; then it ends by itself")
    parser.add_argument("--fastest", type=float, default=0.01, help="seconds of latency")
    parser.add_argument("--slowest", type=float, default=10.0, help="seconds of latency")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for one response")
    parser.add_argument("--concurrency", type=int, default=2000, help="requests at a time")
    parser.add_argument("--one-address", action="store_true", help="all hosts share an address")
    parser.add_argument("--per-ip", type=int, help="requests at a time to one address")
    parser.add_argument("--robots-wait", type=float, default=120.0, help="for one that fails")
    parser.add_argument("--retries", type=int, default=2, help="of what failed")
    parser.add_argument("--report", type=Path, help="write what was found as JSON, no row")
    parser.add_argument("--child", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = options().parse_args(given)
    if arguments.child:
        part, folder = arguments.child
        {"serve": serve, "crawl": crawl}[part](Path(folder), arguments)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = simulate(Path(folder), given)
    report = judge(arguments, **found)
    if arguments.report:
        arguments.report.write_text(json.dumps(report))
        return 0
    show(report)
    if not arguments.one_address:
        unit = f"pages/s, {arguments.hosts:,} hosts, delay {arguments.delay:g} s"
        peer = ("bound by delays", "-")
        record([row("crawl many hosts", SCRIPT, peer, report["rate"], report["bound"], unit)])
    return 0


# The crawler


class Names(AbstractResolver):
    """The hosts' addresses; and, since it is asked on the crawl's event loop, how late that runs."""

    def __init__(self, hosts: Sequence[Simulated]) -> None:
        self.addresses = {host.name: host.address for host in hosts}
        self.lags: list[float] = []
        self._watching: asyncio.Task[None] | None = None

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        if self._watching is None or self._watching.get_loop() is not loop:
            self.lags = []
            self._watching = loop.create_task(self._watch())
        address = self.addresses[host]
        return [
            ResolveResult(
                hostname=host, host=address, port=port,
                family=socket.AF_INET, proto=socket.IPPROTO_TCP, flags=0,
            )
        ]  # fmt: skip

    async def _watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.02)
            self.lags.append(time.monotonic() - before - 0.02)

    async def close(self) -> None:
        pass


def crawl(folder: Path, arguments: argparse.Namespace) -> None:
    from pipeline.core.config import RunConfig
    from pipeline.crawl import run_crawl
    from pipeline.crawl_config import CrawlConfig

    port = int(sys.stdin.readline())
    hosts = Simulated.all(arguments)
    names = Names(hosts)
    config = CrawlConfig(
        seeds=[f"http://{host.name}:{port}/" for host in hosts],
        contact="benchmark@example.org",
        delay_s=arguments.delay,
        connections_per_ip=arguments.per_ip or (8 if arguments.one_address else arguments.hosts),
        concurrency=arguments.concurrency,
        timeout_s=arguments.timeout,
        max_pages=10_000_000,
        max_pages_per_host=arguments.pages,
        max_seconds=None if arguments.pages else arguments.seconds,
        max_depth=1_000_000,
        max_robots_wait_s=arguments.robots_wait,
        max_retries=arguments.retries,
        retry_delay_s=min(1.0, arguments.delay),
        max_delay_s=max(5.0, 2 * arguments.delay),
        honour_ai_optouts=False,  # two turns of each host, and none of these has such files
        allow_private=True,
    )
    started = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):
        manifest = run_crawl(config, RunConfig(root=str(folder), backend="local"), resolver=names)
    ended = time.monotonic()
    lags = sorted(names.lags)
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "wall_s": ended - started,
        "cpu_s": cpu.ru_utime + cpu.ru_stime,
        "lag_s": {name: lags[int(q * (len(lags) - 1))] for name, q in LAGS.items()},
        "archived": manifest.counts.rows_out,
        "dropped": manifest.counts.dropped,
        "retries": manifest.run["retries"],
    }
    (folder / "crawler.json").write_text(json.dumps(found))


LAGS = {"median": 0.5, "99%": 0.99, "most": 1.0}


# Both, and what is made of it


def simulate(folder: Path, given: Sequence[str]) -> dict[str, Any]:
    """Run both; the crawler's files and memory are looked at from here."""
    command = [sys.executable, __file__, *given, "--child"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "serve", folder], **pipes) as server:
        assert server.stdout is not None
        port = server.stdout.readline()
        with subprocess.Popen([*command, "crawl", folder], **pipes) as crawler:
            most: dict[str, int] = {"files": 0, "anon": 0}
            sampler = threading.Thread(target=_sample, args=(crawler, most), daemon=True)
            sampler.start()
            crawler.communicate(port)
            sampler.join()
        server.communicate()
    assert crawler.returncode == 0, "the crawler failed"
    read = {
        name: json.loads((folder / f"{name}.json").read_text()) for name in ("server", "crawler")
    }
    return {**read, "most": most}


def _sample(child: subprocess.Popen[str], most: dict[str, int]) -> None:
    while child.poll() is None:
        with contextlib.suppress(OSError, StopIteration):
            files = len(list(Path(f"/proc/{child.pid}/fd").iterdir()))
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            anon = int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) << 10
            most.update(files=max(files, most["files"]), anon=max(anon, most["anon"]))
        time.sleep(0.5)


def judge(
    arguments: argparse.Namespace,
    server: dict[str, Any],
    crawler: dict[str, Any],
    most: dict[str, int],
) -> dict[str, Any]:
    """Rates are of the live hosts' pages, from when all have had their robots.txt to the
    beginning of the last request of one."""
    hosts = Simulated.all(arguments)
    live = [host for host in hosts if host.kind == "live"]
    visits: dict[str, list[tuple[float, float, bool]]] = {
        name: sorted(map(tuple, log)) for name, log in server["visits"].items()
    }
    gaps = {
        name: min(later[0] - earlier[1] for earlier, later in itertools.pairwise(log))
        for name, log in visits.items()
        if len(log) > 1
    }
    kinds = {host.name: host.kind for host in hosts}
    every = [visit for log in visits.values() for visit in log]
    asked = [v for host in live for v in visits.get(host.name, [])]
    first, last = min(visit[0] for visit in every), max(visit[0] for visit in asked)
    start = first + arguments.delay + arguments.slowest
    steady = max(last - start, 1e-9)
    inside = sum(
        start <= ended < last
        for host in live
        for _, ended, is_robots in visits.get(host.name, [])
        if not is_robots
    )
    pages = {h.name: sum(not v[2] for v in visits.get(h.name, [])) for h in live}
    shares = [pages[h.name] / max(1, _possible(h, last - first, arguments)) for h in live]
    bound = sum(1 / (arguments.delay + host.latency_s) for host in live)
    if arguments.one_address:
        mean_s = statistics.fmean(host.latency_s for host in live)
        bound = min(bound, (arguments.per_ip or 8) / mean_s)
    by_kind = {
        kind: [len(visits.get(h.name, [])) for h in hosts if h.kind == kind] for kind in BROKEN
    }
    return {
        "hosts": len(hosts), "live": len(live), "asked": len(visits),
        "requests": len(every), "seconds": last - first,
        "rate": inside / steady, "bound": bound,
        "least_gap_s": min(gaps.values()), "delay_s": arguments.delay,
        "undercut": Counter(kinds[n] for n, gap in gaps.items() if gap < arguments.delay),
        "pages": sorted(pages.values()),
        "share": {"least": min(shares), "median": statistics.median(shares), "most": max(shares)},
        "requests_to_broken": {kind: sorted(n) for kind, n in by_kind.items()},
        "most_per_address": server["most_per_address"],
        "server_cpu_s": server["cpu_s"], "crawler": crawler,
        "files": most["files"], "anonymous_mb": most["anon"] / 1e6,
    }  # fmt: skip


def _possible(host: Simulated, seconds: float, arguments: argparse.Namespace) -> int:
    """Pages that the host's delay and latency leave room for, behind its robots.txt."""
    return math.floor(seconds / (arguments.delay + host.latency_s))


def show(report: dict[str, Any]) -> None:
    crawler, pages, share = report["crawler"], report["pages"], report["share"]
    print(
        f"{report['asked']:,} of {report['hosts']:,} hosts asked, {report['requests']:,} requests,"
    )
    print(f"  {report['seconds']:.0f} s from the first to the last")
    print(
        f"shortest pause of any host {report['least_gap_s']:.4f} s; the delay is {report['delay_s']:g}"
    )
    print(f"hosts whose delay was undercut, by kind: {dict(report['undercut']) or 'none'}")
    print(f"pages of a live host: {pages[0]} to {pages[-1]}, median {statistics.median(pages):g}")
    print("share of what its delay allows:", {k: round(v, 3) for k, v in share.items()})
    print(f"rate {report['rate']:.1f} pages/s of {report['bound']:.1f} possible"
          f" ({report['rate'] / report['bound']:.1%})")  # fmt: skip
    for kind, numbers in report["requests_to_broken"].items():
        if numbers:
            print(f"  {kind}: {len(numbers)} hosts, {numbers[0]} to {numbers[-1]} requests seen")
    print(f"most requests at a time to one address: {report['most_per_address']}")
    print(f"crawler: {crawler['cpu_s']:.1f} s of CPU in {crawler['wall_s']:.1f} s,"
          f" {report['files']:,} open files, {report['anonymous_mb']:.0f} MB")  # fmt: skip
    print("event loop late by:", {k: f"{v * 1000:.1f} ms" for k, v in crawler["lag_s"].items()})
    print(f"archived {crawler['archived']:,}, dropped {crawler['dropped']},")
    print(f"retries {crawler['retries']}; server: {report['server_cpu_s']:.1f} s of CPU")


if __name__ == "__main__":
    sys.exit(main())
