"""Prompts into the queue, in small transactions, so that people go on working meanwhile; those
that are almost the same as one that is there are left out and counted."""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from labeling_app.auth import Account, require
from labeling_app.bulk_tasks import Asked, ComingTask, insert_tasks, prepared
from labeling_app.json_objects import load_object
from labeling_app.near_prompts import NUM_LANES, THRESHOLD, Lanes, NearPrompts, sign
from labeling_app.prompt_files import Defaults, Reject, read_prompts
from labeling_app.schema import Prompt, Response, Task, TaskResponse
from labeling_app.store import Store
from labeling_app.tasks import NewTask
from pipeline.core import storage
from pipeline.core.errors import UserError

_BATCH = 200
_RENAME = "give the line another id, or the file another name"
_PAUSE_S = 0.01  # between transactions: people's writes get their turn

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
    and, with `rejects_to`, kept as JSON Lines, with those that are almost the same as others; the
    good ones go in.

    Raises DeniedError, and UserError for a file that cannot be read at all.
    """
    with store.read() as session:
        project = require(session, who, "lead", "engineer").project_id
    for path in files:
        if path.is_fifo() or path.is_socket():
            raise UserError(f"{str(path)!r} is a pipe, and a file is read twice: save it first")
    if rejects_to is not None:
        _check_place(rejects_to, files)
    near = NearPrompts(store, project, _coming(files, defaults)) if dedupe else None
    lines = added = known = similar = 0
    rejects: list[Reject] = []
    left_out: list[Reject] = []
    for path in files:
        chosen = defaults or Defaults(source=path.stem[:64])
        for batch in _batches(read_prompts(path, chosen), _BATCH):
            tasks = [each for each in batch if isinstance(each, NewTask)]
            rejects += [each for each in batch if isinstance(each, Reject)]
            done = add_in_bulk(store, who, tasks, near)
            rejects += [
                Reject(path.name, 0, f"task {key!r} exists with other content; {_RENAME}", "")
                for key in done.clashes
            ]
            left_out += [
                Reject(path.name, 0, f"task {key!r} is almost the same as one that is there", "")
                for key in done.similar
            ]
            time.sleep(_PAUSE_S)
            lines += len(batch)
            added, known, similar = added + done.added, known + done.known, len(left_out)
            if progress is not None:
                progress(lines)
    kept = [*rejects, *left_out]
    if rejects_to is not None and (kept or rejects_to.exists()):
        _keep(kept, rejects_to)
    return PromptReport(lines, added, known, similar, tuple(rejects))


def _coming(files: Sequence[Path], defaults: Defaults | None) -> Iterator[Lanes]:
    """The files once through, for what of the store they must be compared with."""
    for path in files:
        rows = read_prompts(path, defaults or Defaults(source=""))
        for batch in _batches((row.prompt for row in rows if isinstance(row, NewTask)), 2000):
            yield sign(batch)


class Done(NamedTuple):
    """`similar` and `clashes`: keys of tasks left out, for one almost the same, or one of the same
    key that asks for something else."""

    added: int
    known: int
    similar: list[str]
    clashes: list[str]


def add_in_bulk(
    store: Store, who: Account, tasks: Sequence[NewTask], near: NearPrompts | None
) -> Done:
    """Checked tasks, in one transaction."""
    coming = prepared(tasks)

    def deed(session: Session) -> Done:
        caller = require(session, who, "lead", "engineer")
        store.plan_anew(session)
        if near is not None:
            # One import at a time, so that each sees what the others added before.
            store.lock(session, f"import {caller.project_id}")
            near.catch_up(session)
        there = _known(session, caller.project_id, [task.key for task in tasks])
        fresh: list[ComingTask] = []
        clashes: list[str] = []
        for each in coming:
            key = each.task.key
            if key not in there:
                there[key] = each.asked
                fresh.append(each)
            elif there[key] != each.asked:
                clashes.append(key)
        chosen = fresh if near is None else _unlike(session, caller.project_id, fresh, near)
        insert_tasks(session, caller.project_id, caller.pseudonym, store.clock(), chosen)
        known = len(tasks) - len(fresh) - len(clashes)
        taken = {each.task.key for each in chosen}
        similar = [each.task.key for each in fresh if each.task.key not in taken]
        return Done(len(chosen), known, similar, clashes)

    return store.transact(deed) if tasks else Done(0, 0, [], [])


def _unlike(
    session: Session, project: int, fresh: Sequence[ComingTask], near: NearPrompts
) -> list[ComingTask]:
    """Those that are not almost the same as one that is there or before them. A comparison of the
    very same prompt is another task if its answers are others."""
    compared = _compared(session, project, [each.content for each in fresh if each.compares])
    chosen: list[ComingTask] = []
    taken: dict[bool, Lanes] = {}
    for compares in (False, True):
        taken[compares] = np.empty((len(fresh), NUM_LANES), np.uint32)
    counts = {False: 0, True: 0}
    for each in fresh:
        compares, answers = each.compares, frozenset(each.answers)
        if each.task.purpose == "work":
            shares = (taken[compares][: counts[compares]] == each.lanes).mean(axis=1)
            like = near.holds(each.lanes, compares) or (len(shares) and shares.max() >= THRESHOLD)
            sets = compared.get(each.content) if compares else None
            if answers in sets if sets else like:
                continue
        if compares:
            compared.setdefault(each.content, set()).add(answers)
        taken[compares][counts[compares]] = each.lanes
        counts[compares] += 1
        chosen.append(each)
    return chosen


def _known(session: Session, project: int, keys: Sequence[str]) -> dict[str, Asked]:
    """What the tasks of these keys ask for that are there."""
    rows = session.execute(
        select(Task.key, Task.id, Task.kind, Task.purpose, Task.gold, Prompt.content_sha256)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .where(Task.project_id == project, Task.key.in_(keys))
    ).all()
    answers: dict[int, list[tuple[str, str]]] = {row.id: [] for row in rows}
    given = session.execute(
        select(TaskResponse.task_id, Response.model, Response.sha256)
        .join(Response, Response.id == TaskResponse.response_id)
        .where(TaskResponse.task_id.in_(list(answers)))
        .order_by(TaskResponse.task_id, TaskResponse.position)
    )
    for task, model, digest in given:
        answers[task].append((model, digest))
    return {
        row.key: (
            row.kind,
            row.purpose,
            tuple(row.gold or ()),
            row.content_sha256,
            tuple(answers[row.id]),
        )
        for row in rows
    }


def _compared(
    session: Session, project: int, contents: Sequence[str]
) -> dict[str, set[frozenset[str]]]:
    """By prompt, the sets of answers that are compared already, as digests."""
    rows = session.execute(
        select(Prompt.content_sha256, Task.id, Response.sha256)
        .join(Task, Task.prompt_id == Prompt.id)
        .join(TaskResponse, TaskResponse.task_id == Task.id)
        .join(Response, Response.id == TaskResponse.response_id)
        .where(
            Prompt.project_id == project,
            Prompt.content_sha256.in_(set(contents)),
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


def _check_place(path: Path, files: Sequence[Path]) -> None:
    """Before anything is imported. Raises UserError for rejects that could not be written."""
    if any(path.exists() and file.exists() and path.samefile(file) for file in files):
        raise UserError(f"{str(path)!r} is one of the prompt files; keep the rejects elsewhere")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        can = os.access(path.parent, os.W_OK) and (not path.exists() or _holds_rejects(path))
    except OSError:
        can = False
    if not can:
        raise UserError(
            f"cannot write rejects to {str(path)!r}; name a new file in a folder of yours"
        )


def _holds_rejects(path: Path) -> bool:
    """Whether an earlier import wrote it: nothing else is written over."""
    with path.open("rb") as file:
        first = file.readline(1 << 20)
    try:
        return not first or set(load_object(first)) == {"file", "line", "why", "text"}
    except UserError:
        return False


def _keep(rejects: Iterable[Reject], path: Path) -> None:
    lines = [json.dumps(dataclasses.asdict(reject), ensure_ascii=False) for reject in rejects]
    with storage.atomic_file(str(path)) as part:
        Path(part).write_text("".join(f"{line}\n" for line in lines), "utf-8", errors="replace")


def _batches(rows: Iterable[Any], size: int) -> Iterable[list[Any]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
