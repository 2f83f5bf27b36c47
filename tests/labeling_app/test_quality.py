"""How good the labels are: against answers known by hand, by brute force, or by planting them."""

import datetime as dt
import itertools
import random

import pytest
from sqlalchemy import select

from labeling_app import assist, projects, quality, reviews
from labeling_app.agreement import share_interval
from labeling_app.assignment import next_task, take_task
from labeling_app.auth import DeniedError
from labeling_app.labels import reopen
from labeling_app.planning import find_tasks, plan
from labeling_app.quality import Ranking, agreement, agreement_by_week, position_bias
from labeling_app.schema import Demonstration, RankedSet, ReviewRequest
from labeling_app.submissions import (
    Trace,
    flag,
    submit_comparison,
    submit_demonstration,
)
from labeling_app.tasks import NewAnswer, NewTask, add_tasks
from labeling_app.verdicts import Verdict
from pipeline.core.records import Message
from tests.labeling_app.assists import DRAFTER, Model, events, human

MONDAY = dt.datetime(2026, 3, 2, 10, tzinfo=dt.UTC)


def ranking(task: int, user: int, ranks: tuple[int, ...], **more) -> Ranking:
    base = {"id": task * 100 + user, "purpose": "work", "gold": None, "active_ms": 1, "at": MONDAY}
    order = tuple(range(len(ranks)))
    return Ranking(
        **{**base, "task_id": task, "user_id": user, "ranks": ranks, "shown_order": order, **more}
    )


def rank(store, who, ranks, key: str = "", active_ms: int = 0) -> int:
    """The next task to rank (or that of the key), ranked."""
    work = take_task(store, who, key) if key else next_task(store, who, "compare")
    verdict = Verdict(tuple(ranks))
    trace = Trace(active_ms)
    return submit_comparison(store, who, work.token, verdict, work.token, trace).submission_id


def write(store, who, text: str = "So.", active_ms: int = 0) -> int:
    work = next_task(store, who, "write")
    trace = Trace(active_ms)
    return submit_demonstration(store, who, work.token, text, work.token, trace).submission_id


def test_agreement_of_two_people_by_hand():
    # Two pairs: on one they agree, on the other they do not.
    found = agreement([
        ranking(1, 1, (1, 2)), ranking(1, 2, (1, 2)), ranking(2, 1, (1, 2)), ranking(2, 2, (2, 1)),
    ])  # fmt: skip
    # Preferences -1 -1 | -1 1: observed 2 of 4 ordered pairs differ; expected 2*3*1 of 4*3.
    assert found.nominal.value == pytest.approx(1 - (2 / 4) / (6 / 12))
    assert (found.nominal.num, found.tau.num, found.ordinal.num) == (2, 2, 4)
    assert found.tau.value == pytest.approx((1 - 1) / 2)
    # Ranks 11|22|12|21: of 8 values 4 are 1 and 4 are 2; observed 4 of 8, expected 32 of 56.
    assert found.ordinal.value == pytest.approx(1 - (4 / 8) / (32 / 56))


def test_agreement_of_many_by_brute_force():
    rng, found = random.Random(2), []
    for task in range(30):
        found += [
            ranking(task, user, tuple(rng.randrange(1, 4) for _ in range(3)))
            for user in range(rng.randrange(1, 4))
        ]
    units = []
    for task in range(30):
        rows = [each.ranks for each in found if each.task_id == task]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            units.append([(r[a] > r[b]) - (r[a] < r[b]) for r in rows])
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    differ = sum(
        sum(one != other for one, other in itertools.permutations(unit, 2)) / (len(unit) - 1)
        for unit in units
    )
    expected = sum(one != other for one, other in itertools.permutations(values, 2))
    alpha = 1 - (differ / len(values)) / (expected / len(values) / (len(values) - 1))
    said = agreement(found).nominal
    assert said.value == pytest.approx(alpha)
    assert said.low <= said.value <= said.high


def test_agreement_counts_work_of_two_people_only():
    alone = [ranking(1, 1, (1, 2)), ranking(2, 2, (2, 1))]
    known = [
        ranking(3, user, (1, 2), purpose=p) for user in (1, 2) for p in ("gold", "qualification")
    ]
    said = agreement([*alone, *known])
    assert (said.ordinal, said.nominal, said.tau) == (None, None, None)
    tied = agreement([ranking(1, 1, (1, 1)), ranking(1, 2, (1, 1))])
    assert (tied.ordinal, tied.nominal, tied.tau) == (None, None, None)


