"""`ray up`, `ray rsync-up`, `ray submit` for real: three hosts, a web site, shared storage, and a
worker host that loses its power in the middle. What was archived must be the known truth.

python tests/cluster/run.py     needs root; exit status 0 right, 1 wrong, 77 not possible here
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import hosts
import yaml
from warcio.archiveiterator import ArchiveIterator

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(1, str(REPOSITORY))

from pipeline.core.manifest import Manifest, read_manifest  # noqa: E402 - found by the line above
from tests import known_web as web  # noqa: E402

CLUSTER_FILE = "infra/cluster-local.yaml"
NUM_SHARDS = 3
CANNOT = 77
DELAY_S = 0.3
STEP_LIMIT_S = 120.0
CRAWL_LIMIT_S = 240.0


class WrongError(Exception):
    """The run did not do what it must; the message says what, in one line or with a log's end."""


@dataclass(frozen=True)
class Command:
    """A command at work, and the file of what it says."""

    name: str
    child: subprocess.Popen[bytes]
    output: Path

    @property
    def end(self) -> str:
        return _end(self.output.read_text(errors="replace"))


class Scenario:
    """Runs inside of namespaces of its own: the desk from which a user types `ray …`."""

    def __init__(self) -> None:
        self.started = self.step_started = time.monotonic()
        cluster = yaml.safe_load((REPOSITORY / CLUSTER_FILE).read_text())
        self.addresses = [cluster["provider"]["head_ip"], *cluster["provider"]["worker_ips"]]
        self.names = ["head", *(f"worker-{n}" for n in range(1, len(self.addresses)))]
        network = self.addresses[0].rpartition(".")[0]
        self.desk = f"{network}.1"
        self.web_addresses = [f"{network}.{101 + n}" for n in range(len(web.HOSTS))]
        self.access_log = hosts.ROOM / "access.jsonl"
        self.truth = web.truth(web.build_web())
        self.hosts: list[hosts.Host] = []

    def done(self, what: str) -> None:
        """Say that a step is over, and what it took."""
        now = time.monotonic()
        print(f"{now - self.started:6.1f} s  +{now - self.step_started:5.1f} s  {what}", flush=True)
        self.step_started = now

    def play(self, room: Path) -> None:
        hosts.prepare_desk(room, REPOSITORY, self.desk)
        self.start_hosts()
        self.ray("get-auth-token", "--generate")
        (hosts.DESK / ".ray/auth_token").chmod(0o600)
        self.ray("up", "-y", CLUSTER_FILE)
        self.done("ray up: the head runs")
        self.wait_for_workers()
        self.done("the workers have joined")
        self.ray("rsync-up", CLUSTER_FILE, "./", "~/app/")
        self.done("ray rsync-up")
        self.crawl()
        self.check()

    def start_hosts(self) -> None:
        web_names = dict(zip(web.HOSTS, self.web_addresses, strict=True))
        names = dict(zip(self.names, self.addresses, strict=True)) | web_names
        hosts.write_room(names, REPOSITORY / "constraints.txt")
        for name, address in zip(self.names, self.addresses, strict=True):
            self.hosts.append(hosts.start_host(name, [address], REPOSITORY))
        serve = [sys.executable, str(Path(web.__file__)), "--log", str(self.access_log)]
        site = hosts.start_host(
            "site", self.web_addresses, REPOSITORY, [*serve, *self.web_addresses]
        )
        self.hosts.append(site)
        (hosts.DESK / ".ssh").mkdir()
        shutil.copy(hosts.ROOM / "client_key", hosts.DESK / ".ssh/id_ed25519")
        os.environ.clear()
        os.environ.update(
            HOME=str(hosts.DESK),
            USER="root",
            PATH=hosts.search_path(),
            LANG="C.UTF-8",
            RAY_UP_enable_autoscaler_v2="0",
            RAY_AUTH_MODE="token",
            RAY_USAGE_STATS_ENABLED="0",
        )
        self.done(f"hosts {', '.join(host.name for host in self.hosts)} are up")

    def ray(self, *arguments: str) -> str:
        """What `ray ARGUMENTS` printed. Raises WrongError if it fails or takes over 2 minutes."""
        return self.end_of(self.begin_ray(*arguments), STEP_LIMIT_S)

    def begin_ray(self, *arguments: str) -> "Command":
        output = hosts.ROOM / f"ray-{arguments[0]}.txt"  # a pipe that nobody reads would fill up
        with output.open("w") as file:
            child = subprocess.Popen(
                [f"{sys.prefix}/bin/ray", *arguments],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return Command(f"ray {arguments[0]}", child, output)

    def end_of(self, command: "Command", limit_s: float) -> str:
        try:
            status = command.child.wait(limit_s)
        except subprocess.TimeoutExpired:
            command.child.kill()
            raise WrongError(f"{command.name} takes over {limit_s:.0f} s\n{command.end}") from None
        if status:
            raise WrongError(f"{command.name}: status {status}\n{command.end}")
        return command.output.read_text(errors="replace")

    def wait_for_workers(self) -> None:
        """Until every address of the cluster file is an active node."""
        deadline = time.monotonic() + STEP_LIMIT_S
        while True:
            said = self.ray("exec", CLUSTER_FILE, "ray status")
            active = said.partition("Active:")[2].partition("Pending:")[0]
            if sum(map(int, re.findall(r"^\s*(\d+) \S", active, re.MULTILINE))) == len(self.names):
                return
            if time.monotonic() > deadline:
                raise WrongError(f"the workers have not joined\n{_end(said)}")
            time.sleep(1)

    def crawl(self) -> None:
        (hosts.ROOM / "shared/run.toml").write_text(_config())
        arguments = ["pipeline/crawl.py", "--", "--config", f"{hosts.SHARED}/run.toml"]
        submit = self.begin_ray("submit", CLUSTER_FILE, *arguments)
        middle = len(self.truth) // 3
        deadline = time.monotonic() + CRAWL_LIMIT_S
        while (number := len(self.fetched())) < middle:
            if submit.child.poll() is not None or time.monotonic() > deadline:
                submit.child.kill()
                raise WrongError(f"ray submit: {number} URLs were asked for, no more\n{submit.end}")
            time.sleep(0.1)
        self.done(f"ray submit: {number} of {len(self.truth)} URLs were asked for")
        victim = self.busiest_worker()
        victim.cut_power()
        self.done(f"{victim.name} has lost its power")
        self.end_of(submit, CRAWL_LIMIT_S)
        if len(self.fetched()) <= number:
            raise WrongError("nothing was asked for after the loss of the host")
        self.done("ray submit has ended with status 0")

    def busiest_worker(self) -> hosts.Host:
        """The one whose loss hurts most."""
        by = Counter(line["by"] for line in self.requests())
        workers = [host for host in self.hosts if host.address in self.addresses[1:]]
        return max(workers, key=lambda host: by[host.address])

    def fetched(self) -> Counter[str]:
        """URL (of pages) -> how often the site was asked for it."""
        return Counter(
            line["url"] for line in self.requests() if not web.is_origin_file(line["url"])
        )

    def requests(self) -> list[dict[str, str]]:
        """What the site was asked for so far: `at` (seconds), `url`, `by` (address)."""
        if not self.access_log.exists():
            return []
        whole = self.access_log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def check(self) -> None:
        shared = hosts.ROOM / "shared/data"
        manifests = list(shared.glob("crawl/*/manifest.json"))
        if len(manifests) != 1:
            raise WrongError(f"{len(manifests)} manifests in {shared}")
        manifest = read_manifest(str(manifests[0].parent))
        manifest.check_files()
        found, num_records = archived(manifest)
        if wrong := difference(found, self.truth):
            raise WrongError(wrong)
        self.done(f"{len(found)} (URL, digest) pairs in {num_records} records are the known truth")
        self.check_requests()

    def check_requests(self) -> None:
        """Who asked, and whether only what was in flight at the loss was asked for again."""
        pages = [line for line in self.requests() if not web.is_origin_file(line["url"])]
        by = Counter(line["by"] for line in pages)
        if by[self.addresses[0]]:
            raise WrongError(f"the head asked for {by[self.addresses[0]]} pages; it has no CPU")
        again = {url: number - 1 for url, number in self.fetched().items() if number > 1}
        if sum(again.values()) > len(web.HOSTS):  # a host has one request at a time
            raise WrongError(f"{len(again)} URLs were asked for again: {sorted(again)[:5]}")
        who = dict(zip(self.addresses, self.names, strict=True))
        times: dict[str, list[float]] = {}
        for line in self.requests():
            times.setdefault(urlsplit(line["url"]).netloc, []).append(float(line["at"]))
        gap_s = min(b - a for at in times.values() for a, b in pairwise(sorted(at)))
        print(f"asked by: {', '.join(f'{who[ip]} {n}' for ip, n in sorted(by.items()))}")
        print(
            f"asked for again: {sum(again.values())}; shortest pause at a host: {gap_s:.2f} s (of {DELAY_S})"
        )


def _config() -> str:
    """The run's file."""
    crawl = {
        "num_shards": NUM_SHARDS,
        "seeds": [f"http://{web.HOSTS[0]}/"],
        "allowed_hosts": list(web.HOSTS),
        "allow_private": True,
        "delay_s": DELAY_S,
        "contact": "crawler@desk.example",
    }
    run = {"root": f"{hosts.SHARED}/data", "backend": "ray", "workers": NUM_SHARDS}
    # JSON's values of these kinds are TOML's too.
    sections = {"run": run, "crawl": crawl}
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        for name, keys in sections.items()
    )


