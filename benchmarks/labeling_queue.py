"""The labeling queue at size: the next task of 500,000, and an import of 100,000 prompts while
people label, on SQLite and on PostgreSQL.

    .venv/bin/python benchmarks/labeling_queue.py [--tasks 500000] [--import 100000] [--no-row]

Every task asks for two labels, so that people who have done much pass by their own. The marks:
next task under 50 ms (SQLite) and 20 ms (PostgreSQL) at p95, the import under 60 s. PostgreSQL is
started for it (tests/postgres.py), with fsync as in production.
"""

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from rows import Row, record, row

from labeling_app import auth, guidelines
from labeling_app.assignment import next_task
from labeling_app.prompt_files import Defaults
from labeling_app.prompt_import import import_prompts
from labeling_app.store import Store, open_store
from labeling_app.submissions import submit_demonstration
from tests import postgres

SCRIPT = "labeling_queue.py"
SEED = 1
MARKS_MS = {"sqlite": 50.0, "postgresql": 20.0}
IMPORT_MARK_S = 60.0
NUM_PEOPLE = 8


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=500_000)
    parser.add_argument("--import", type=int, default=100_000, dest="prompts")
    parser.add_argument("--rounds", type=int, default=1000, help="tasks that one person takes")
    parser.add_argument("--no-row", action="store_true", help="leave docs/benchmarks.json alone")
    options = parser.parse_args(argv)
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="labeling-queue-") as name:
        for backend in MARKS_MS:
            with place(backend, Path(name)) as url:
                found += measure(backend, url, Path(name), options)
    for r in found:
        print(f"{r.what}: {r.ours} against {r.peer} {r.theirs} {r.unit} (ratio {r.ratio})")
    if not options.no_row:
        record(found)
    return 0


@contextlib.contextmanager
def place(backend: str, folder: Path) -> Iterator[str]:
    if backend == "sqlite":
        yield str(folder / "labels.sqlite")
        return
    with postgres.server(durable=True) as server:
        server.execute("CREATE DATABASE labels")
        yield server.database("labels")


def measure(backend: str, url: str, folder: Path, options: argparse.Namespace) -> list[Row]:
    store = open_store(url)
    guidelines.publish_default(store)
    lead = auth.command_line(store)
    fill(store, lead, folder, options.tasks)
    person = worker(store, "alone")
    times = [label(store, person) for _ in range(options.rounds)]
    alone = percentile(times, 95)
    print(f"{backend}: {options.tasks:,} tasks; one person, {options.rounds} labels:", told(times))
    import_s, during = import_beside_people(store, lead, folder, options.prompts)
    print(f"{backend}: {options.prompts:,} prompts in {import_s:.1f} s; beside it:", told(during))
    store.close()
    queue = row(
        "labeling-queue",
        SCRIPT,
        (f"mark: next task of {options.tasks:,}, p95, {backend}", "-"),
        alone * 1000,
        MARKS_MS[backend],
        "ms",
        less_is_better=True,
    )
    imported = row(
        "labeling-import",
        SCRIPT,
        (f"mark: {options.prompts:,} prompts beside {NUM_PEOPLE} people, {backend}", "-"),
        import_s,
        IMPORT_MARK_S,
        "s",
        less_is_better=True,
    )
    return [queue, imported]


def fill(store: Store, lead: auth.Account, folder: Path, num: int) -> None:
    path = prompts(folder, "fill", num)
    started = time.monotonic()
    import_prompts(store, lead, [path], Defaults("fill", overlap=2), dedupe=False)
    print(f"filled with {num:,} tasks in {time.monotonic() - started:.0f} s", flush=True)


def prompts(folder: Path, name: str, num: int) -> Path:
    rng = random.Random(f"{SEED} {name}")
    words = [f"word{number}" for number in range(5000)]
    path = folder / f"{name}.jsonl"
    with path.open("w") as file:
        for number in range(num):
            text = " ".join(rng.choices(words, k=20))
            line = {"id": f"{name}-{number}", "prompt": text, "priority": rng.randrange(5)}
            file.write(json.dumps(line) + "\n")
    return path


def worker(store: Store, name: str) -> auth.Account:
    auth.create_simulated(store, name, "labeler")
    who = auth.act_as(store, name)
    guidelines.acknowledge(store, who, 1)
    return who


def label(store: Store, who: auth.Account) -> float:
    """Seconds to the next task, which is then answered."""
    started = time.perf_counter()
    work = next_task(store, who, "write")
    took = time.perf_counter() - started
    assert work is not None
    submit_demonstration(store, who, work.token, "An answer.", work.token)
    return took


def import_beside_people(
    store: Store, lead: auth.Account, folder: Path, num: int
) -> tuple[float, list[float]]:
    """Seconds of the import, and of each next task of people who label meanwhile, one every
    second each, as fast people do."""
    path = prompts(folder, "import", num)
    people = [worker(store, f"beside-{number}") for number in range(NUM_PEOPLE)]
    times: list[float] = []
    over = threading.Event()

    def work(who: auth.Account) -> None:
        while not over.wait(1.0):
            times.append(label(store, who))

    threads = [threading.Thread(target=work, args=(who,)) for who in people]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    report = import_prompts(store, lead, [path], Defaults("import"))
    took = time.monotonic() - started
    over.set()
    for thread in threads:
        thread.join()
    assert report.added == num, report
    return took, times


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def told(times: Sequence[float]) -> str:
    shown = {name: percentile(times, value) * 1000 for name, value in (("p50", 50), ("p95", 95))}
    return ", ".join(f"{name} {value:.1f} ms" for name, value in shown.items())


if __name__ == "__main__":
    sys.exit(main())