def test_agreement_by_the_week_of_a_tasks_last_ranking():
    sunday = MONDAY - dt.timedelta(hours=11)
    found = [
        ranking(1, 1, (1, 2), at=sunday), ranking(1, 2, (1, 2), at=sunday),
        ranking(2, 1, (1, 2), at=sunday), ranking(2, 2, (2, 1), at=MONDAY),
        ranking(3, 1, (1, 2), at=MONDAY), ranking(3, 2, (2, 1), at=MONDAY),
    ]  # fmt: skip
    weeks = agreement_by_week(found)
    assert [week for week, _ in weeks] == [dt.date(2026, 2, 23), dt.date(2026, 3, 2)]
    assert [(each.tau.value, each.tau.num) for _, each in weeks] == [(1, 1), (-1, 2)]


def test_position_bias_is_seen_where_it_was_planted_and_not_elsewhere():
    rng = random.Random(4)
    orders = list(itertools.permutations(range(3)))
    planted, fair = [], []
    for number in range(600):
        order = rng.choice(orders)
        ranks = [2, 2, 2]
        ranks[order[0] if rng.random() < 0.5 else rng.randrange(3)] = 1  # first on the screen
        planted.append(ranking(number, 1, tuple(ranks), shown_order=order))
        even = [2, 2, 2]
        even[rng.randrange(3)] = 1
        fair.append(ranking(number, 1, tuple(even), shown_order=order))
    tied = [ranking(9999, 1, (1, 1, 2)), ranking(9998, 1, (1, 1))]  # no best one
    for found, holds in ((planted, False), (fair, True)):
        [(size, places)] = position_bias([*found, *tied]).items()
        assert (size, len(places), places[0][0].num) == (3, 3, 600)
        assert sum(each.value for each, _ in places) == pytest.approx(1)
        assert [chance for _, chance in places] == [1 / 3] * 3
        assert all(each.low <= chance <= each.high for each, chance in places) == holds
    assert position_bias(planted)[3][0][0].value > 0.6
    assert position_bias([]) == {}


@pytest.fixture
def gold(store, lead):
    """gold(n): as many known answers; the first answer is the best."""
    projects.configure(store, lead, gold_share=0, review_share=0)

    def make(count: int) -> None:
        answers = tuple(NewAnswer(f"m{n}", f"A{n}") for n in range(3))
        add_tasks(store, lead, [
            NewTask(f"g{n}", "compare", (Message.of("user", f"G{n}?"),), "test", answers,
                    purpose="gold", gold=(1, 2, 3))
            for n in range(count)
        ])  # fmt: skip

    return make


def test_calibration_with_known_answers_and_with_peers(store, lead, gold, tasks):
    gold(4)
    projects.configure(store, lead, gold_share=0.5, gold_mark=0.5)
    tasks(3, kind="compare", k=3, overlap=2)
    for name, on_gold, on_work in (("kaya", (1, 2, 3), (1, 2, 3)), ("noor", (3, 2, 1), (1, 3, 2))):
        who = human(store, lead, name)
        while work := next_task(store, who, "compare"):
            ranks = on_gold if "G" in work.prompt[0].text else on_work
            submit_comparison(store, who, work.token, Verdict(ranks), work.token)
    found = quality.rankings(store, lead)
    kaya, noor = quality.calibration(store, lead, found)
    assert (kaya.name, noor.name) == ("kaya", "noor")
    for row, right in ((kaya, 1.0), (noor, 0.0)):
        num = row.labels - 3
        assert num > 0
        assert row.gold == share_interval(int(right * num), num)
        assert (row.tau.value, row.tau.num) == (pytest.approx(1 / 3), 3)


def test_what_one_sees_of_oneself_is_nobody_elses(store, lead, clock, gold, tasks):
    gold(3)
    projects.configure(store, lead, gold_share=0.5)
    tasks(2, kind="compare", k=3, overlap=3)
    people = [human(store, lead, name) for name in ("kaya", "noor", "uma")]
    given = [((1, 2, 3), (1, 2, 3)), ((3, 2, 1), (3, 2, 1)), ((3, 2, 1), (3, 2, 1))]
    for who, (on_gold, on_work) in zip(people, given, strict=True):
        while work := next_task(store, who, "compare"):
            ranks = on_gold if "G" in work.prompt[0].text else on_work
            submit_comparison(store, who, work.token, Verdict(ranks), work.token)
    rows = {
        row.name: row for row in quality.calibration(store, lead, quality.rankings(store, lead))
    }
    for who in people:  # what moved with each label would tell which was gold
        assert quality.own_agreement(store, who) == (None, None)
    clock.move(days=1)
    for who, tau in zip(people, (-1, 0, 0), strict=True):
        right, peers = quality.own_agreement(store, who)
        assert right == rows[who.name].gold
        assert (peers.value, peers.num) == (tau, 4)
    nobody = human(store, lead, "new")
    assert quality.own_agreement(store, nobody) == (None, None)


