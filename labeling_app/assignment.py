"""The queue: slots of tasks, and leases, by which one person at a time holds one slot.

A lease that has expired returns its slot in the transaction of whoever asks next.
"""

import dataclasses
import datetime as dt
import functools
from typing import Any, Literal, cast

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Select,
    bindparam,
    exists,
    func,
    literal,
    select,
    union_all,
    update,
)
from sqlalchemy.orm import Session

from labeling_app.auth import WORKERS, Account, Caller, DeniedError, require
from labeling_app.guidelines import require_read
from labeling_app.projects import Settings, settings_of
from labeling_app.qualification import NotQualifiedError, standing_of
from labeling_app.schema import (
    Demonstration,
    Draft,
    InstructionVersion,
    Lease,
    Project,
    Prompt,
    RankedSet,
    Review,
    Slot,
    Task,
    TaskResponse,
)
from labeling_app.store import Store, record_event
from labeling_app.tasks import Kind, answers_of, messages_of, slot_row
from pipeline.core.errors import UserError
from pipeline.core.identity import sha256_text, unit_interval
from pipeline.core.records import Message

Area = Literal["write", "compare"]
KINDS_OF: dict[Area, tuple[Kind, ...]] = {"write": ("demo", "question"), "compare": ("compare",)}
ENDED_BY_CHOICE = ("submitted", "skipped", "flagged")


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer as a labeler sees it: `position` is its place in the ranking, not on the screen;
    nothing tells the model."""

    position: int
    text: str


@dataclasses.dataclass(frozen=True)
class SavedDraft:
    rev: int
    body: dict[str, Any]
    saved_at: dt.datetime


@dataclasses.dataclass(frozen=True)
class Work:
    """A leased task. `answers` stand in this person's order; nothing tells gold from work.

    `purpose`: work, or correct and adjudicate, where `draft` begins with the label as it stands.
    `qualifies`: it is one of the qualification set, as its person knows.
    """

    token: str
    task_id: int
    kind: Kind
    prompt: tuple[Message, ...]
    answers: tuple[Answer, ...]
    instruction_version: int
    expires: dt.datetime
    draft: SavedDraft | None
    purpose: str
    corrects: int | None
    assisted: bool
    qualifies: bool


class LeaseLostError(UserError):
    """The slot is no longer the caller's: expired and taken, submitted, or never theirs."""


def next_task(
    store: Store, who: Account, area: Area, lease: dt.timedelta | None = None
) -> Work | None:
    """The task the caller holds, or a new one: first where they left a draft, then by priority
    and age; never one that they have answered, skipped or flagged, or whose labels they reviewed.
    None: nothing for them now.

    Raises DeniedError for other roles, UnreadError if the newest instructions are not
    acknowledged, NotQualifiedError once the tries at the qualification set are used up.
    """
    kinds = KINDS_OF[area]

    def deed(session: Session) -> Work | None:
        caller = require(session, who, *WORKERS)
        store.lock(session, f"person {caller.id}")
        version = require_read(session, caller.project_id, caller.id)
        project = session.get_one(Project, caller.project_id)
        settings = settings_of(session, caller.project_id)
        lasts = lease or dt.timedelta(minutes=settings.lease_minutes)
        if held := _held(session, caller, kinds):
            held.expires = store.clock() + lasts
            held.version_id = version.id  # what they have read since is what they go on by
            return work_of(session, held)
        if project.paused:
            return None
        release_expired(session, store.clock())
        slot = _choose(session, caller, kinds, settings)
        if slot is None:
            return None
        task = session.get_one(Task, slot.task_id)
        row = _lease(store, session, caller, slot, task, version, settings, lasts)
        return work_of(session, row, task)

    return store.transact(deed)


def take_task(store: Store, who: Account, key: str) -> Work | None:
    """A slot of one named task, for a simulated account that imports labels: people take what
    the queue gives. None: no slot is free for it."""

    return store.transact(lambda session: taken(store, session, who, key))


