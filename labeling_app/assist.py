"""An LLM's help for labelers: drafts in parts, critiques that cite clauses, checks of rankings.

Nothing is applied by itself, all that was shown is recorded, and what a model, a user or a web
page wrote enters a prompt between marks that it cannot know.
"""

import dataclasses
import json
import os
import string
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any, cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from labeling_app.app_settings import ABILITIES, Ability, Assistant
from labeling_app.auth import WORKERS, Account, DeniedError, require
from labeling_app.chat import ChatClient, EndpointError
from labeling_app.drafts import in_force, own_lease
from labeling_app.guidelines import Clause, clauses_of
from labeling_app.schema import (
    Assist,
    AssistAction,
    InstructionVersion,
    Lease,
    Prompt,
    Task,
)
from labeling_app.store import Store, check_text, record_event
from labeling_app.tasks import answers_of, messages_of
from pipeline.core.errors import UserError
from pipeline.core.identity import sha256_text
from pipeline.core.records import Message

TIMEOUT_S = 45.0
_AT_ONCE = 8
MAX_DRAFT_CHARS, MAX_FINDINGS, MAX_PARTS = 20_000, 6, 40
MAX_INPUT_CHARS = 60_000  # of one text that goes into a prompt
MAX_ASSISTS = 30  # for one lease
ACTIONS: dict[str, tuple[str, ...]] = {
    "draft": ("take",),
    "critique": ("accept", "reject"),
    "rank-check": ("accept", "reject"),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A paragraph of a draft; or a finding, whose `clause` is broken, says `text`, by `quote`."""

    text: str
    clause: str = ""
    quote: str = ""


@dataclasses.dataclass(frozen=True)
class Shown:
    """One model's help. `error`: why there is none; the person works on without."""

    id: int
    kind: Ability
    parts: tuple[Part, ...]
    error: str


ClientOf = Callable[[Assistant], ChatClient]


def client_of(assistant: Assistant) -> ChatClient:
    key = os.environ.get(assistant.key_variable, "") if assistant.key_variable else ""
    return ChatClient(assistant.endpoint, api_key=key)


def served(endpoint: str, client: ChatClient | None = None) -> tuple[Assistant, ...]:
    """The models at an endpoint whose cards say that they can help; none if it is down."""
    asked = client
    try:
        asked = asked or ChatClient(endpoint)
        cards = asked.cards()
    except EndpointError:
        return ()
    finally:
        if asked is not None and client is None:
            asked.close()
    return tuple(
        Assistant(endpoint=endpoint, model=model, abilities=known)
        for model, said in cards.items()
        if (known := _known(said))
    )


def _known(said: Sequence[str]) -> tuple[Ability, ...]:
    return tuple(ability for ability in ABILITIES if ability in said)


def ask(
    store: Store,
    who: Account,
    token: str,
    kind: Ability,
    assistants: Sequence[Assistant],
    text: str = "",
    client: ClientOf = client_of,
) -> list[Shown]:
    """Ask all models that can, at once; what came is recorded before it is returned.

    `text`: the person's own answer, or their ranking in words. Raises DeniedError where this task
    is without help, UserError where no model can.
    """
    able = [each for each in assistants if kind in each.abilities]
    if not able:
        raise UserError(f"no model here can {kind}; its card would have to say so")
    if kind != "draft":
        check_text(text, "your text")
    with store.read() as session:
        lease, task = _assisted(session, who, token)
        material = _material(session, lease, task, kind, text)
        version = session.get_one(InstructionVersion, lease.version_id)
        clauses, lease_id = clauses_of(version.body_md), lease.id
    template = prompt_of(kind)
    messages = build_prompt(template, clauses, material, mark=store.token())

    def reply(assistant: Assistant) -> _Reply:
        return _ask_one(kind, assistant, messages, text, clauses, client)

    with ThreadPoolExecutor(min(len(able), _AT_ONCE)) as pool:
        replies = list(pool.map(reply, able))
    return [_record(store, who, lease_id, kind, template, text, each) for each in replies]


def act(store: Store, who: Account, assist_id: int, part: int, action: str) -> None:
    """Record what the person did with a part of what they were shown."""

    def deed(session: Session) -> None:
        caller = require(session, who, *WORKERS)
        row = session.get(Assist, assist_id)
        lease = session.get_one(Lease, row.lease_id) if row else None
        if row is None or lease is None or lease.user_id != caller.id:
            raise DeniedError("this help was not given to you")
        if action not in ACTIONS[row.kind] or not 0 <= part < len(row.output):
            raise UserError(f"{action!r} on part {part} of a {row.kind} means nothing")
        session.add(AssistAction(assist_id=row.id, part=part, action=action, at=store.clock()))
        record_event(
            session,
            store.clock(),
            caller.pseudonym,
            f"assist-{action}",
            f"assist:{row.id}",
            part=part,
        )

    store.transact(deed)


def shown_before(store: Store, who: Account, token: str) -> list[Shown]:
    """What this task's person has been shown so far: a page that is opened anew shows it again."""
    with store.read() as session:
        caller = require(session, who, *WORKERS)
        rows = session.scalars(
            select(Assist)
            .join(Lease, Lease.id == Assist.lease_id)
            .where(Lease.token == token, Lease.user_id == caller.id, Assist.error == "")
            .order_by(Assist.id)
        )
        return [_shown(row) for row in rows]


def prompt_of(kind: Ability) -> str:
    """The prompt's file, which is under version control."""
    name = kind.replace("-", "_") + ".md"
    return (resources.files("labeling_app") / "assist_prompts" / name).read_text("utf-8")


def build_prompt(
    template: str, clauses: Sequence[Clause], material: Sequence[tuple[str, str]], mark: str
) -> list[Message]:
    """The rules as the system's words; the material as the user's, each text between its marks.
    `mark` is random, so that no text can end its own frame."""
    listed = "\n".join(f"{clause.number} {clause.text}" for clause in clauses)
    system = template.format(instructions=listed, mark=mark)
    framed = "\n\n".join(
        f"[{mark} {name} begins]\n{text[:MAX_INPUT_CHARS]}\n[{mark} {name} ends]"
        for name, text in material
    )
    return [Message.of("system", system), Message.of("user", framed)]


def paragraphs(text: str) -> tuple[Part, ...]:
    """A draft in parts that can be taken over singly."""
    parts = [part.strip("\n") for part in text.replace("\r\n", "\n").split("\n\n") if part.strip()]
    head, tail = parts[: MAX_PARTS - 1], parts[MAX_PARTS - 1 :]
    return tuple(Part(part) for part in [*head, *(["\n\n".join(tail)] if tail else [])])


def findings(reply: str, clauses: Sequence[Clause], text: str) -> tuple[Part, ...]:
    """The findings in a model's reply: those that cite a clause there is. Words that it quotes
    and that the text does not hold are left out. Raises EndpointError for a reply that is none."""
    start, end = reply.find("["), reply.rfind("]")
    try:
        rows: Any = json.loads(reply[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list):
        raise EndpointError("the model's reply is not a list of findings")
    known = {clause.number for clause in clauses}
    found: list[Part] = []
    for row in cast(list[Any], rows):
        if not isinstance(row, dict):
            continue
        values = cast(dict[str, Any], row)
        clause, why = str(values.get("clause", "")).strip(), str(values.get("why", "")).strip()
        quote = str(values.get("quote", ""))[:200]
        if clause in known and why:
            found.append(Part(_clean(why[:500]), clause, _clean(quote) if quote in text else ""))
    return tuple(found[:MAX_FINDINGS])


def _clean(text: str) -> str:
    """What every database can store."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _assisted(session: Session, who: Account, token: str) -> tuple[Lease, Task]:
    caller = require(session, who, *WORKERS)
    lease = in_force(session, own_lease(session, caller, token))
    if lease.released is not None:
        raise DeniedError(f"this task is no longer yours ({lease.outcome})")
    if not lease.assisted:
        raise DeniedError("this task is done without help, so that help can be measured")
    count = session.scalar(select(func.count()).where(Assist.lease_id == lease.id)) or 0
    if count >= MAX_ASSISTS:
        raise UserError(f"{count} helps for one task are enough; hand it in, or skip it")
    return lease, session.get_one(Task, lease.task_id)


def _material(
    session: Session, lease: Lease, task: Task, kind: Ability, text: str
) -> list[tuple[str, str]]:
    prompt = messages_of(session.get_one(Prompt, task.prompt_id).messages)
    told = "\n\n".join(f"{message.role}: {message.text}" for message in prompt)
    material = [("conversation", told)]
    if kind == "critique":
        material.append(("answer", text))
    if kind == "rank-check":
        texts = [row.text for row in answers_of(session, task.id)]
        material += [
            (f"answer {letter}", texts[position])
            for letter, position in zip(string.ascii_uppercase, lease.shown_order, strict=False)
        ]
        material.append(("ranking", text))
    return material


@dataclasses.dataclass(frozen=True)
class _Reply:
    model: str
    parts: tuple[Part, ...]
    error: str
    waited_ms: int


def _ask_one(
    kind: Ability,
    assistant: Assistant,
    messages: Sequence[Message],
    text: str,
    clauses: Sequence[Clause],
    client: ClientOf,
) -> _Reply:
    started, error = time.monotonic(), ""
    parts: tuple[Part, ...] = ()
    asked: ChatClient | None = None
    try:
        asked = client(assistant)
        reply = asked.answer(assistant.model, messages, TIMEOUT_S, MAX_DRAFT_CHARS)
        reply = _clean(reply)
        parts = paragraphs(reply) if kind == "draft" else findings(reply, clauses, text)
        if kind == "draft" and not parts:
            error = "the model had nothing to say"
    except EndpointError as failure:
        error = str(failure)
    finally:
        if asked is not None:
            asked.close()
    waited_ms = int((time.monotonic() - started) * 1000)
    return _Reply(assistant.model[:200], parts, error[:500], waited_ms)


def _record(
    store: Store,
    who: Account,
    lease_id: int,
    kind: Ability,
    template: str,
    text: str,
    reply: _Reply,
) -> Shown:
    def deed(session: Session) -> Shown:
        caller = require(session, who, *WORKERS)
        row = Assist(
            lease_id=lease_id,
            kind=kind,
            model=reply.model,
            prompt_sha256=sha256_text(template),
            input_sha256=sha256_text(text),
            output=[dataclasses.asdict(part) for part in reply.parts],
            error=reply.error,
            shown_at=store.clock(),
            waited_ms=reply.waited_ms,
        )
        session.add(row)
        session.flush()
        record_event(
            session,
            row.shown_at,
            caller.pseudonym,
            "assist-shown",
            f"assist:{row.id}",
            kind=kind,
            typed_chars=len(text),
            error=row.error,
        )
        return _shown(row)

    return store.transact(deed)


def _shown(row: Assist) -> Shown:
    return Shown(
        row.id, cast(Ability, row.kind), tuple(Part(**part) for part in row.output), row.error
    )
