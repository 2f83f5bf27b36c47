"""Hosts that one server plays, on many loopback addresses: each answers after its own latency, and
one in twenty is broken. It notes when it was asked; benchmarks/many_hosts.py judges by that.
"""

import argparse
import asyncio
import dataclasses
import json
import math
import random
import socket
import struct
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SEED, NUM_ADDRESSES = 7, 200
BROKEN = ("refuses", "resets", "silent", "fails", "garbage")
ROBOTS = "/robots.txt"
DEAD_ADDRESS = "127.0.2.1"  # nobody listens there


@dataclasses.dataclass(frozen=True)
class Simulated:
    """A host. `kind`: "live" or how it is broken; `is_late`: its robots.txt is in order all the
    same, so that its pages are asked for."""

    name: str
    kind: str
    is_late: bool
    latency_s: float
    address: str

    @staticmethod
    def all(arguments: argparse.Namespace) -> "list[Simulated]":
        chance = random.Random(SEED)
        low, high = math.log(arguments.fastest), math.log(arguments.slowest)
        hosts: list[Simulated] = []
        for n in range(arguments.hosts):
            broken = n % 20 == 0
            kind = BROKEN[n // 20 % len(BROKEN)] if broken else "live"
            latency_s = math.exp(chance.uniform(low, high))
            address = "127.0.1.1" if arguments.one_address else f"127.0.1.{1 + n % NUM_ADDRESSES}"
            if kind == "refuses":
                address = DEAD_ADDRESS
            hosts.append(Simulated(f"h{n:05d}.test", kind, n // 100 % 2 == 1, latency_s, address))
        return hosts


class Visits:
    """Who was asked when: (began, ended, is robots.txt) of each request, by host name; and the
    most requests that one address had at a time."""

    def __init__(self, hosts: Sequence[Simulated]) -> None:
        self.hosts = {host.name: host for host in hosts}
        self.log: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def begin(self, address: str) -> float:
        self.running[address] += 1
        self.most[address] = max(self.most[address], self.running[address])
        return time.monotonic()

    def end(self, address: str, host: str, began: float, path: str) -> None:
        self.running[address] -= 1
        self.log[host].append((began, time.monotonic(), path == ROBOTS))


class Connection(asyncio.Protocol):
    """One request, answered after the host's latency; then the client closes."""

    def __init__(self, visits: Visits) -> None:
        self.visits, self.data, self.asked = visits, b"", ("", "")
        self.timer: asyncio.TimerHandle | None = None
        self.began: float | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.address = transport.get_extra_info("sockname")[0]

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.data.endswith(b"\r\n\r\n"):
            return
        assert self.began is None, "a request before the last one was answered"
        head = self.data.decode().split("\r\n")
        self.data = b""
        path = head[0].split()[1]
        name = next(line[6:] for line in head if line.startswith("Host: ")).partition(":")[0]
        self.asked = name, path
        host = self.visits.hosts[name]
        self.began = self.visits.begin(self.address)
        in_order = host.kind == "live" or (host.is_late and path == ROBOTS)
        kind = "live" if in_order else host.kind
        if kind != "silent":
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(host.latency_s, self.answer, kind, path)

    def answer(self, kind: str, path: str) -> None:
        if kind == "resets":
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger
            )
            self.over()
            self.transport.abort()
            return
        self.over()  # first: whoever has the last byte may count its pause from it
        self.transport.write(_answer(kind, path))
        if kind == "garbage":
            self.transport.close()

    def over(self) -> None:
        if self.began is not None:
            self.visits.end(self.address, self.asked[0], self.began, self.asked[1])
            self.began = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.over()  # what was not answered by now, the client has given up


def _answer(kind: str, path: str) -> bytes:
    if kind == "garbage":
        return random.Random(SEED).randbytes(600)
    if path == ROBOTS:
        content, body = "text/plain", b"User-agent: *\nDisallow: /private/\n"
    else:
        number = int(path.strip("/") or 0)
        links = "".join(f'<a href="/{number + step}">on</a>\n' for step in (1, 2, 3))
        text = "A page of a host that is simulated. " * 40
        content, body = "text/html", f"<title>{path}</title>\n{links}<p>{text}</p>".encode()
    status = "500 Broken" if kind == "fails" else "200 OK"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def serve(folder: Path, arguments: argparse.Namespace) -> None:
    """Until its input ends; then what it saw lies in the folder."""
    visits = Visits(Simulated.all(arguments))
    addresses = [f"127.0.1.{n}" for n in range(1, NUM_ADDRESSES + 1)]

    async def run() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server((addresses[0], 0)) as free:
            port = free.getsockname()[1]
        await loop.create_server(lambda: Connection(visits), addresses, port, backlog=4096)
        print(port, flush=True)
        await loop.run_in_executor(None, sys.stdin.read)

    asyncio.run(run())
    cpu_s = time.process_time()
    found = {"visits": visits.log, "most_per_address": max(visits.most.values()), "cpu_s": cpu_s}
    (folder / "server.json").write_text(json.dumps(found))
