"""The HTTP API for programs, beside the app: import, export, progress. docs/labeling-api.md.

Every request shows an API token, whose scopes and project bound what it can do.
"""

import dataclasses
import json
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from labeling_app.auth import Account, require
from labeling_app.export import iter_comparisons, iter_conversations
from labeling_app.formats import conversation_row, k_wise_row, preference_rows
from labeling_app.page_api import status_of
from labeling_app.planning import plan
from labeling_app.prompt_files import Defaults
from labeling_app.prompt_import import import_prompts
from labeling_app.sessions import Scope, account_of_api
from labeling_app.store import Store
from pipeline.core.errors import UserError

MAX_IMPORT = 256 << 20
_MAX_REJECTS = 1000  # named in a reply; all are counted
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_THREADS = 4  # exports and imports at once: people come first


class Api:
    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/prompts", self._answered(self.import_prompts), methods=["POST"]),
            Route("/api/v1/export/{name}", self._answered(self.export), methods=["GET"]),
            Route("/api/v1/progress", self._answered(self.progress), methods=["GET"]),
            Route("/api/v1/{rest:path}", self._answered(self.unknown), methods=_METHODS),
        ]

    async def import_prompts(self, request: Request) -> Response:
        """JSON Lines in, one prompt a line; the reply counts and names what was refused."""
        who = await self._who(request, "import")
        source = request.query_params.get("source", "api")[:64]
        dedupe = request.query_params.get("dedupe", "true") != "false"
        with tempfile.TemporaryDirectory(prefix="flywheel-import-") as folder:
            path = Path(folder) / f"{_file_name(source)}.jsonl"
            await _receive(request, path)
            report = await anyio.to_thread.run_sync(
                lambda: import_prompts(
                    self._store, who, [path], Defaults(source=source), dedupe=dedupe
                )
            )
        reply = dataclasses.asdict(report)
        reply["rejected"] = len(report.rejects)
        reply["rejects"] = reply["rejects"][:_MAX_REJECTS]
        return JSONResponse(reply)

    async def export(self, request: Request) -> Response:
        """conversations, comparisons or pairs as JSON Lines, streamed from one moment's view."""
        who = await self._who(request, "export")
        name = str(request.path_params["name"])
        if name not in ("conversations", "comparisons", "pairs"):
            raise UserError(f"no export {name!r}; conversations, comparisons or pairs will do")

        await anyio.to_thread.run_sync(lambda: self._check_role(who))

        def lines() -> Iterator[bytes]:
            with self._store.read() as session:
                if name == "conversations":
                    rows: Iterator[Any] = map(
                        conversation_row, iter_conversations(session, who.project_id)
                    )
                else:
                    found = iter_comparisons(session, who.project_id)
                    rows = (
                        map(k_wise_row, found)
                        if name == "comparisons"
                        else (row for each in found for row in preference_rows(each))
                    )
                for row in rows:
                    yield json.dumps(row, ensure_ascii=False).encode() + b"\n"

        return StreamingResponse(iterate_in_threadpool(lines()), media_type="application/x-ndjson")

    async def progress(self, request: Request) -> Response:
        who = await self._who(request, "progress")
        now = await anyio.to_thread.run_sync(lambda: plan(self._store, who))
        return JSONResponse(
            {
                "open_labels": now.open_slots,
                "in_hand": now.in_hand,
                "at_vendors": now.at_vendors,
                "waiting_reviews": now.waiting_reviews,
                "pace_per_day": now.pace,
                "done_on": now.done_on.isoformat() if now.done_on else None,
                "days": [{**dataclasses.asdict(d), "day": d.day.isoformat()} for d in now.days],
            }
        )

    async def unknown(self, request: Request) -> Response:
        path = request.url.path[:200]
        known = re.fullmatch(r"/api/v1/(prompts|progress|export/[^/]+)", path)
        said = f"nothing at {path} answers {request.method}; see docs/labeling-api.md"
        return JSONResponse({"error": said}, 405 if known else 404)

    def _check_role(self, who: Account) -> None:
        with self._store.read() as session:
            require(session, who, "lead", "engineer")

    async def _who(self, request: Request, scope: Scope) -> Account:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            token = ""
        return await anyio.to_thread.run_sync(
            lambda: account_of_api(self._store, token.strip(), scope)
        )

    def _answered(self, deed: Callable[[Request], Any]) -> Callable[[Request], Any]:
        limiter: list[anyio.Semaphore] = []

        async def answer(request: Request) -> Response:
            if not limiter:
                limiter.append(anyio.Semaphore(_THREADS))
            try:
                async with limiter[0]:
                    return await deed(request)
            except UserError as error:
                return JSONResponse({"error": str(error)}, status_of(error))

        return answer


async def _receive(request: Request, path: Path) -> None:
    size = 0
    with path.open("wb") as file:
        chunks: AsyncIterator[bytes] = request.stream()
        async for chunk in chunks:
            size += len(chunk)
            if size > MAX_IMPORT:
                raise UserError(f"the request has over {MAX_IMPORT:,} bytes; send it in parts")
            file.write(chunk)


def _file_name(source: str) -> str:
    """The file's name becomes part of the tasks' keys."""
    return "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in source) or "api"
