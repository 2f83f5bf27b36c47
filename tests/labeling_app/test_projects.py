"""Settings, pauses, roles and skills; and that one project's things are nothing in another."""

import dataclasses

import pytest
from sqlalchemy import select

from labeling_app import auth, guidelines, labels, projects, reviews
from labeling_app.assignment import LeaseLostError, next_task, take_task
from labeling_app.auth import Account, DeniedError
from labeling_app.backlog import open_tasks
from labeling_app.drafts import save_draft
from labeling_app.export import read_labels
from labeling_app.guidelines import UnreadError
from labeling_app.own_work import handed_in_today, own_work
from labeling_app.projects import FLAGS, Settings, assign, configure, pause, project, remove_member
from labeling_app.reviews import next_review
from labeling_app.schema import EventRow, Lease, Project
from labeling_app.submissions import (
    flag,
    skip,
    submit_comparison,
    submit_demonstration,
)
from labeling_app.tasks import NewTask, add_tasks
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from pipeline.core.records import Message


@pytest.fixture
def other(store) -> int:
    """A second project, with instructions of its own."""
    number = projects.create_project(store, "other")
    guidelines.publish_default(store, "1.1 Other rules.", project="other")
    return number


@pytest.fixture
def there(store, other):
    """there(name, role): somebody in the second project; read its instructions."""

    def make(name: str, role="labeler") -> Account:
        auth.create_simulated(store, name, role, "other")
        who = auth.act_as(store, name, "other")
        guidelines.acknowledge(store, who, 1)
        return who

    return make


def demo(key: str, **more) -> NewTask:
    return NewTask(key, "demo", (Message.of("user", f"{key}?"),), "test", **more)


def answer(store, who, area="write") -> str | None:
    """Hand in whatever comes next; its prompt."""
    work = next_task(store, who, area)
    if work is None:
        return None
    if work.kind == "question":
        turns = [Message.of("user", "What?"), Message.of("assistant", "That.")]
        submit_demonstration(store, who, work.token, turns, work.token)
    else:
        submit_demonstration(store, who, work.token, "An answer.", work.token)
    return work.prompt[-1].text.removesuffix("?")


def test_settings_change_are_kept_and_logged(store, lead, person):
    assert project(store, person("w")).settings == Settings()
    changed = configure(store, lead, gold_share=0.25, flags=("rude", "wrong"), currency="USD")
    assert (changed.gold_share, changed.flags, changed.currency) == (0.25, ("rude", "wrong"), "USD")
    assert configure(store, lead, lease_minutes=5).gold_share == 0.25
    assert project(store, lead).settings == changed.model_copy(update={"lease_minutes": 5})
    configure(store, lead, gold_share=0.05, currency="EUR", flags=FLAGS, lease_minutes=45)
    with store.read() as session:
        assert session.scalars(select(Project.settings)).one() == {}  # defaults are not frozen
        payloads = session.scalars(select(EventRow.payload).where(EventRow.verb == "configured"))
        assert payloads.first()["flags"] == ["rude", "wrong"]


WILL_NOT_DO = {
    "lease_minutes": (0, 1441, "soon"),
    "undo_minutes": (-1,),
    "gold_share": (0.51, float("nan")),
    "unassisted_share": (-0.1,),
    "review_share": (2,),
    "qualification_tasks": (51,),
    "pass_mark": (1.01,),
    "qualification_tries": (0,),
    "gold_mark": (-2,),
    "vendor_mark": (None,),
    "daily_goal": (1.5,),
    "hourly_cost": (-1,),
    "currency": ("shillings",),
    "flags": (("x",) * 21, "rude"),
}


def test_a_setting_that_will_not_do_is_refused_by_name(store, lead):
    assert set(WILL_NOT_DO) == set(Settings.model_fields)
    for name, values in WILL_NOT_DO.items():
        for value in values:
            with pytest.raises(UserError, match=rf"setting {name} = "):
                configure(store, lead, **{"daily_goal": 7, name: value})
    with pytest.raises(UserError, match=r"setting gold = 1: no such.*known are .*gold_share"):
        configure(store, lead, gold=1)
    assert project(store, lead).settings == Settings()


def test_an_infinite_setting_is_refused_by_name(store, lead):
    with pytest.raises(UserError, match="setting hourly_cost = "):
        configure(store, lead, hourly_cost=float("inf"))


