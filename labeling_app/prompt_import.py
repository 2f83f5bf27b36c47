"""Prompts into the queue, in small transactions, so that people go on working meanwhile; those
that are almost the same as one that is there are left out and counted."""

import dataclasses
import datetime as dt
import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import exists, insert, select
from sqlalchemy.orm import Session

from labeling_app.auth import Account, require
from labeling_app.prompt_files import TOPIC, Defaults, Reject, read_prompts
from labeling_app.schema import EventRow, Prompt, Response, Slot, Task, TaskResponse
from labeling_app.store import Store
from labeling_app.tasks import NewTask, messages_json, messages_of
from pipeline.core import storage
from pipeline.core.identity import canonical_json, prompt_id, sha256_text
from pipeline.text.signatures import Signer

_BATCH = 200
_PAUSE_S = 0.01  # between transactions: people's writes get their turn
# Prompts are short: word pairs, and 64 lanes. Equal fields sign equally, in every release.
_SIGNER = Signer(bands=8, rows=8, seed=1, shingle_words=2)
THRESHOLD = 0.8  # Jaccard similarity of word pairs, as estimated by equal lanes

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class PromptReport:
    """`known`: tasks of the same key that were there; `similar`: left out for one almost the
    same; each reject with file and line."""

    lines: int
    added: int
    known: int
    similar: int
    rejects: tuple[Reject, ...]


class NearPrompts:
    """The prompts of a project by datasketch's LSH, filled as new ones come: those to write for
    and those to compare apart, for a prompt may be both."""

    def __init__(self, store: Store, project: int) -> None:
        from datasketch import MinHashLSH  # 0.7 s, for imports alone

        # Bands of 4: of pairs at 0.8 Jaccard 99.98% meet; `holds` compares those that do.
        self._lsh: dict[bool, Any] = {
            compares: MinHashLSH(num_perm=_SIGNER.num_lanes, params=(16, 4))
            for compares in (False, True)
        }
        self._lanes: list[Any] = []
        with store.read() as session:
            compared = exists().where(Task.prompt_id == Prompt.id, Task.kind == "compare")
            written = exists().where(Task.prompt_id == Prompt.id, Task.kind != "compare")
            query = select(
                Prompt.id,
                Prompt.signature,
                Prompt.messages,
                compared.label("compared"),
                written.label("written"),
            ).where(Prompt.project_id == project)
            rows = session.execute(query.execution_options(yield_per=2000))
            for batch in _batches(rows, 2000):
                unsigned = [row for row in batch if not row.signature]
                texts = [_text(messages_of(row.messages)) for row in unsigned]
                signed = iter(_SIGNER.sign(texts).lanes) if texts else iter(())
                for row in batch:
                    lanes = np.frombuffer(row.signature, "<u4") if row.signature else next(signed)
                    for compares, there in ((False, row.written), (True, row.compared)):
                        if there:
                            self.add(lanes, compares)

    def add(self, lanes: Any, compares: bool) -> None:
        self._lsh[compares].insert(len(self._lanes), _minhash(lanes), check_duplication=False)
        self._lanes.append(lanes)

    def holds(self, lanes: Any, compares: bool) -> bool:
        """Whether one of at least THRESHOLD is there, by the share of equal lanes."""
        return any(
            float(np.mean(self._lanes[found] == lanes)) >= THRESHOLD
            for found in self._lsh[compares].query(_minhash(lanes))
        )


def import_prompts(
    store: Store,
    who: Account,
    files: Sequence[Path],
    defaults: Defaults | None = None,
    *,
    dedupe: bool = True,
    rejects_to: Path | None = None,
    progress: Progress | None = None,
) -> PromptReport:
    """Add the files' prompts as tasks. A rerun adds what is missing. Bad lines are counted, named
    and, with `rejects_to`, kept as JSON Lines; the good ones go in.

    Raises DeniedError, and UserError for a file that cannot be read at all.
    """
    with store.read() as session:
        project = require(session, who, "lead", "engineer").project_id
    near = NearPrompts(store, project) if dedupe else None
    lines = added = known = similar = 0
    rejects: list[Reject] = []
    for path in files:
        chosen = defaults or Defaults(source=path.stem[:64])
        for batch in _batches(read_prompts(path, chosen), _BATCH):
            tasks = [each for each in batch if isinstance(each, NewTask)]
            rejects += [each for each in batch if isinstance(each, Reject)]
            counts = add_in_bulk(store, who, tasks, near)
            rejects += [
                Reject(path.name, 0, f"task {key!r} exists with another prompt; give it an id", "")
                for key in counts[3]
            ]
            time.sleep(_PAUSE_S)
            lines += len(batch)
            added, known, similar = added + counts[0], known + counts[1], similar + counts[2]
            if progress is not None:
                progress(lines)
    if rejects_to is not None and (rejects or rejects_to.exists()):
        _keep(rejects, rejects_to)
    return PromptReport(lines, added, known, similar, tuple(rejects))


