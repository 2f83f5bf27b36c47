"""A hired workforce: a batch of tasks goes out as JSON Lines, with the instructions and with known
answers that look like work; it comes back as labels, taken only if enough of these are right."""

import dataclasses
import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from labeling_app import auth
from labeling_app.agreement import tau_b
from labeling_app.assignment import Area, new_lease, shown_order
from labeling_app.auth import Account, Caller, require
from labeling_app.guidelines import acknowledge, need_newest
from labeling_app.json_objects import load_object
from labeling_app.projects import settings_of
from labeling_app.prompt_files import Reject
from labeling_app.review_requests import request_review
from labeling_app.schema import (
    Demonstration,
    InstructionVersion,
    Lease,
    Project,
    Prompt,
    Slot,
    Task,
    VendorBatch,
    VendorItem,
)
from labeling_app.store import Store, check_name, check_text, record_event
from labeling_app.submissions import submit_comparison, submit_demonstration
from labeling_app.tasks import answers_of, messages_of
from labeling_app.verdicts import Verdict
from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.identity import sha256_text, unit_interval

TASKS, INSTRUCTIONS = "tasks.jsonl", "instructions.md"
MAX_BATCH = 10_000
MIN_GOLD = 5  # fewer known answers say too little about a batch of rankings


@dataclasses.dataclass(frozen=True)
class BatchOut:
    batch: int
    items: int
    gold: int


@dataclasses.dataclass(frozen=True)
class BatchBack:
    """`agreement`: share of the known answers that came back right; None: there were none."""

    accepted: bool
    labels: int
    agreement: float | None
    rejects: tuple[Reject, ...]


def send_out(
    store: Store, who: Account, vendor: str, area: Area, count: int, folder: Path, gold: float = 0.1
) -> BatchOut:
    """Reserve up to `count` open slots for the vendor and write tasks.jsonl and instructions.md.

    Of rankings a share `gold` is known answers. Raises UserError if nothing is open, or if there
    are too few known answers to judge a batch of rankings by.
    """
    check_name(vendor, "the vendor's name")
    if not 1 <= count <= MAX_BATCH:
        raise UserError(f"a batch of {count}; 1 to {MAX_BATCH:,} tasks will do")
    if not 0 <= gold <= 0.5:
        raise UserError(f"a gold share of {gold}; 0 to 0.5 will do")
    with store.write() as session:
        caller = require(session, who, "lead")
        version = need_newest(session, caller.project_id)
        batch = VendorBatch(
            project_id=caller.project_id,
            vendor=vendor[:64],
            version_id=version.id,
            state="out",
            created_at=store.clock(),
        )
        session.add(batch)
        session.flush()
        work = _reserve(session, caller, area, count)
        if not work:
            raise UserError(f"no open task to {area}; nothing goes out")
        known = _known(session, caller, round(len(work) * gold)) if area == "compare" else []
        if area == "compare" and gold and len(known) < MIN_GOLD:
            raise UserError(
                f"{len(known)} known answers for {len(work)} tasks at a gold share of {gold:g}, and"
                f" at least {MIN_GOLD} are needed to judge a batch: send more tasks, raise --gold"
                " (to 0.5 at most), add gold tasks, or say --gold 0 and take what comes"
            )
        lines = [_line(store, session, batch, task, slot) for task, slot in work]
        lines += [_line(store, session, batch, task, None) for task in known]
        lines.sort(key=lambda line: str(line["item"]))  # items are random: so is the order
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from None
        if (folder / TASKS).exists():
            raise UserError(f"{folder / TASKS} is there from another batch; name another folder")
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        for name, content in ((TASKS, text), (INSTRUCTIONS, version.body_md)):
            with storage.atomic_file(str(folder / name)) as part:
                Path(part).write_text(content, "utf-8")
        record_event(
            session,
            store.clock(),
            caller.pseudonym,
            "vendor-out",
            f"batch:{batch.id}",
            vendor=vendor,
            items=len(work),
            gold=len(known),
        )
        return BatchOut(batch.id, len(work), len(known))