def test_only_leads_run_a_project(store, person, lead):
    for role in ("labeler", "reviewer", "engineer"):
        who = person(role, role)
        for refused in (
            lambda who=who: configure(store, who, daily_goal=1),
            lambda who=who: pause(store, who, True),
            lambda who=who: assign(store, who, who.name, "lead", ()),
            lambda who=who: remove_member(store, who, "lead"),
            lambda who=who: projects.members(store, who),
        ):
            with pytest.raises(DeniedError, match="this is for: lead"):
                refused()


def test_the_lease_lasts_as_the_project_says(store, clock, lead, person, tasks):
    tasks(2)
    configure(store, lead, lease_minutes=3)
    worker, next_one = person("w"), person("v")
    work = next_task(store, worker, "write")
    assert (work.expires - clock.now).total_seconds() == 180
    clock.move(minutes=2)
    save_draft(store, worker, work.token, 1, {"text": "typing"})  # prolongs it
    clock.move(minutes=2)
    assert next_task(store, next_one, "write").task_id != work.task_id


def test_a_pause_hands_out_nothing_new_and_held_work_is_finished(store, clock, lead, person, tasks):
    tasks(2)
    worker, idle = person("w"), person("v")
    work = next_task(store, worker, "write")
    pause(store, lead, True)
    pause(store, lead, True)
    assert project(store, idle).paused
    assert next_task(store, idle, "write") is None
    clock.move(hours=3)
    assert next_task(store, idle, "write") is None  # nor what has expired
    assert next_task(store, worker, "write").token == work.token
    save_draft(store, worker, work.token, 1, {"text": "half"})
    assert not submit_demonstration(store, worker, work.token, "Done.", "k").repeated
    assert next_task(store, worker, "write") is None
    pause(store, lead, False)
    assert next_task(store, worker, "write") is not None
    with store.read() as session:
        query = select(EventRow.verb).where(EventRow.verb.in_(("paused", "resumed")))
        assert session.scalars(query.order_by(EventRow.id)).all() == ["paused", "resumed"]


def test_a_pause_is_of_one_project(store, lead, there):
    add_tasks(store, there("boss", "lead"), [demo("theirs")])
    pause(store, lead, True)
    assert answer(store, there("w2")) == "theirs"


def test_another_role_holds_from_the_next_step(store, lead, person, tasks):
    tasks(2)
    worker = person("w")
    work = next_task(store, worker, "write")
    assign(store, lead, "w", "engineer", ())
    for refused in (
        lambda: submit_demonstration(store, worker, work.token, "Mine.", "k"),
        lambda: save_draft(store, worker, work.token, 1, {}),
        lambda: skip(store, worker, work.token, "r"),
        lambda: next_task(store, worker, "write"),
    ):
        with pytest.raises(DeniedError, match="'w' is a engineer"):
            refused()
    assign(store, lead, "w", "lead", ())
    assert guidelines.publish(store, worker, "1.1 Mine.") == 2
    assert auth.current(store, worker).role == "lead"
    assign(store, worker, "lead", "labeler", ())
    with pytest.raises(DeniedError, match="this is for: lead"):
        pause(store, lead, True)


def test_what_cannot_be_assigned(store, lead, person, there):
    person("w")
    there("apart")
    for role in ("boss", "", "Lead"):
        with pytest.raises(UserError, match="is unknown; known are labeler"):
            assign(store, lead, "w", role, ())
    for skill, why in ((" ", "a skill is empty"), ("a\0", "NUL"), ("x" * 201, "201 characters")):
        with pytest.raises(UserError, match=why):
            assign(store, lead, "w", "labeler", ("ok", skill))
    for name in ("apart", "nobody"):
        with pytest.raises(UserError, match="is not in this project"):
            assign(store, lead, name, "labeler", ())
        with pytest.raises(UserError, match="is not in this project"):
            remove_member(store, lead, name)
    with pytest.raises(UserError, match="another lead can"):
        assign(store, lead, "lead", "labeler", ())
    with pytest.raises(UserError, match="another lead can"):
        remove_member(store, lead, "lead")
    assign(store, lead, "lead", "lead", ("law",))
    found = {member.name: member for member in projects.members(store, lead)}
    assert {name: member.skills for name, member in found.items()} == {"lead": ("law",), "w": ()}