def add_in_bulk(
    store: Store, who: Account, tasks: Sequence[NewTask], near: NearPrompts | None
) -> tuple[int, int, int, list[str]]:
    """(added, known, similar, keys that stand for another prompt) of checked tasks, in one
    transaction."""
    lanes = _SIGNER.sign([_text(task.prompt) for task in tasks]).lanes if tasks else []
    lanes_of = {task.key: row for task, row in zip(tasks, lanes, strict=True)}

    def deed(session: Session) -> tuple[list[NewTask], int, int, list[str]]:
        caller = require(session, who, "lead", "engineer")
        keys = [task.key for task in tasks]
        there = dict(
            session.execute(
                select(Task.key, Prompt.content_sha256)
                .join(Prompt, Prompt.id == Task.prompt_id)
                .where(Task.project_id == caller.project_id, Task.key.in_(keys))
            ).all()
        )
        fresh: list[NewTask] = []
        clashes: list[str] = []
        for task in tasks:
            content = _content(task)
            if task.key not in there:
                there[task.key] = content
                fresh.append(task)
            elif there[task.key] != content:
                clashes.append(task.key)
        chosen = (
            fresh if near is None else _unlike(session, caller.project_id, fresh, near, lanes_of)
        )
        _insert(session, caller.project_id, caller.pseudonym, store.clock(), chosen, lanes_of)
        known = len(tasks) - len(fresh) - len(clashes)
        return chosen, known, len(fresh) - len(chosen), clashes

    if not tasks:
        return 0, 0, 0, []
    chosen, known, similar, clashes = store.transact(deed)
    if near is not None:
        for task in chosen:
            near.add(lanes_of[task.key], task.kind == "compare")
    return len(chosen), known, similar, clashes


def _unlike(
    session: Session,
    project: int,
    fresh: Sequence[NewTask],
    near: NearPrompts,
    lanes_of: dict[str, Any],
) -> list[NewTask]:
    """Those that are not almost the same as one that is there or before them. A comparison of the
    very same prompt is another task if its answers are others."""
    compared = _compared(session, project, [task for task in fresh if task.kind == "compare"])
    chosen: list[NewTask] = []
    taken = {
        compares: np.empty((len(fresh), _SIGNER.num_lanes), np.uint32) for compares in (False, True)
    }
    counts = {False: 0, True: 0}
    for task in fresh:
        own, compares = lanes_of[task.key], task.kind == "compare"
        if task.purpose == "work":
            shares = (taken[compares][: counts[compares]] == own).mean(axis=1)
            like = near.holds(own, compares) or (len(shares) and shares.max() >= THRESHOLD)
            sets = compared.get(_content(task)) if compares else None
            if _answers(task) in sets if sets else like:
                continue
        if compares:
            compared.setdefault(_content(task), set()).add(_answers(task))
        taken[compares][counts[compares]] = own
        counts[compares] += 1
        chosen.append(task)
    return chosen


def _compared(
    session: Session, project: int, tasks: Sequence[NewTask]
) -> dict[str, set[frozenset[str]]]:
    """By prompt, the sets of answers that are compared already, as digests."""
    rows = session.execute(
        select(Prompt.content_sha256, Task.id, Response.sha256)
        .join(Task, Task.prompt_id == Prompt.id)
        .join(TaskResponse, TaskResponse.task_id == Task.id)
        .join(Response, Response.id == TaskResponse.response_id)
        .where(
            Prompt.project_id == project,
            Prompt.content_sha256.in_({_content(task) for task in tasks}),
            Task.kind == "compare",
            Task.purpose == "work",
        )
    )
    by_task: dict[tuple[str, int], set[str]] = {}
    for content, task_id, digest in rows:
        by_task.setdefault((content, task_id), set()).add(digest)
    found: dict[str, set[frozenset[str]]] = {}
    for (content, _), digests in by_task.items():
        found.setdefault(content, set()).add(frozenset(digests))
    return found


def _answers(task: NewTask) -> frozenset[str]:
    return frozenset(sha256_text(answer.text) for answer in task.answers)