def take_back(store: Store, who: Account, batch_id: int, path: Path) -> BatchBack:
    """The vendor's labels: one JSON object a line, {item, answer} or {item, ranks} in the order
    of the task's answers as they were sent. Lines that cannot be used are named; the good ones
    come in if the known answers among them are right often enough, else none does.

    Raises UserError for a batch that is not out. A rerun after a kill adds what is missing; it
    must be of the same file, for that was judged.
    """
    data = _bytes(path)
    rows, rejects = _read(path.name, data)
    digest = hashlib.sha256(data).hexdigest()
    with store.write() as session:
        caller = require(session, who, "lead")
        batch = _batch(session, caller, batch_id)
        if batch.file_sha256 not in ("", digest):
            raise UserError(
                f"batch {batch_id} is coming in from another file (sha256"
                f" {batch.file_sha256[:12]}…); give that one again"
            )
        settings = settings_of(session, caller.project_id)
        items = {
            item.item: item
            for item in session.scalars(select(VendorItem).where(VendorItem.batch_id == batch.id))
        }
        good: dict[str, dict[str, Any]] = {}
        for number, row in rows:
            problem = _problem(session, items, good, row)
            if problem:
                rejects.append(Reject(path.name, number, problem, json.dumps(row)[:200]))
            else:
                good[str(row["item"])] = row
        gold = [item for item in items.values() if item.slot_id is None]
        right = sum(
            _is_right(session, item, good.get(item.item), settings.gold_mark) for item in gold
        )
        agreement = right / len(gold) if gold else None
        batch.gold_agreement = agreement
        judged = batch.file_sha256 == digest  # by an earlier run, which was killed
        if not judged and agreement is not None and agreement < settings.vendor_mark:
            _end(store, session, caller, batch, items.values(), "refused")
            return BatchBack(False, 0, agreement, tuple(rejects))
        batch.file_sha256 = digest  # from here on the labels are taken, whatever happens
        vendor, n = batch.vendor, session.get_one(InstructionVersion, batch.version_id).n
    labels = _submit(store, who, vendor, n, batch_id, good)
    with store.write() as session:
        caller = require(session, who, "lead")
        batch = _batch(session, caller, batch_id)
        mine = session.scalars(select(VendorItem).where(VendorItem.batch_id == batch.id)).all()
        _end(store, session, caller, batch, mine, "accepted")
    return BatchBack(True, labels, agreement, tuple(rejects))


def withdraw(store: Store, who: Account, batch_id: int) -> None:
    """End a batch that will not come back; its tasks are open again. One whose file was judged good
    and came in in part ends as accepted: what is in stays."""
    with store.write() as session:
        caller = require(session, who, "lead")
        batch = _batch(session, caller, batch_id)
        items = session.scalars(select(VendorItem).where(VendorItem.batch_id == batch.id)).all()
        state = "accepted" if batch.file_sha256 else "withdrawn"
        _end(store, session, caller, batch, items, state)


def _reserve(session: Session, caller: Caller, area: Area, count: int) -> list[tuple[Task, Slot]]:
    kinds = ("compare",) if area == "compare" else ("demo",)
    slots = session.scalars(
        select(Slot)
        .where(
            Slot.project_id == caller.project_id,
            Slot.kind.in_(kinds),
            Slot.state == "free",
            Slot.slot_no == 0,  # one label a task: a vendor counts as one voice
        )
        .order_by(Slot.priority.desc(), Slot.task_id)
        .limit(count)
        .with_for_update(skip_locked=True, of=Slot, key_share=True)
    ).all()
    for slot in slots:
        slot.state = "vendor"
    session.flush()
    return [(session.get_one(Task, slot.task_id), slot) for slot in slots]


def _known(session: Session, caller: Caller, count: int) -> list[Task]:
    tasks = session.scalars(
        select(Task).where(
            Task.project_id == caller.project_id, Task.purpose == "gold", Task.kind == "compare"
        )
    ).all()
    return sorted(tasks, key=lambda task: unit_interval(task.key, "vendor"))[:count]


def _line(
    store: Store, session: Session, batch: VendorBatch, task: Task, slot: Slot | None
) -> dict[str, Any]:
    """What the vendor sees: no key, no source, no model."""
    item = store.token()
    answers = [row.text for row in answers_of(session, task.id)]
    order = shown_order(item, batch.vendor, len(answers))
    session.add(
        VendorItem(
            item=item,
            batch_id=batch.id,
            task_id=task.id,
            slot_id=slot.id if slot else None,
            shown_order=order,
        )
    )
    prompt = messages_of(session.get_one(Prompt, task.prompt_id).messages)
    line: dict[str, Any] = {
        "item": item,
        "task": "rank" if task.kind == "compare" else "write",
        "prompt": [{"role": turn.role, "content": turn.text} for turn in prompt],
    }
    if answers and task.kind == "compare":
        line["answers"] = [answers[position] for position in order]
    return line


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None


def _read(name: str, content: bytes) -> tuple[list[tuple[int, dict[str, Any]]], list[Reject]]:
    rows: list[tuple[int, dict[str, Any]]] = []
    rejects: list[Reject] = []
    for number, data in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not data.strip():
            continue
        try:
            rows.append((number, load_object(data)))
        except UserError as error:
            rejects.append(Reject(name, number, str(error)[:200], repr(data[:200])))
    return rows, rejects


def _problem(
    session: Session,
    items: dict[str, VendorItem],
    good: dict[str, dict[str, Any]],
    row: dict[str, Any],
) -> str:
    """Why a line cannot be used; "" if it can."""
    item = items.get(str(row.get("item")))
    if item is None:
        return "this item is not of this batch"
    if item.item in good:
        return "this item came twice; the first stands"
    try:
        if session.get_one(Task, item.task_id).kind != "compare":
            answer = row.get("answer")
            check_text(answer if isinstance(answer, str) else "", "answer")
            return ""
        ranks = row.get("ranks")
        size = len(item.shown_order)
        if not isinstance(ranks, list) or len(cast(list[Any], ranks)) != size:
            return f"ranks must be {size} numbers"
        if any(type(rank) is not int or not 1 <= rank <= size for rank in cast(list[Any], ranks)):
            return f"each rank is a whole number from 1 to {size}"
    except UserError as error:
        return str(error)
    return ""


