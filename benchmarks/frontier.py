"""A frontier shard that knows ten million URLs: memory, disk, rates, snapshots, restart.

    .venv/bin/python benchmarks/frontier.py [--quick] [--urls N] [--no-peer]

Each side runs in a process of its own, whose anonymous and file-backed memory is read from
outside (/proc) 50 times a second. A page is archived for each 25 new links, as in a crawl.
Scrapy's frontier (its scheduler on disk) holds a million in an environment made for it.
"""

import argparse
import gc
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if "--child" not in sys.argv:  # Scrapy's child has none of our packages
    from rows import record, row
if TYPE_CHECKING:
    from rows import Row

SCRIPT = "frontier.py"
SCRAPY = "2.19.0"
SEED, NUM_HOSTS, LINKS_A_PAGE = 3, 20_000, 25
SNAPSHOT_EVERY_S = 60.0  # as in pipeline/crawl_shard.py
MEMORY_LIMIT, DISK_LIMIT = 20.0, 200.0  # bytes a known URL
WARC = "0123456789ab-00000-0001-00000.warc.gz"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--urls", type=int, help="known to ours at the end; 10 million")
    parser.add_argument("--quick", action="store_true", help="one million, and nothing recorded")
    parser.add_argument("--no-peer", action="store_true", help="ours alone, against the limits")
    parser.add_argument("--child", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    num_urls = arguments.urls or (1_000_000 if arguments.quick else 10_000_000)
    if arguments.child:
        step, folder = arguments.child
        CHILDREN[step](Path(folder), num_urls)
        return 0
    rows = ours(num_urls)
    if not arguments.no_peer:
        rows += against_scrapy(min(num_urls, 1_000_000))
    if not arguments.quick:
        record(rows)
    for r in rows:
        print(f"{r.what}: {r.ours} against {r.peer} {r.theirs} {r.unit} (ratio {r.ratio})")
    return 0


# What comes in


def urls(num_urls: int) -> Iterator[tuple[str, int]]:
    """(URL, depth), each URL once: 60 to 80 characters, on hosts with a heavy tail."""
    import numpy as np

    chance = np.random.default_rng(SEED)
    weights = np.cumsum(1.0 / (np.arange(NUM_HOSTS) + 10.0))
    names = [f"www.{word}{n:05d}.example" for n, word in enumerate(_words(chance, NUM_HOSTS, 4, 9))]
    sections = _words(chance, 200, 4, 9)
    slugs = [
        "-".join(words) for words in zip(*(_words(chance, 4096, 5, 8) for _ in "12"), strict=True)
    ]
    for start in range(0, num_urls, 10_000):
        count = min(10_000, num_urls - start)
        hosts = np.searchsorted(weights, chance.random(count) * weights[-1])
        parts = chance.integers(0, [[200], [4096]], (2, count))
        depths = 1 + chance.binomial(8, 0.5, count)
        columns = (hosts.tolist(), *(part.tolist() for part in parts), depths.tolist())
        for n, (host, section, slug, depth) in enumerate(zip(*columns, strict=True), start):
            yield f"https://{names[host]}/{sections[section]}/{slugs[slug]}-{n:08d}.html", depth


def _words(chance: Any, count: int, shortest: int, longest: int) -> list[str]:
    letters = chance.choice(list("abcdefghijklmnoprstuvw"), (count, longest))
    lengths = chance.integers(shortest, longest + 1, count)
    return ["".join(row[:length]) for row, length in zip(letters, lengths, strict=True)]


# Ours, in a child


def _frontier(folder: Path, epoch: int) -> Any:
    from pipeline.frontier import Frontier
    from pipeline.shard_mail import Mailbox

    mailbox = Mailbox(folder, 0, 1, lambda _host, _shards: 0, epoch)
    return Frontier(
        folder / "shard", epoch, lambda _url, _depth: None, mailbox, lambda _: 1 << 60, 1 << 60
    )


def fill(folder: Path, num_urls: int) -> None:
    """Pages are archived and their links become known, with the crawl's syncs and snapshots."""
    incoming = urls(num_urls)
    links = _entries(incoming, LINKS_A_PAGE)  # which also builds what makes the URLs
    frontier = _frontier(folder, 1)
    gc.collect()
    say("filling")
    spent_s, num_pages, synced_s, saved_s = 0.0, 0, 0.0, 0.0
    snapshots, syncs = list[float](), list[float]()
    while links:
        spent_s += timed(_archive, frontier, links, num_pages)
        num_pages += 1
        if frontier.wants_snapshot() or spent_s - saved_s > SNAPSHOT_EVERY_S:
            snapshots.append(timed(frontier.snapshot))
            saved_s = spent_s
        elif spent_s - synced_s > 1.0:
            syncs.append(timed(frontier.sync))
            synced_s = spent_s
        links = _entries(incoming, LINKS_A_PAGE)
    say("filled", rate=num_urls / spent_s, snapshots=snapshots, syncs=syncs, pages=num_pages)
    frontier.add(_entries(iter([("https://one.more.example/", 0)]), 1))
    say("snapshot")
    took_s = timed(frontier.snapshot)
    say("snapped", seconds=took_s)
    frontier.close()


def _entries(incoming: Iterator[tuple[str, int]], number: int) -> list[Any]:
    from pipeline.frontier_state import Entry

    return [Entry(url, depth, priority=depth) for url, depth in _take(incoming, number)]


def _archive(frontier: Any, links: Sequence[Any], number: int) -> None:
    """As pipeline/crawl_shard.py does for each page; the first page has no turn."""
    from pipeline.frontier_state import Archived

    turn = frontier.take(1e12)
    if turn is None:
        frontier.add(links)
        return
    validators = (f'"{number:08x}-5d1c"', "Mon, 02 Mar 2026 08:09:10 GMT", "2026-03-09T08:09:10Z")
    frontier.archive(
        turn,
        Archived(200, f"{number:064x}", WARC, 1000 * number, 9000, "", validators),
        links,
    )
    frontier.release(turn, float(number))


def restart(folder: Path, num_urls: int) -> None:
    """What a successor does first, and then what it is asked most: links that it knows."""
    incoming = urls(num_urls)
    known = _entries(incoming, 1)
    epoch = 1 + len(list((folder / "shard").glob("log-*.log")))
    say("restarting")
    started = time.perf_counter()
    frontier = _frontier(folder, epoch)
    say("restarted", seconds=time.perf_counter() - started)
    before, spent_s, asked = frontier.num_known, 0.0, 0
    while known and asked < 1_000_000:
        asked += len(known)
        spent_s += timed(frontier.add, known)
        known = _entries(incoming, LINKS_A_PAGE)
    assert frontier.num_known == before == num_urls + 1
    say("looked up", rate=asked / spent_s)


def replay(folder: Path, num_urls: int) -> None:
    """A successor that finds no snapshot, so that all of the log is to be read."""
    (folder / "shard" / "snapshot.npz").unlink()
    restart(folder, num_urls)


def _take(items: Iterator[Any], number: int) -> list[Any]:
    return list(itertools.islice(items, number))


def timed(call: Any, *arguments: Any) -> float:
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started


def say(phase: str, **facts: Any) -> None:
    print(json.dumps({"phase": phase, **facts}), flush=True)
    sys.stdin.readline()  # the parent has read our memory by now


# Scrapy's, in a child of its own environment: no import of ours there


def scrapy(folder: Path, num_urls: int) -> None:
    """The scheduler with a folder: fingerprints in memory and in a file, requests on disk."""
    from scrapy import Request, Spider
    from scrapy.core.scheduler import Scheduler
    from scrapy.utils.reactor import install_reactor
    from scrapy.utils.test import get_crawler

    install_reactor("twisted.internet.asyncioreactor.AsyncioSelectorReactor")
    # The queues by host ask the downloader, which there is none of here: the plain ones, then.
    queue = "scrapy.pqueues.ScrapyPriorityQueue"
    settings = {"JOBDIR": str(folder), "SCHEDULER_PRIORITY_QUEUE": queue}
    crawler = get_crawler(settings_dict=settings)
    spider = crawler.spider = Spider(name="peer")
    scheduler = Scheduler.from_crawler(crawler)
    scheduler.open(spider)
    incoming, spent_s = urls(num_urls), 0.0
    batch = _take(incoming, 1000)
    gc.collect()
    say("filling")
    while batch:
        requests = [Request(url, meta={"depth": depth}) for url, depth in batch]
        spent_s += timed(list, map(scheduler.enqueue_request, requests))
        batch = _take(incoming, 1000)
    say("filled", rate=num_urls / spent_s)
    scheduler.close("finished")


CHILDREN = {"fill": fill, "restart": restart, "replay": replay, "scrapy": scrapy}


# Measuring, from outside


class Watched:
    """A child, its phases, and the memory it had in each: (at its beginning, the most)."""

    def __init__(self, python: str, step: str, folder: Path, num_urls: int) -> None:
        self.facts: dict[str, dict[str, Any]] = {}
        self.first: dict[str, dict[str, int]] = {}
        self.most: dict[str, dict[str, int]] = {"start": {}}
        self._phase = "start"
        command = [python, __file__, "--urls", str(num_urls), "--child", step, str(folder)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        ) as child:
            self._child = child
            sampler = threading.Thread(target=self._sample, daemon=True)
            sampler.start()
            assert child.stdout is not None
            assert child.stdin is not None
            for line in child.stdout:
                found = json.loads(line)
                phase = found["phase"]
                self.facts[phase] = found
                self.first[phase] = self.most[phase] = memory_of(child.pid)
                self._phase = phase
                child.stdin.write("\n")
                child.stdin.flush()
        sampler.join()
        assert child.returncode == 0, f"{step} failed"

    def _sample(self) -> None:
        while self._child.poll() is None:
            now, most = memory_of(self._child.pid), self.most[self._phase]
            self.most[self._phase] = {
                name: max(most.get(name, 0), value) for name, value in now.items()
            }
            time.sleep(0.02)


def memory_of(pid: int) -> dict[str, int]:
    """Bytes: "anon" is the process's own, "file" the page cache's that it has mapped."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return {}
    rows = dict(line.split(":", 1) for line in text.splitlines())
    if "RssAnon" not in rows:  # it is ending
        return {}
    return {
        name: int(rows[key].split()[0]) << 10
        for name, key in (("anon", "RssAnon"), ("file", "RssFile"))
    }


def disk_of(folder: Path) -> int:
    return int(subprocess.check_output(["du", "-s", "-B1", folder], text=True).split()[0])


def ours(num_urls: int) -> "list[Row]":
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        filled = Watched(sys.executable, "fill", folder, num_urls)
        disk = disk_of(folder) / num_urls
        sizes = {p.name: p.stat().st_size for p in sorted((folder / "shard").iterdir())}
        restarted = Watched(sys.executable, "restart", folder, num_urls)
        replayed = Watched(sys.executable, "replay", folder, num_urls)
    idle = filled.first["filling"]["anon"]
    at_rest = (filled.first["snapped"]["anon"] - idle) / num_urls
    peak = max(phase.get("anon", 0) for phase in filled.most.values())
    print(f"{num_urls:,} known URLs, {filled.facts['filled']['pages']:,} of them archived")
    print_memory("filling", filled, num_urls, idle)
    print_memory("restart", restarted, num_urls, restarted.first["restarting"]["anon"])
    print_memory("replay", replayed, num_urls, replayed.first["restarting"]["anon"])
    for file, size in sizes.items():
        print(f"  disk: {file} {size / num_urls:.1f} bytes a URL")
    facts = filled.facts
    print(f"links taken in: {facts['filled']['rate']:,.0f}/s, log included, snapshots not")
    print(f"known links looked up: {restarted.facts['looked up']['rate']:,.0f}/s")
    for name in ("snapshots", "syncs"):
        took = facts["filled"][name] or [0.0]
        print(
            f"{name}: {len(took)}, {min(took):.2f} to {max(took):.2f} s, {sum(took):.1f} s in all"
        )
    print(f"the last snapshot, of one new URL: {facts['snapped']['seconds']:.2f} s")
    print(f"restart: {restarted.facts['restarted']['seconds']:.2f} s from the snapshot,", end=" ")
    print(f"{replayed.facts['restarted']['seconds']:.2f} s from the log alone")
    print(f"at rest {at_rest:.1f}, at most {(peak - idle) / num_urls:.1f} bytes a URL above idle")
    unit = f"bytes a URL, {num_urls:,} known"
    memory = (peak - idle) / num_urls
    limit = ("limit", "-")
    return [
        row("frontier memory", SCRIPT, limit, memory, MEMORY_LIMIT, unit, less_is_better=True),
        row("frontier disk", SCRIPT, limit, disk, DISK_LIMIT, unit, less_is_better=True),
    ]


def print_memory(what: str, watched: Watched, num_urls: int, idle: int) -> None:
    print(f"{what}: MB anonymous (bytes a URL above idle) / file-backed, at first and at most")
    for phase in watched.first:
        cells = [
            f"{m.get('anon', 0) / 1e6:8.1f} ({(m.get('anon', 0) - idle) / num_urls:5.1f})"
            f" / {m.get('file', 0) / 1e6:6.1f}"
            for m in (watched.first[phase], watched.most[phase])
        ]
        print(f"  {phase:12} {cells[0]}   {cells[1]}")


def against_scrapy(num_urls: int) -> "list[Row]":
    """Both at a size that Scrapy holds in reasonable time."""
    with tempfile.TemporaryDirectory() as name:
        environment, folder = Path(name, "peer"), Path(name, "theirs")
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        python = str(environment / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", f"scrapy=={SCRAPY}", "numpy"]
        subprocess.run(install, check=True)
        sides = {
            "ours": Watched(sys.executable, "fill", Path(name, "ours"), num_urls),
            "theirs": Watched(python, "scrapy", folder, num_urls),
        }
        disks = {side: disk_of(Path(name, side)) / num_urls for side in sides}
    memory = {
        side: (max(m["anon"] for m in (w.most["filling"], w.first["filled"])) - w.first["filling"]["anon"])
        / num_urls
        for side, w in sides.items()
    }  # fmt: skip
    rates = {side: w.facts["filled"]["rate"] for side, w in sides.items()}
    peer, unit = ("Scrapy", SCRAPY), f"bytes a URL, {num_urls:,} known"
    return [
        row("frontier memory", SCRIPT, peer, *memory.values(), unit, less_is_better=True),
        row("frontier disk", SCRIPT, peer, *disks.values(), unit, less_is_better=True),
        row("frontier", SCRIPT, peer, *rates.values(), "new links a second"),
    ]


if __name__ == "__main__":
    sys.exit(main())
