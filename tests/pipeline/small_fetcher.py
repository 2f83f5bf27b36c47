"""A fetcher with short limits, and resolvers that know made-up names alone."""

import asyncio
import socket
from typing import Any

from aiohttp.abc import AbstractResolver

from pipeline.fetch import Fetcher


def fetcher(**changes: Any) -> Fetcher:
    defaults: dict[str, Any] = {
        "user_agent": "FlywheelBot/0.1 (+me@example.org)",
        "max_bytes": 100_000,
        "timeout_s": 0.6,
        "allow_private": True,
        "num_connections": 4,
    }
    return Fetcher(**{**defaults, **changes})


class Names(AbstractResolver):
    """Answers each question with the next list of addresses."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        base = {"hostname": host, "port": port, "proto": 6, "flags": 0}
        family_of = {True: socket.AF_INET6, False: socket.AF_INET}
        return [{**base, "host": a, "family": family_of[":" in a]} for a in addresses]

    async def close(self) -> None:
        pass


class CountedNames(AbstractResolver):
    """Addresses by name; a name without is an error. Each lookup waits for `gate`."""

    def __init__(self, **known: str) -> None:
        self.known = known
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        self.asked.append(host)
        await self.gate.wait()
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return await Names([self.known[host]]).resolve(host, port)

    async def close(self) -> None:
        pass