def test_a_removed_member_is_out_and_their_labels_stay(store, clock, lead, person, tasks):
    tasks(2)
    worker = person("w")
    answer(store, worker)
    work = next_task(store, worker, "write")
    remove_member(store, lead, "w")
    for refused in (
        lambda: submit_demonstration(store, worker, work.token, "Late.", "late"),
        lambda: next_task(store, worker, "write"),
        lambda: guidelines.newest(store, worker),
        lambda: auth.current(store, worker),
    ):
        with pytest.raises(DeniedError, match="not in this project"):
            refused()
    clock.move(hours=1)
    assert next_task(store, person("v"), "write").task_id == work.task_id
    [label] = read_labels(store).conversations
    [gone] = [each for each in projects.members(store, lead) if each.name == "w"]
    assert (gone.active, gone.pseudonym) == (False, label.labeler)


def test_skills_decide_who_gets_a_task(store, lead, person, tasks):
    tasks(1, key="law", skill="law", priority=9)
    tasks(1, key="french", skill="french", priority=5)
    tasks(1, key="plain")
    worker = person("w")
    assert answer(store, worker) == "Question plain 0"
    assert answer(store, worker) is None
    assign(store, lead, "w", "labeler", (" french", "french", "go"))
    assert answer(store, worker) == "Question french 0"
    assert answer(store, worker) is None
    assign(store, lead, "w", "labeler", ("law",))
    work = next_task(store, worker, "write")
    assert work.prompt[0].text == "Question law 0?"
    assign(store, lead, "w", "labeler", ())
    assert next_task(store, worker, "write").token == work.token  # held work may be finished
    submit_demonstration(store, worker, work.token, "Done.", "k")


def test_a_draft_does_not_bring_back_a_task_of_a_lost_skill(store, clock, lead, person, tasks):
    tasks(1, key="law", skill="law")
    worker = person("w")
    assign(store, lead, "w", "labeler", ("law",))
    work = next_task(store, worker, "write")
    save_draft(store, worker, work.token, 1, {"text": "half"})
    assign(store, lead, "w", "labeler", ())
    clock.move(hours=1)
    next_task(store, person("v"), "write")  # returns the expired slot
    assert next_task(store, worker, "write") is None


def test_priority_goes_before_age_across_skills_and_kinds(store, lead, person):
    wanted = [("a", "law", 1, "demo"), ("b", "", 3, "question"), ("c", "french", 3, "demo")]
    wanted += [("d", "", 9, "demo"), ("e", "law", 3, "question"), ("f", "french", -4, "question")]
    wanted += [("g", "law", 9, "demo"), ("h", "", 1, "question"), ("i", "sums", 99, "demo")]
    new = [
        dataclasses.replace(demo(key, skill=skill, priority=priority), kind=kind)
        for key, skill, priority, kind in wanted
    ]
    add_tasks(store, lead, new)
    worker = person("w")
    assign(store, lead, "w", "labeler", ("law", "french"))
    seen = [answer(store, worker) for _ in range(9)]
    assert seen == ["d", "g", "b", "c", "e", "a", "h", "f", None]


def test_tasks_of_another_project_are_never_handed_out(store, lead, there, person, tasks):
    tasks(1)
    boss, away = there("boss", "lead"), there("away")
    assert next_task(store, away, "write") is None
    assert take_task(store, away, "t0") is None
    assert add_tasks(store, boss, [demo("t0")]) == 1  # a key is a project's own
    assert answer(store, away) == "t0"
    assert [each.prompt for each in open_tasks(store)] == ["Question t 0?"]
    assert open_tasks(store, "other") == []
    assert read_labels(store).conversations == ()
    assert len(read_labels(store, "other").conversations) == 1
    with pytest.raises(UserError, match="no project 'third'"):
        open_tasks(store, "third")


def test_a_role_in_one_project_is_none_in_another(store, lead, other, person):
    worker = person("w")
    for who in (lead, worker):
        forged = dataclasses.replace(who, project_id=other)
        for refused in (
            lambda forged=forged: next_task(store, forged, "write"),
            lambda forged=forged: configure(store, forged, daily_goal=1),
            lambda forged=forged: add_tasks(store, forged, [demo("x")]),
            lambda forged=forged: guidelines.newest(store, forged),
            lambda forged=forged: projects.my_projects(store, forged),
        ):
            with pytest.raises(DeniedError, match="is not in this project"):
                refused()
    with store.write() as session:
        auth.add_membership(session, lead.user_id, other, "labeler", ())
    here = dataclasses.replace(lead, project_id=other)
    with pytest.raises(DeniedError, match="is a labeler"):
        configure(store, here, daily_goal=1)
    with pytest.raises(UnreadError, match="v1 are new"):
        next_task(store, here, "write")  # the instructions are another project's
    assert list(projects.my_projects(store, lead).values()) == ["default", "other"]