def archived(manifest: Manifest) -> tuple[set[tuple[str, str]], int]:
    """(URL, sha256 of the payload) of every response and revisit, and how many records hold them;
    read with warcio. robots.txt and its like are no pages."""
    pairs: set[tuple[str, str]] = set()
    by_digest: dict[str, str] = {}
    revisits: list[tuple[str, str]] = []
    num_records = 0
    for name in (entry.name for entry in manifest.files if entry.name.endswith(".warc.gz")):
        with Path(manifest.url, name).open("rb") as file:
            for record in ArchiveIterator(file):
                url = record.rec_headers.get_header("WARC-Target-URI") or ""
                digest = record.rec_headers.get_header("WARC-Payload-Digest") or ""
                if record.rec_type not in ("response", "revisit") or web.is_origin_file(url):
                    continue
                num_records += 1
                if record.rec_type == "revisit":
                    revisits.append((url, digest))
                    continue
                by_digest[digest] = hashlib.sha256(record.raw_stream.read()).hexdigest()
                pairs.add((url, by_digest[digest]))
    pairs |= {(url, by_digest.get(digest, digest)) for url, digest in revisits}
    return pairs, num_records


def difference(found: set[tuple[str, str]], truth: dict[str, str]) -> str:
    """What is wrong with the pairs that were found, in words; empty if nothing is."""
    urls = {url for url, _ in found}
    missing, surplus = sorted(truth.keys() - urls), sorted(urls - truth.keys())
    changed = sorted({url for url, digest in found if truth.get(url, digest) != digest})
    parts = (("missing", missing), ("too many", surplus), ("of other content", changed))
    return "; ".join(f"{len(urls)} {what}: {urls[:5]}" for what, urls in parts if urls)