def _insert(
    session: Session,
    project: int,
    actor: str,
    now: dt.datetime,
    tasks: Sequence[NewTask],
    signatures: dict[str, Any],
) -> None:
    if not tasks:
        return
    contents = {_content(task): task for task in tasks}
    found = dict(
        session.execute(
            select(Prompt.content_sha256, Prompt.id).where(
                Prompt.project_id == project, Prompt.content_sha256.in_(list(contents))
            )
        ).all()
    )
    new = [
        {
            "project_id": project,
            "prompt_id": prompt_id(task.prompt),
            "messages": messages_json(task.prompt),
            "content_sha256": content,
            "signature": np.ascontiguousarray(signatures[task.key], "<u4").tobytes(),
        }
        for content, task in contents.items()
        if content not in found
    ]
    if new:
        made = session.execute(insert(Prompt).returning(Prompt.content_sha256, Prompt.id), new)
        found.update(dict(made.all()))
    rows = [
        {
            "project_id": project,
            "key": task.key,
            "prompt_id": found[_content(task)],
            "kind": task.kind,
            "purpose": task.purpose,
            "gold": list(task.gold) if task.gold is not None else None,
            "skill": task.skill,
            "source": task.source,
            "overlap": task.overlap,
            "priority": task.priority,
            "state": "open",
            "created_at": now,
        }
        for task in tasks
    ]
    ids = dict(session.execute(insert(Task).returning(Task.key, Task.id), rows).all())
    slots = [
        {
            "task_id": ids[task.key],
            "slot_no": number,
            "state": "free",
            "project_id": project,
            "kind": task.kind,
            "skill": task.skill,
            "priority": task.priority,
        }
        for task in tasks
        if task.purpose == "work"
        for number in range(task.overlap)
    ]
    if slots:
        session.execute(insert(Slot), slots)
    _insert_answers(session, tasks, ids, found)
    events = [
        {
            "at": now,
            "actor": actor,
            "verb": "task-added",
            "target": f"task:{ids[task.key]}",
            "payload": {"key": task.key},
        }
        for task in tasks
    ]
    session.execute(insert(EventRow), events)


def _insert_answers(
    session: Session, tasks: Sequence[NewTask], ids: dict[str, int], prompts: dict[str, int]
) -> None:
    wanted: dict[tuple[int, str, str], str] = {}
    for task in tasks:
        for answer in task.answers:
            wanted[(prompts[_content(task)], answer.model, sha256_text(answer.text))] = answer.text
    if not wanted:
        return
    there: dict[tuple[int, str, str], int] = {}
    of_prompts = sorted({prompt for prompt, _, _ in wanted})
    rows = session.execute(
        select(Response.prompt_id, Response.model, Response.sha256, Response.id).where(
            Response.prompt_id.in_(of_prompts)
        )
    )
    for prompt, model, digest, number in rows:
        there[(prompt, model, digest)] = number
    new = [
        {"prompt_id": prompt, "model": model, "text": text, "sha256": digest}
        for (prompt, model, digest), text in wanted.items()
        if (prompt, model, digest) not in there
    ]
    if new:
        made = session.execute(
            insert(Response).returning(
                Response.prompt_id, Response.model, Response.sha256, Response.id
            ),
            new,
        )
        for prompt, model, digest, number in made:
            there[(prompt, model, digest)] = number
    placed = [
        {
            "task_id": ids[task.key],
            "position": position,
            "response_id": there[(prompts[_content(task)], answer.model, sha256_text(answer.text))],
        }
        for task in tasks
        for position, answer in enumerate(task.answers)
    ]
    session.execute(insert(TaskResponse), placed)


def _keep(rejects: Iterable[Reject], path: Path) -> None:
    lines = [json.dumps(dataclasses.asdict(reject), ensure_ascii=False) for reject in rejects]
    with storage.atomic_file(str(path)) as part:
        Path(part).write_text("".join(f"{line}\n" for line in lines), "utf-8", errors="replace")


def _content(task: NewTask) -> str:
    return sha256_text(canonical_json(messages_json(task.prompt)))


def _text(messages: Sequence[Any]) -> str:
    """What is compared: not what many prompts share by design."""
    turns = [message.text for message in messages if message.role != "system"]
    return "\n".join(turns).removeprefix(TOPIC)


def _minhash(lanes: Any) -> Any:
    from datasketch import LeanMinHash

    return LeanMinHash(seed=1, hashvalues=lanes.astype(np.uint64), scheme="affine32")


def _batches(rows: Iterable[Any], size: int) -> Iterable[list[Any]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