def test_leases_of_one_project_are_nothing_in_another(store, lead, other, person, tasks):
    tasks(2)
    worker = person("w")
    with store.write() as session:
        auth.add_membership(session, worker.user_id, other, "labeler", ())
    here = dataclasses.replace(worker, project_id=other)
    guidelines.acknowledge(store, here, 1)
    work = next_task(store, worker, "write")
    assert next_task(store, here, "write") is None
    for refused in (
        lambda: submit_demonstration(store, here, work.token, "Mine.", "k"),
        lambda: submit_comparison(store, here, work.token, Verdict((1, 2)), "k"),
        lambda: save_draft(store, here, work.token, 1, {}),
        lambda: skip(store, here, work.token, "r"),
        lambda: flag(store, here, work.token, "r"),
        lambda: labels.give_up(store, here, work.token),
    ):
        with pytest.raises(LeaseLostError, match="not given to you"):
            refused()
    with store.read() as session:
        assert session.scalars(select(Lease.released)).one() is None
    submit_demonstration(store, worker, work.token, "Mine.", "k")


def test_labels_of_one_project_are_nothing_in_another(store, lead, there, person, tasks):
    tasks(1)
    tasks(1, kind="compare", key="c", k=2)
    worker = person("w")
    work = next_task(store, worker, "write")
    demo_id = submit_demonstration(store, worker, work.token, "Mine.", "k1").submission_id
    work = next_task(store, worker, "compare")
    ranked = submit_comparison(store, worker, work.token, Verdict((1, 2)), "k2").submission_id
    boss = there("boss", "lead")
    for kind, number in (("demo", demo_id), ("compare", ranked)):
        reviews.ask_for_review(store, lead, kind, number, "look")
        for refused in (
            lambda kind=kind, number=number: labels.history(store, boss, kind, number),
            lambda kind=kind, number=number: labels.reopen(store, boss, kind, number),
            lambda kind=kind, number=number: reviews.review(store, boss, kind, number, "accepted"),
            lambda kind=kind, number=number: reviews.ask_for_review(
                store, boss, kind, number, "why"
            ),
            lambda kind=kind, number=number: reviews.adjudicate(
                store, boss, kind, number, reviews.GAP
            ),
        ):
            with pytest.raises(UserError, match=f"no label {number} in this project"):
                refused()
    assert next_review(store, boss) is None
    assert reviews.waiting(store, boss) == 0
    assert next_review(store, lead) is not None


def test_own_work_is_counted_by_project(store, other, person, tasks):
    tasks(4)
    worker = person("w")
    answer(store, worker)
    skip(store, worker, next_task(store, worker, "write").token, "r")
    save_draft(store, worker, next_task(store, worker, "write").token, 1, {"text": "half"})
    with store.write() as session:
        auth.add_membership(session, worker.user_id, other, "labeler", ())
    here, apart = (
        own_work(store, worker),
        own_work(store, dataclasses.replace(worker, project_id=other)),
    )
    assert (here.answers, here.put_back, here.drafts) == (1, 1, 1)
    assert (apart.answers, apart.put_back, apart.drafts) == (0, 0, 0)
    assert handed_in_today(store, dataclasses.replace(worker, project_id=other)) == 0


def test_instructions_are_of_one_project(store, lead, there, person):
    boss = there("boss", "lead")
    assert guidelines.newest(store, boss).body_md == "1.1 Other rules."
    guidelines.publish(store, boss, "1.1 Newer other rules.")
    assert guidelines.newest(store, lead).n == 1
    with pytest.raises(UserError, match="no instructions v2"):
        guidelines.version(store, lead, 2)
    assert guidelines.has_read_newest(store, lead)
    assert not guidelines.has_read_newest(store, boss)


def test_a_project_has_a_name_of_its_own(store):
    for name, why in (("", "empty"), ("x" * 65, "65 characters"), ("default", "exists")):
        with pytest.raises(UserError, match=why):
            projects.create_project(store, name)