def taken(store: Store, session: Session, who: Account, key: str) -> Work | None:
    """The same, within a transaction."""
    caller = require(session, who, *WORKERS)
    if not caller.simulated:
        raise DeniedError("only simulated accounts take a task by its key")
    version = require_read(session, caller.project_id, caller.id)
    task = session.scalars(
        select(Task).where(Task.project_id == caller.project_id, Task.key == key)
    ).one_or_none()
    if task is None:
        return None
    mine = (Lease.task_id == task.id) & (Lease.user_id == caller.id)
    held = session.scalars(select(Lease).where(mine, Lease.released.is_(None))).one_or_none()
    if held is not None:
        return work_of(session, held)
    release_expired(session, store.clock())
    mine_free = (
        _FREE.where(Slot.task_id == task.id).limit(1).with_for_update(of=Slot, key_share=True)
    )
    values = {"person": caller.id, "project": caller.project_id}
    slot = session.scalars(mine_free, values).one_or_none()
    if slot is None:
        return None
    settings = settings_of(session, caller.project_id)
    lasts = dt.timedelta(minutes=settings.lease_minutes)
    row = _lease(store, session, caller, slot, task, version, settings, lasts)
    return work_of(session, row, task)


def shown_order(key: str, name: str, num_answers: int) -> list[int]:
    """Positions of the answers in one person's order: fixed for person and task, else random."""
    return sorted(range(num_answers), key=lambda place: sha256_text(f"{key}\0{name}\0{place}"))


def shown_order_of(store: Store, who: Account, token: str) -> list[int]:
    """Positions of the answers in the order in which the caller was shown them."""
    with store.read() as session:
        caller = require(session, who, *WORKERS)
        found = session.scalars(
            select(Lease.shown_order).where(Lease.token == token, Lease.user_id == caller.id)
        ).one_or_none()
    if found is None:
        raise LeaseLostError("this task was not given to you; take the next one")
    return found


def release_expired(session: Session, now: dt.datetime) -> None:
    """Give back the slots of all leases whose time is over."""
    expired = session.execute(
        select(Lease.id, Lease.slot_id)
        .where(Lease.released.is_(None), Lease.expires <= now)
        .limit(1000)
        .with_for_update(skip_locked=True, key_share=True)
    ).all()
    if expired:
        session.execute(
            update(Lease)
            .where(Lease.id.in_([row.id for row in expired]), Lease.released.is_(None))
            .values(released=now, outcome="expired")
        )
        free_slots(session, [row.slot_id for row in expired])


def free_slots(session: Session, slot_ids: list[int]) -> None:
    """Put leased slots back: into the queue, or, those made for one person's gold, away."""
    of_gold = exists().where(Task.id == Slot.task_id, Task.purpose != "work")
    leased = Slot.id.in_(slot_ids) & (Slot.state == "leased")
    session.execute(
        update(Slot).where(leased, of_gold).values(state="void"),
        execution_options={"synchronize_session": False},
    )
    session.execute(
        update(Slot).where(leased).values(state="free"),
        execution_options={"synchronize_session": False},
    )
    session.expire_all()


def work_of(session: Session, lease: Lease, task: Task | None = None) -> Work:
    """What a person is shown of their lease. `task`: its task, where it is at hand."""
    task = task or session.get_one(Task, lease.task_id)
    texts = [row.text for row in answers_of(session, task.id)] if lease.shown_order else []
    draft = session.get(Draft, (task.id, lease.user_id))
    return Work(
        token=lease.token,
        task_id=task.id,
        kind=cast(Kind, task.kind),
        prompt=messages_of(session.get_one(Prompt, task.prompt_id).messages),
        answers=tuple(Answer(position, texts[position]) for position in lease.shown_order),
        instruction_version=session.get_one(InstructionVersion, lease.version_id).n,
        expires=lease.expires,
        draft=SavedDraft(draft.rev, draft.body, draft.saved_at) if draft else None,
        purpose=lease.purpose,
        corrects=lease.corrects,
        assisted=lease.assisted,
        qualifies=task.purpose == "qualification",
    )