def _ranks(item: VendorItem, row: dict[str, Any]) -> tuple[int, ...]:
    """In the order of the task's answers."""
    by_position = dict(zip(item.shown_order, cast(list[int], row["ranks"]), strict=True))
    return tuple(by_position[position] for position in sorted(by_position))


def _is_right(session: Session, item: VendorItem, row: dict[str, Any] | None, mark: float) -> bool:
    """A known answer that did not come back counts as wrong."""
    gold = session.get_one(Task, item.task_id).gold
    if row is None or gold is None:
        return False
    tau = tau_b(_ranks(item, row), gold)
    return tau is not None and tau >= mark


def _submit(
    store: Store, who: Account, vendor: str, n: int, batch_id: int, good: dict[str, dict[str, Any]]
) -> int:
    """Through the very calls that people's labels go through, by the vendor's own account."""
    with store.read() as session:
        project = require(session, who, "lead").project_id
        name = session.get_one(Project, project).name
    account = f"vendor-{sha256_text(vendor)[:12]}"
    auth.create_simulated(store, account, "labeler", name)
    them = auth.act_as(store, account, name)
    acknowledge(store, them, n)
    labels = 0
    for item_id in sorted(good):
        token = _lease_for(store, them, batch_id, item_id)
        if token is None:
            continue
        row, key = good[item_id], f"vendor:{item_id}"
        with store.read() as session:
            item = session.get_one(VendorItem, item_id)
            ranked = session.get_one(Task, item.task_id).kind == "compare"
            ranks = _ranks(item, row) if ranked else None
        if ranks is not None:
            submit_comparison(store, them, token, Verdict(ranks), key, vendor=vendor[:64])
        else:
            submit_demonstration(store, them, token, str(row["answer"]), key, vendor=vendor[:64])
        labels += 1
    with store.write() as session:  # nothing is known of a written answer: a peer reads each
        keys = [f"vendor:{item_id}" for item_id in sorted(good)]
        for start in range(0, len(keys), 500):
            some = Demonstration.idem_key.in_(keys[start : start + 500])
            for label in session.scalars(select(Demonstration.id).where(some)).all():
                why = f"written by the vendor {vendor[:64]}"
                request_review(session, project, "demo", label, why, store.clock())
    return labels


def _lease_for(store: Store, them: Account, batch_id: int, item_id: str) -> str | None:
    """A lease on the item's reserved slot; None for gold, and for what is handed in already."""

    def deed(session: Session) -> str | None:
        caller = require(session, them, "labeler")
        item = session.get_one(VendorItem, item_id)
        batch = session.get_one(VendorBatch, batch_id, with_for_update={"key_share": True})
        if item.slot_id is None or batch.state != "out":
            return None
        slot = session.get_one(Slot, item.slot_id)
        held = session.scalars(
            select(Lease).where(Lease.slot_id == slot.id, Lease.released.is_(None))
        ).one_or_none()
        if held is not None:
            return held.token if held.user_id == caller.id else None
        if slot.state not in ("vendor", "free"):  # free: an earlier try was killed, its lease ended
            return None
        version = session.get_one(InstructionVersion, batch.version_id)
        task = session.get_one(Task, slot.task_id)
        settings = settings_of(session, caller.project_id)
        slot.state = "leased"
        lasts = dt.timedelta(minutes=settings.lease_minutes)
        lease = new_lease(store, session, caller, slot, task, version, lasts, assisted=False)
        lease.shown_order = item.shown_order
        return lease.token

    return store.transact(deed)


def _batch(session: Session, caller: Caller, batch_id: int) -> VendorBatch:
    batch = session.get(VendorBatch, batch_id, with_for_update={"key_share": True})
    if batch is None or batch.project_id != caller.project_id:
        raise UserError(f"no batch {batch_id} in this project")
    if batch.state != "out":
        raise UserError(f"batch {batch_id} is {batch.state}; nothing more comes of it")
    return batch


def _end(
    store: Store,
    session: Session,
    caller: Caller,
    batch: VendorBatch,
    items: Sequence[VendorItem] | Any,
    state: str,
) -> None:
    """Whatever did not come back is open again."""
    for item in items:
        if item.slot_id is not None:
            slot = session.get_one(Slot, item.slot_id)
            if slot.state == "vendor":
                slot.state = "free"
    batch.state, batch.ended_at = state, store.clock()
    session.flush()
    record_event(
        session,
        store.clock(),
        caller.pseudonym,
        f"vendor-{state}",
        f"batch:{batch.id}",
        agreement=batch.gold_agreement,
    )
