"""How good the labels are: agreement, known answers, position bias, odd times. A signal leads to
a peer's review and to nothing else."""

import dataclasses
import datetime as dt
import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Select, case, exists, func, select
from sqlalchemy.orm import Session

from labeling_app.agreement import (
    Estimate,
    alpha_interval,
    mean_interval,
    preferences,
    share_interval,
    tau_b,
)
from labeling_app.auth import Account, require
from labeling_app.projects import settings_of
from labeling_app.ranking import standard
from labeling_app.review_requests import request_review
from labeling_app.schema import Assist, Demonstration, Lease, RankedItem, RankedSet, Task, User
from labeling_app.store import Store

_MIN_FOR_TIMES = 20  # labels of a kind, before one of them can be odd
_ODD = 3.5  # modified z-score (Iglewicz and Hoaglin 1993)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """One person's ranking of any purpose, in the order of the answers: as it stands; of a known
    answer as it was first given, for what is corrected later may have been found out."""

    id: int
    task_id: int
    user_id: int
    purpose: str
    gold: tuple[int, ...] | None
    ranks: tuple[int, ...]
    shown_order: tuple[int, ...]
    active_ms: int
    at: dt.datetime


@dataclasses.dataclass(frozen=True)
class Agreement:
    """`ordinal`: alpha of the ranks of each answer; `nominal`: alpha of better, tie, worse for
    each two answers; `tau`: mean tau-b of each two people on one task. None: nothing to say."""

    ordinal: Estimate | None
    nominal: Estimate | None
    tau: Estimate | None


@dataclasses.dataclass(frozen=True)
class Calibration:
    """One labeler: right on gold (Wilson's interval), and agreement with peers."""

    user_id: int
    name: str
    labels: int
    gold: Estimate | None
    tau: Estimate | None


@dataclasses.dataclass(frozen=True)
class OddTime:
    """A label whose time at work is far from those of its kind, in seconds."""

    kind: str
    label_id: int
    task_id: int
    user_id: int
    seconds: float
    median_s: float


@dataclasses.dataclass(frozen=True)
class Arm:
    """Answers written with help offered, or without: to see whether help anchors people.

    `changed`: of each answer that began with a draft, the share of it that differs, 0 to 1.
    """

    assisted: bool
    labels: int
    median_active_s: float
    median_chars: float
    by_origin: Mapping[str, int]
    median_edit_chars: float | None
    changed: tuple[float, ...]


def rankings(store: Store, who: Account, since: dt.datetime | None = None) -> list[Ranking]:
    """All rankings of the project as they stand, those that cannot be ranked left out."""
    with store.read() as session:
        caller = require(session, who, "lead", "engineer", "reviewer")
        return _rankings(session, caller.project_id, since)


def agreement(found: Sequence[Ranking], seed: int = 0) -> Agreement:
    """Of tasks that two people or more ranked; qualification does not count."""
    units, pairs, taus = _compared(found)
    return Agreement(
        alpha_interval(units, "ordinal", seed),
        alpha_interval(pairs, "nominal", seed),
        mean_interval(taus, seed),
    )


def agreement_by_week(found: Sequence[Ranking]) -> list[tuple[dt.date, Agreement]]:
    """Per week (its Monday) in which the task's last ranking came in."""
    last: dict[int, dt.datetime] = {}
    for each in found:
        last[each.task_id] = max(last.get(each.task_id, each.at), each.at)
    weeks: dict[dt.date, list[Ranking]] = defaultdict(list)
    for each in found:
        weeks[_monday(last[each.task_id])].append(each)
    return [(week, agreement(weeks[week])) for week in sorted(weeks)]


def calibration(store: Store, who: Account, found: Sequence[Ranking]) -> list[Calibration]:
    """Each person who ranked, by name; reviewers see it too, labelers only their own."""
    with store.read() as session:
        caller = require(session, who, "lead", "engineer", "reviewer")
        mark = settings_of(session, caller.project_id).gold_mark
        names = dict(session.execute(select(User.id, User.name)).all())
    by_person: dict[int, list[Ranking]] = defaultdict(list)
    for each in found:
        by_person[each.user_id].append(each)
    peers = _taus_by_person(found)
    rows: list[Calibration] = []
    for user_id, mine in by_person.items():
        gold = [
            tau_b(each.ranks, each.gold) for each in mine if each.gold and each.purpose == "gold"
        ]
        right = sum((tau or 0.0) >= mark for tau in gold)
        rows.append(
            Calibration(
                user_id,
                names[user_id],
                len(mine),
                share_interval(right, len(gold)),
                mean_interval(peers.get(user_id, [])),
            )
        )
    return sorted(rows, key=lambda row: row.name)


def own_agreement(store: Store, who: Account) -> tuple[Estimate | None, Estimate | None]:
    """The caller's own: right on gold, and tau-b with peers. Nobody else's. Of labels as they were
    first given, up to the last midnight (UTC): figures that moved with a label, or with its
    correction, would tell which task was gold."""
    midnight = store.clock().replace(hour=0, minute=0, second=0, microsecond=0)
    with store.read() as session:
        caller = require(session, who, "labeler", "reviewer", "lead")
        mark = settings_of(session, caller.project_id).gold_mark
        mine = select(RankedSet.task_id).where(RankedSet.user_id == caller.id)
        found = _rankings(session, caller.project_id, None, mine, first=True)
    found = [each for each in found if each.at < midnight]
    gold = [
        tau_b(each.ranks, each.gold)
        for each in found
        if each.gold and each.purpose == "gold" and each.user_id == caller.id
    ]
    right = sum((tau or 0.0) >= mark for tau in gold)
    peers = _taus_by_person(found).get(caller.id, [])
    return share_interval(right, len(gold)), mean_interval(peers)


def agreement_of_tasks(found: Sequence[Ranking]) -> list[tuple[int, dt.date, float]]:
    """Of each task that two people or more ranked: its id, the Monday of the week in which its
    last ranking came in, and the mean tau-b of each two of them (0 where it is not defined)."""
    rows: list[tuple[int, dt.date, float]] = []
    for group in _by_task(found):
        pairs = itertools.combinations(group, 2)
        taus = [tau_b(one.ranks, other.ranks) for one, other in pairs]
        mean = statistics.fmean(tau or 0.0 for tau in taus)
        rows.append((group[0].task_id, _monday(max(each.at for each in group)), mean))
    return rows


def best_place(ranking: Ranking) -> int | None:
    """Where on the screen the one best answer was; None if several tie for it."""
    best = [place for place, rank in enumerate(ranking.ranks) if rank == min(ranking.ranks)]
    return ranking.shown_order.index(best[0]) if len(best) == 1 else None


def position_bias(found: Sequence[Ranking]) -> dict[int, list[tuple[Estimate, float]]]:
    """For each K: how often the answer shown at each place was ranked best alone, beside the 1/K
    of nobody minding the place."""
    counts: dict[int, list[int]] = {}
    totals: dict[int, int] = defaultdict(int)
    for each in found:
        size = len(each.ranks)
        place = best_place(each)
        if place is not None:
            counts.setdefault(size, [0] * size)[place] += 1
            totals[size] += 1
    return {
        size: [
            (estimate, 1 / size)
            for count in counts[size]
            if (estimate := share_interval(count, totals[size])) is not None
        ]
        for size in sorted(counts)
    }


def odd_times(store: Store, who: Account, since: dt.datetime | None = None) -> list[OddTime]:
    """Labels of work that took far less, or far more, active time than others of their kind, by
    modified z-scores of the logarithm."""
    with store.read() as session:
        caller = require(session, who, "lead", "engineer", "reviewer")
        found: list[OddTime] = []
        for kind, model in (("demo", Demonstration), ("compare", RankedSet)):
            query = standing(model, caller.project_id, since).where(
                model.active_ms > 0, model.vendor == "", Task.purpose == "work"
            )
            rows = session.execute(query).all()
            logs = [math.log(row.active_ms) for row in rows]
            if len(logs) < _MIN_FOR_TIMES:
                continue
            middle = statistics.median(logs)
            spread = statistics.median(abs(value - middle) for value in logs)
            for row, value in zip(rows, logs, strict=True):
                if spread > 0 and 0.6745 * abs(value - middle) / spread > _ODD:
                    found.append(
                        OddTime(
                            kind,
                            row.id,
                            row.task_id,
                            row.user_id,
                            row.active_ms / 1000,
                            math.exp(middle) / 1000,
                        )
                    )
        return found


def ask_peers(store: Store, who: Account, odd: Iterable[OddTime]) -> int:
    """Let a peer read these labels; returns how many were not asked for already."""
    with store.write() as session:
        caller = require(session, who, "lead")
        return sum(
            request_review(
                session,
                caller.project_id,
                each.kind,
                each.label_id,
                f"took {each.seconds:.0f} s; the median is {each.median_s:.0f} s",
                store.clock(),
            )
            for each in odd
        )


def arms(store: Store, who: Account, since: dt.datetime | None = None) -> list[Arm]:
    """Written answers of one's own people with help offered beside those without, of days (UTC) on
    which a model helped anybody: on others nothing was offered."""
    with store.read() as session:
        caller = require(session, who, "lead", "engineer")
        query = standing(Demonstration, caller.project_id, since).where(
            Demonstration.vendor == "", Task.purpose == "work"
        )
        rows = session.execute(
            query.join(User, User.id == Demonstration.user_id)
            .where(
                User.simulated.is_(False),
                func.date(Demonstration.created_at).in_(helped_days(caller.project_id)),
            )
            .add_columns(
                Demonstration.assisted,
                Demonstration.origin,
                Demonstration.edit_chars,
                Demonstration.messages,
            )
        ).all()
    found: list[Arm] = []
    for assisted in (True, False):
        mine = [row for row in rows if row.assisted == assisted]
        if not mine:
            continue
        lengths = [len(row.messages[-1]["content"][0]["text"] or "") for row in mine]
        edits = [row.edit_chars for row in mine if row.edit_chars is not None]
        origins: dict[str, int] = defaultdict(int)
        for row in mine:
            origins[row.origin] += 1
        found.append(
            Arm(
                assisted,
                len(mine),
                statistics.median(row.active_ms for row in mine) / 1000,
                statistics.median(lengths),
                dict(origins),
                statistics.median(edits) if edits else None,
                tuple(
                    min(1.0, row.edit_chars / max(length, 1))
                    for row, length in zip(mine, lengths, strict=True)
                    if row.edit_chars is not None
                ),
            )
        )
    return found


def helped_days(project: int) -> Select[Any]:
    """The days (UTC) on which a model helped anybody in the project."""
    return (
        select(func.date(Assist.shown_at))
        .join(Lease, Lease.id == Assist.lease_id)
        .join(Task, Task.id == Lease.task_id)
        .where(Task.project_id == project, Assist.error == "")
        .distinct()
    )


def standing(
    model: type[Demonstration] | type[RankedSet],
    project: int,
    since: dt.datetime | None,
    *,
    first: bool = False,
) -> Select[int, int, int, int]:
    """Id, task, person and active time of the labels that no later one corrects; of known answers,
    and with `first` of all, those that correct none."""
    newer = model.__table__.alias()
    corrected = exists().where(newer.c.supersedes_id == model.id)
    is_first = model.supersedes_id.is_(None)
    counts = is_first if first else case((Task.purpose == "gold", is_first), else_=~corrected)
    query = (
        select(model.id, model.task_id, model.user_id, model.active_ms)
        .join(Task, Task.id == model.task_id)
        .where(Task.project_id == project, counts)
        .order_by(model.id)
    )
    return query if since is None else query.where(model.created_at >= since)


def _rankings(
    session: Session,
    project: int,
    since: dt.datetime | None,
    of_tasks: Select[int] | None = None,
    *,
    first: bool = False,
) -> list[Ranking]:
    query = (
        standing(RankedSet, project, since, first=first)
        .where(RankedSet.not_rankable == "")
        .add_columns(
            Task.purpose, Task.gold, RankedSet.shown_order, RankedSet.created_at.label("at")
        )
    )
    if of_tasks is not None:
        query = query.where(RankedSet.task_id.in_(of_tasks))
    rows = session.execute(query).all()
    items = (
        select(RankedItem.comparison_id, RankedItem.rank)
        .join(RankedSet, RankedSet.id == RankedItem.comparison_id)
        .join(Task, Task.id == RankedSet.task_id)
        .where(Task.project_id == project)
        .order_by(RankedItem.comparison_id, RankedItem.position)
    )
    if since is not None:
        items = items.where(RankedSet.created_at >= since)
    if of_tasks is not None:
        items = items.where(RankedSet.task_id.in_(of_tasks))
    ranks: dict[int, list[int]] = defaultdict(list)
    for comparison_id, rank in session.execute(items):
        ranks[comparison_id].append(rank)
    return [
        Ranking(
            row.id,
            row.task_id,
            row.user_id,
            row.purpose,
            tuple(row.gold) if row.gold else None,
            standard(ranks[row.id]),
            tuple(row.shown_order),
            row.active_ms,
            row.at,
        )
        for row in rows
    ]


def _monday(at: dt.datetime) -> dt.date:
    return at.date() - dt.timedelta(days=at.weekday())


def _compared(
    found: Sequence[Ranking],
) -> tuple[list[list[int]], list[list[int]], list[float]]:
    """(ranks of each answer, preferences of each two answers, tau-b of each two people)."""
    units: list[list[int]] = []
    pairs: list[list[int]] = []
    taus: list[float] = []
    for group in _by_task(found):
        units += [list(each) for each in zip(*(one.ranks for one in group), strict=True)]
        pairs += [
            list(each) for each in zip(*(preferences(one.ranks) for one in group), strict=True)
        ]
        for one, other in itertools.combinations(group, 2):
            tau = tau_b(one.ranks, other.ranks)
            if tau is not None:
                taus.append(tau)
    return units, pairs, taus


def _taus_by_person(found: Sequence[Ranking]) -> dict[int, list[float]]:
    taus: dict[int, list[float]] = defaultdict(list)
    for group in _by_task(found):
        for one, other in itertools.combinations(group, 2):
            tau = tau_b(one.ranks, other.ranks)
            if tau is not None:
                taus[one.user_id].append(tau)
                taus[other.user_id].append(tau)
    return taus


def _by_task(found: Sequence[Ranking]) -> list[list[Ranking]]:
    """Rankings of work by two people or more, task by task."""
    groups: dict[int, list[Ranking]] = defaultdict(list)
    for each in found:
        if each.purpose == "work":
            groups[each.task_id].append(each)
    return [group for group in groups.values() if len(group) > 1]