def _end(text: str, num_lines: int = 40) -> str:
    return "\n".join(text.splitlines()[-num_lines:])


def inside(room: Path) -> int:
    """The first process of the desk's namespaces: whatever it leaves running ends with it."""
    scenario = Scenario()
    try:
        scenario.play(room)
    except (WrongError, RuntimeError) as error:
        print(f"WRONG: {error}", flush=True)
        _show_logs(scenario.hosts)
        return 1
    scenario.done("done")
    return 0


def _show_logs(all_hosts: Sequence[hosts.Host]) -> None:
    """The ends of the logs that are gone with the hosts: sshd's, the autoscaler's, the tasks'."""
    for host in all_hosts:
        if host.init.poll() is not None:
            continue
        logs = host.inside("/tmp/ray/session_latest/logs")
        shown = [host.inside("/home/log"), logs / "monitor.log", *sorted(logs.glob("worker-*.err"))]
        for log in shown:
            if log.exists() and (text := log.read_text(errors="replace").strip()):
                print(f"--- {host.name}: {log.name}\n{_end(text, 25)}")
    sys.stdout.flush()


def outside() -> int:
    """Make the namespaces, pass on what is printed there, and sweep up behind them."""
    if reason := hosts.what_is_missing():
        print(f"cannot be done here: {reason}")
        return CANNOT
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="flywheel-", ignore_cleanup_errors=True) as room:
        command = [sys.executable, __file__, "--inside", room]
        child = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *hosts.SPACES, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PATH": hosts.search_path()},
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                print(line, end="", flush=True)
        finally:
            child.kill()  # no effect if it has ended; else every process in there ends with it
            child.stdout.read()
            child.wait()
    return child.returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inside", type=Path, metavar="FOLDER", help="for its own use")
    options = parser.parse_args()
    sys.exit(inside(options.inside) if options.inside else outside())