def new_lease(
    store: Store,
    session: Session,
    caller: Caller,
    slot: Slot,
    task: Task,
    version: InstructionVersion,
    lasts: dt.timedelta,
    *,
    assisted: bool,
    purpose: str = "work",
    corrects: int | None = None,
) -> Lease:
    """Within a transaction: the slot is in the caller's hands. The constraints of the leases say
    that it was in nobody's."""
    now = store.clock()
    num_answers = session.scalar(select(func.count()).where(TaskResponse.task_id == task.id))
    row = Lease(
        slot_id=slot.id,
        task_id=task.id,
        user_id=caller.id,
        version_id=version.id,
        token=store.token(),
        purpose=purpose,
        corrects=corrects,
        assisted=assisted,
        shown_order=shown_order(task.key, caller.pseudonym, num_answers or 0),
        acquired=now,
        expires=now + lasts,
    )
    session.add(row)
    session.flush()
    record_event(
        session, now, caller.pseudonym, "leased", f"task:{task.id}", slot=slot.slot_no, why=purpose
    )
    return row


def _lease(
    store: Store,
    session: Session,
    caller: Caller,
    slot: Slot,
    task: Task,
    version: InstructionVersion,
    settings: Settings,
    lasts: dt.timedelta,
) -> Lease:
    slot.state = "leased"
    draw = unit_interval(f"{task.project_id}:{task.key}:{caller.pseudonym}", "unassisted")
    assisted = draw >= settings.unassisted_share and not caller.simulated
    return new_lease(store, session, caller, slot, task, version, lasts, assisted=assisted)


def _held(session: Session, caller: Caller, kinds: tuple[Kind, ...]) -> Lease | None:
    # EXISTS, not a join: SQLite, which keeps no statistics, might go through all tasks first.
    here = exists().where(
        Task.id == Lease.task_id, Task.kind.in_(kinds), Task.project_id == caller.project_id
    )
    return session.scalars(
        select(Lease)
        .where(Lease.user_id == caller.id, Lease.released.is_(None), here)
        # A correction is what they asked for last.
        .order_by(Lease.purpose == "work", Lease.id)
        .limit(1)
        .with_for_update(of=Lease, key_share=True)
    ).one_or_none()


def _choose(
    session: Session, caller: Caller, kinds: tuple[Kind, ...], settings: Settings
) -> Slot | None:
    standing = standing_of(session, caller, settings)
    if standing.needed:
        last = f"the last try had {standing.score:.0%} right" if standing.score is not None else ""
        if standing.tries_left < 1:
            raise NotQualifiedError(
                f"the qualification was not passed: {last}, {settings.pass_mark:.0%} are needed;"
                " your lead can give you another try"
            )
        slot = _known_answer(session, caller, kinds, "qualification")
        if slot is None and "compare" in kinds:
            raise NotQualifiedError(
                (f"{last}, {settings.pass_mark:.0%} are needed; " if last else "")
                + "the qualification set has no task left that you have not seen; ask your lead to"
                " add some"
            )
        return slot
    if "compare" in kinds and not caller.simulated and _is_gold_turn(session, caller, settings):
        gold = _known_answer(session, caller, kinds, "gold")
        if gold is not None:
            return gold
    drafted = exists().where(Draft.task_id == Slot.task_id, Draft.user_id == caller.id)
    has_drafts = session.scalar(select(exists().where(Draft.user_id == caller.id)))
    if has_drafts:
        mine = Slot.skill.in_(("", *caller.skills))
        query = _FREE.where(drafted, mine, Slot.kind.in_(kinds)).limit(1)
        values = {"person": caller.id, "project": caller.project_id}
        if slot := session.scalars(query, values).one_or_none():
            return slot
    return _most_urgent(session, caller, kinds)


