"""60 people at work at once on the real pages, in one process, with PostgreSQL.

    .venv/bin/python benchmarks/labeling_load.py [--people 60] [--minutes 3] [--no-row]

Each person speaks Streamlit's own protocol over a websocket to the real app, and every 5 s does one
thing: autosaves a draft, or hands in the task and gets the next (a rerun of the whole page). The
time of a rerun is from the message that asks for it to the page's last piece. The first 20 s, in
which they all come in at once, are not counted. The server has the machine's two cores, less what
these clients and PostgreSQL need. The mark: 200 ms at p95.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import httpx
import websockets
from rows import record, row
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from labeling_app import auth, guidelines, sessions
from labeling_app.app_settings import AppSettings
from labeling_app.prompt_import import add_in_bulk
from labeling_app.sign_in_pages import cookie_name
from labeling_app.store import Store, open_store
from labeling_app.tasks import NewAnswer, NewTask
from pipeline.core.records import Message
from tests import postgres
from tests.labeling_app.browser import running

SCRIPT = "labeling_load.py"
MARK_MS = 200.0
ACTION_S = 5.0
WARM_S = 20.0
SAVES_TO_ONE_HAND_IN = 1  # people save far more often than they hand in: this is harder
SEED = 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--no-row", action="store_true", help="leave docs/benchmarks.json alone")
    options = parser.parse_args(argv)
    with postgres.server(durable=True) as server, tempfile.TemporaryDirectory() as _:
        server.execute("CREATE DATABASE labels")
        store = open_store(server.database("labels"))
        cookies = people(store, options.people)
        fill(store, options.people * int((options.minutes * 60 + WARM_S) / ACTION_S + 5))
        settings = AppSettings(store=store.url)
        with running(settings) as app:
            name = cookie_name(settings)
            found = asyncio.run(crowd(app.url, name, cookies, options.minutes * 60))
        store.close()
    reruns, saves = found
    for what, times in (("rerun", reruns), ("autosave", saves)):
        shown = ", ".join(f"p{p} {percentile(times, p):.0f} ms" for p in (50, 95, 99))
        print(f"{what}: {len(times)} of {options.people} people: {shown}")
    if not options.no_row:
        peer = (f"mark: rerun p95, {options.people} people, PostgreSQL", "-")
        ours = percentile(reruns, 95)
        record([row("labeling-load", SCRIPT, peer, ours, MARK_MS, "ms", less_is_better=True)])
    return 0


def people(store: Store, number: int) -> list[str]:
    """Session tokens of people who have read the instructions."""
    guidelines.publish_default(store)
    tokens: list[str] = []
    for each in range(number):
        auth.create_simulated(store, f"w{each}", "labeler")
        who = auth.act_as(store, f"w{each}")
        guidelines.acknowledge(store, who, 1)
        tokens.append(sessions.start_session(store, who).token)
    return tokens


def fill(store: Store, number: int) -> None:
    lead = auth.command_line(store)
    text = "An answer of some length, as they are, with a reason and an example. " * 8
    tasks: list[NewTask] = []
    for each in range(number):
        prompt = (Message.of("user", f"Question {each}: {'why is that so? ' * 10}"),)
        answers = tuple(NewAnswer(f"m{n}", f"{n} {text}") for n in range(4))
        tasks.append(NewTask(f"w{each}", "demo", prompt, "load"))
        tasks.append(NewTask(f"c{each}", "compare", prompt, "load", answers))
    for start in range(0, len(tasks), 500):
        add_in_bulk(store, lead, tasks[start : start + 500], None)


async def crowd(
    url: str, cookie: str, tokens: Sequence[str], seconds: float
) -> tuple[list[float], list[float]]:
    """(reruns, saves) in milliseconds, once all are at their desks."""
    reruns: list[float] = []
    saves: list[float] = []
    ready = asyncio.Barrier(len(tokens))
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        jobs = [
            person(url, http, cookie, token, number, seconds, ready, reruns, saves)
            for number, token in enumerate(tokens)
        ]
        await asyncio.gather(*jobs)
    return reruns, saves


async def person(
    url: str,
    http: httpx.AsyncClient,
    cookie: str,
    token: str,
    number: int,
    seconds: float,
    ready: asyncio.Barrier,
    reruns: list[float],
    saves: list[float],
) -> None:
    rng = random.Random(f"{SEED} {number}")
    page = "compare" if number % 2 else ""
    address = url.replace("http://", "ws://") + "/_stcore/stream"
    headers = {"Cookie": f"{cookie}={token}", "Origin": url}
    async with websockets.connect(
        address, additional_headers=headers, subprotocols=["streamlit"], max_size=1 << 24
    ) as socket:
        data = (await rerun(socket, page))[1]
        await ready.wait()
        counted = time.monotonic() + WARM_S
        until = counted + seconds
        await asyncio.sleep(rng.uniform(0, ACTION_S))
        rev = 0
        while time.monotonic() < until:
            began = time.monotonic()
            rev += 1
            body = {"token": data["token"], "rev": rev, "body": draft(data)}
            took = await post(http, data, "draft", body)
            if began > counted:
                saves.append(took)
            if rev > SAVES_TO_ONE_HAND_IN:
                await post(http, data, "submit", label(data))
                took, data = await rerun(socket, page)
                if began > counted:
                    reruns.append(took)
                rev = 0
            await asyncio.sleep(max(0.0, ACTION_S - (time.monotonic() - began)))


async def rerun(socket: Any, page: str) -> tuple[float, dict[str, Any]]:
    """Milliseconds until the page's last piece, and the data of its component."""
    message = BackMsg()
    message.rerun_script.page_name = page
    message.rerun_script.query_string = ""
    started = time.perf_counter()
    await socket.send(message.SerializeToString())
    data: dict[str, Any] = {}
    while True:
        reply = ForwardMsg()
        reply.ParseFromString(await socket.recv())
        kind = reply.WhichOneof("type")
        if kind == "delta" and reply.delta.new_element.WhichOneof("type") == "bidi_component":
            component = reply.delta.new_element.bidi_component
            if component.component_name != "flywheel-link":
                data = json.loads(component.json or component.mixed.json)
        elif kind == "script_finished":
            assert data, "the page has no task"
            return (time.perf_counter() - started) * 1000, data


async def post(http: httpx.AsyncClient, data: dict[str, Any], path: str, body: Any) -> float:
    started = time.perf_counter()
    headers = {"X-Flywheel-Page": data["page_token"]}
    response = await http.post(f"/api/page/{path}", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return (time.perf_counter() - started) * 1000


def draft(data: dict[str, Any]) -> dict[str, Any]:
    if data["kind"] == "compare":
        return verdict(data)
    return {"turns": [{"role": "assistant", "text": "An answer that grows. " * 40}]}


def verdict(data: dict[str, Any]) -> dict[str, Any]:
    number = len(data["answers"])
    return {
        "ranks": list(range(1, number + 1)),
        "likert": [4] * number,
        "flags": [[] for _ in range(number)],
        "confidence": "fairly",
        "degree": None,
        "comment": "",
        "not_rankable": "",
    }


def label(data: dict[str, Any]) -> dict[str, Any]:
    trace = {"active_ms": 9000, "pasted_chars": 0}
    whole = {"token": data["token"], "key": data["token"], "kind": data["kind"], "trace": trace}
    if data["kind"] == "compare":
        return {**whole, "verdict": verdict(data)}
    return {**whole, **draft(data)}


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


if __name__ == "__main__":
    sys.exit(main())