def test_a_correction_stands_for_what_it_corrects(store, lead, person, tasks):
    tasks(1, kind="compare", k=2)
    kaya = person("kaya")
    first = rank(store, kaya, (1, 2))
    again = reopen(store, kaya, "compare", first)
    submit_comparison(store, kaya, again.token, Verdict((2, 1)), "again")
    assert [each.ranks for each in quality.rankings(store, lead)] == [(2, 1)]
    tasks(1, kind="compare", k=2, key="u")
    work = next_task(store, kaya, "compare")
    submit_comparison(store, kaya, work.token, Verdict(not_rankable="unclear"), "u")
    assert len(quality.rankings(store, lead)) == 1


def test_odd_times_are_found_and_lead_to_a_peer_and_nothing_else(store, lead, person, tasks):
    projects.configure(store, lead, review_share=0)
    tasks(32)
    kaya, rng = person("kaya"), random.Random(1)
    usual = [write(store, kaya, active_ms=int(60_000 * rng.uniform(0.7, 1.4))) for _ in range(30)]
    quick, slow = write(store, kaya, active_ms=700), write(store, kaya, active_ms=20_000_000)
    odd = quality.odd_times(store, lead)
    assert [(each.kind, each.label_id) for each in odd] == [("demo", quick), ("demo", slow)]
    assert [each.seconds for each in odd] == [0.7, 20_000]
    assert 42 < odd[0].median_s < 84
    assert set(usual).isdisjoint({each.label_id for each in odd})
    with store.read() as session:
        before = [
            (row.id, row.messages, row.origin) for row in session.scalars(select(Demonstration))
        ]
    assert [quality.ask_peers(store, lead, odd) for _ in range(2)] == [2, 0]
    with store.read() as session:
        asked = session.scalars(select(ReviewRequest).order_by(ReviewRequest.target_id)).all()
        assert [(row.target_id, row.why[:8]) for row in asked] == [
            (quick, "took 1 s"),
            (slow, "took 200"),
        ]
        after = [
            (row.id, row.messages, row.origin) for row in session.scalars(select(Demonstration))
        ]
    assert after == before
    assert reviews.next_review(store, person("peer", "reviewer")).id == quick


def test_few_labels_and_equal_times_make_nothing_odd(store, lead, person, tasks):
    tasks(19)
    kaya = person("kaya")
    for number in range(19):
        write(store, kaya, active_ms=100_000 if number else 1)
    assert quality.odd_times(store, lead) == []
    tasks(30, kind="compare", k=2, key="c")
    for number in range(30):
        rank(store, kaya, (1, 2), active_ms=5000 if number else 1)
    assert quality.odd_times(store, lead) == []  # no spread: nothing to measure by
    with store.read() as session:
        assert len(session.scalars(select(RankedSet)).all()) == 30


def test_arms_with_and_without_help(store, lead, clock, tasks, person):
    tasks(8)
    kaya = human(store, lead)
    write(store, person("simulated"), "not counted" * 50)
    for share, text, ms, take in (
        (0, "One.", 1000, True), (0, "One!!", 3000, True), (0, "Mine", 8000, False),
        (1, "Alone.", 5000, False), (1, "Alone too.", 7000, False),
    ):  # fmt: skip
        projects.configure(store, lead, unassisted_share=share)
        work = next_task(store, kaya, "write")
        if take:
            model = Model(events("One."))
            [shown] = assist.ask(store, kaya, work.token, "draft", (DRAFTER,), client=model.client)
            assist.act(store, kaya, shown.id, 0, "take")
        submit_demonstration(store, kaya, work.token, text, work.token, Trace(ms))
    offered, without = quality.arms(store, lead)
    assert (offered.assisted, offered.labels, offered.median_active_s) == (True, 3, 3.0)
    assert (offered.median_chars, offered.median_edit_chars) == (4, 1.0)
    assert dict(offered.by_origin) == {"accepted": 1, "edited": 1, "human": 1}
    assert (without.labels, without.median_active_s, without.median_chars) == (2, 6.0, 8.0)
    assert (dict(without.by_origin), without.median_edit_chars) == ({"human": 2}, None)
    assert quality.arms(store, lead, clock.now + dt.timedelta(seconds=1)) == []