def _most_urgent(session: Session, caller: Caller, kinds: tuple[Kind, ...]) -> Slot | None:
    """Of each kind and skill the first in the queue's index; then the first of these."""
    queues = [(kind, skill) for kind in kinds for skill in ("", *caller.skills)]
    if len(queues) > 1:
        values = {"person": caller.id, "project": caller.project_id}
        for number, (kind, skill) in enumerate(queues):
            values |= {f"kind{number}": kind, f"skill{number}": skill}
        heads = session.execute(_heads(len(queues)), values).all()
        first = sorted(heads, key=lambda head: (-head.priority, head.task_id))
        queues = [queues[head.queue] for head in first]
    for kind, skill in queues:
        values = {"person": caller.id, "project": caller.project_id, "kind": kind, "skill": skill}
        if slot := session.scalars(_FIRST, values).one_or_none():
            return slot
    return None


def _free() -> Select[Slot]:
    """Free slots of tasks that this person has not dealt with, the most urgent first."""
    mine = exists().where(
        Lease.user_id == bindparam("person"),
        Lease.task_id == Slot.task_id,
        Lease.outcome.in_(ENDED_BY_CHOICE) | Lease.released.is_(None),
    )
    here = Slot.project_id == bindparam("project")
    return (
        select(Slot)
        .where(here, Slot.state == "free", ~mine, ~_read("demo"), ~_read("compare"))
        .order_by(Slot.priority.desc(), Slot.task_id, Slot.slot_no)
    )


def _read(kind: str) -> ColumnElement[bool]:
    """Whether this person reviewed a label of the slot's task: theirs would be no new opinion."""
    label = RankedSet if kind == "compare" else Demonstration
    return exists().where(
        label.task_id == Slot.task_id,
        Review.target_kind == kind,
        Review.target_id == label.id,
        Review.reviewer_id == bindparam("person"),
    )


# Made once: to put a statement together costs more than to run it.
_FREE = _free()
_FIRST = (
    _FREE.where(Slot.kind == bindparam("kind"), Slot.skill == bindparam("skill"))
    .limit(1)
    .with_for_update(skip_locked=True, of=Slot, key_share=True)
)


@functools.cache
def _heads(num: int) -> CompoundSelect[int, int, int]:
    """Priority, task and number of the first slot of each of `num` queues."""
    firsts = [
        _FREE.with_only_columns(Slot.priority, Slot.task_id, literal(number).label("queue"))
        .where(Slot.kind == bindparam(f"kind{number}"), Slot.skill == bindparam(f"skill{number}"))
        .limit(1)
        .subquery()
        for number in range(num)
    ]
    return union_all(*(select(first) for first in firsts))


def _is_gold_turn(session: Session, caller: Caller, settings: Settings) -> bool:
    """Drawn by the person and the number of their leases: no pattern to be learnt."""
    if not settings.gold_share:
        return False
    count = session.scalar(select(func.count()).where(Lease.user_id == caller.id))
    return unit_interval(f"{caller.pseudonym}:{count}", "gold") < settings.gold_share


def _known_answer(
    session: Session, caller: Caller, kinds: tuple[Kind, ...], purpose: str
) -> Slot | None:
    """A slot of its own on a gold or qualification task that this person has not had."""
    had = exists().where(
        Lease.user_id == caller.id,
        Lease.task_id == Task.id,
        Lease.outcome.in_(ENDED_BY_CHOICE) | Lease.released.is_(None),
    )
    candidates = session.scalars(
        select(Task)
        .where(
            Task.project_id == caller.project_id,
            Task.purpose == purpose,
            Task.state == "open",
            Task.kind.in_(kinds),
            Task.skill.in_(("", *caller.skills)),
            ~had,
        )
        .order_by(Task.id)
        .limit(200)
    ).all()
    if not candidates:
        return None
    task = min(candidates, key=lambda each: sha256_text(f"{caller.pseudonym}\0{each.key}"))
    number = session.scalar(select(func.count()).where(Slot.task_id == task.id)) or 0
    slot = Slot(**slot_row(task, number, "leased"))
    session.add(slot)
    session.flush()
    return slot