def test_the_plan_has_pace_forecast_and_cost(store, clock, lead, person, tasks):
    projects.configure(store, lead, hourly_cost=30, review_share=0)
    tasks(20)
    tasks(4, kind="compare", k=2, overlap=2, key="c")
    kaya = person("kaya")
    empty = plan(store, lead)
    assert (empty.pace, empty.done_on, empty.days, empty.cost_per_label) == (0, None, (), {})
    assert empty.open_slots == {"demo": 20, "compare": 8}
    for _ in range(4):
        write(store, kaya, active_ms=60_000)
    clock.move(days=1)
    for _ in range(2):
        write(store, kaya, active_ms=180_000)
        rank(store, kaya, (1, 2), active_ms=36_000)
    label = write(store, kaya, active_ms=0)
    again = reopen(store, kaya, "demo", label)
    submit_demonstration(store, kaya, again.token, "Anew.", "anew", Trace(240_000))
    next_task(store, kaya, "write")
    now = plan(store, lead)
    assert [(day.day.isoformat(), day.kind, day.labels, day.active_ms) for day in now.days] == [
        ("2026-03-02", "write", 4, 240_000),
        ("2026-03-03", "compare", 2, 72_000),
        ("2026-03-03", "write", 3, 600_000),  # a correction is time, and no label of its own
    ]
    assert now.pace == (4 + 5) / 2
    assert (now.open_slots, now.in_hand) == ({"demo": 12, "compare": 6}, 1)
    # 19 left at 4.5 a day: five days, from the third of March.
    assert now.done_on == dt.date(2026, 3, 8)
    assert now.cost_per_label == pytest.approx({"write": 30 * 840 / 3600 / 7, "compare": 0.3})
    clock.move(days=14)
    later = plan(store, lead)
    assert (later.pace, later.done_on, len(later.days)) == (0, None, 3)
    assert plan(store, lead, days=3).days == ()


def found(store, lead, **more) -> list[str]:
    return [task.key for task in find_tasks(store, lead, **more)]


def test_tasks_are_found_by_words_state_and_skill(store, lead, person, tasks):
    ask = {"100%": "Is it 100% sure?", "a_b": "What is a_b?", "tilde": "Why ~ here?", "ab": "axb 1000",
           "umlaut": "Füße?", "quote": 'Say "so" \\ no'}  # fmt: skip
    add_tasks(store, lead, [
        NewTask(key, "demo", (Message.of("user", text),), f"from-{key}", skill="law" if key == "ab" else "",
                priority=5 if key == "ab" else 0)
        for key, text in ask.items()
    ])  # fmt: skip
    assert found(store, lead)[0] == "ab"
    for words, expected in (
        ("100%", ["100%"]), ("a_b", ["a_b"]), ("~", ["tilde"]), ("%", ["100%"]), ("_", ["a_b"]),
        ("IS IT", ["100%"]), ("from-ab", ["ab"]), ("nothing", []), ("' OR 1=1 --", []),
    ):  # fmt: skip
        assert (words, found(store, lead, words=words)) == (words, expected)
    assert found(store, lead, skill="law") == found(store, lead, words="1000") == ["ab"]
    assert len(found(store, lead, limit=2)) == 2
    tasks(1, kind="compare")
    assert found(store, lead, kind="compare") == ["t0"]
    assert (found(store, lead, purpose="gold"), found(store, lead, state="done")) == ([], [])
    kaya = person("kaya")
    work = next_task(store, kaya, "write")
    flag(store, kaya, work.token, "broken")
    assert len(found(store, lead, flagged=True)) == 1
    write(store, kaya)
    [done] = find_tasks(store, lead, state="done")
    assert (done.filled, done.overlap, done.flags) == (1, 1, 0)


@pytest.mark.parametrize(
    ("words", "expected"), [("Füße", 1), ('"so" \\ no', 1), ("role", 0), ("u00fc", 0)]
)
def test_words_are_those_that_people_read(store, lead, words, expected):
    add_tasks(store, lead, [
        NewTask("t", "demo", (Message.of("user", 'Füße? Say "so" \\ no.'),), "test"),
    ])  # fmt: skip
    assert len(found(store, lead, words=words)) == expected


def test_who_may_see_what(store, person, lead):
    everybody = {role: person(role, role) for role in ("labeler", "reviewer", "engineer")}
    everybody["lead"] = lead
    for deed, allowed in (
        (lambda who: quality.rankings(store, who), {"reviewer", "engineer", "lead"}),
        (lambda who: quality.calibration(store, who, []), {"reviewer", "engineer", "lead"}),
        (lambda who: quality.odd_times(store, who), {"reviewer", "engineer", "lead"}),
        (lambda who: quality.arms(store, who), {"engineer", "lead"}),
        (lambda who: quality.ask_peers(store, who, []), {"lead"}),
        (lambda who: quality.own_agreement(store, who), {"labeler", "reviewer", "lead"}),
        (lambda who: plan(store, who), {"engineer", "lead"}),
        (lambda who: find_tasks(store, who), {"reviewer", "engineer", "lead"}),
    ):
        got = set()
        for role, who in everybody.items():
            try:
                deed(who)
                got.add(role)
            except DeniedError:
                pass
        assert got == allowed
