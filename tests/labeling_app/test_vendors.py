"""Batches for a hired workforce: what goes out, what comes back, and what is taken of it."""

import json

import pytest
from sqlalchemy import func, select

from labeling_app import auth, guidelines, projects
from labeling_app.agreement import tau_b
from labeling_app.assignment import next_task
from labeling_app.auth import DeniedError
from labeling_app.export import Filters, iter_comparisons, read_labels
from labeling_app.schema import (
    EventRow,
    Lease,
    RankedSet,
    Slot,
    Task,
    VendorBatch,
    VendorItem,
)
from labeling_app.submissions import submit_comparison
from labeling_app.tasks import NewAnswer, NewTask, add_tasks
from labeling_app.vendors import BatchBack, send_out, take_back, withdraw
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from pipeline.core.records import Message

RIGHT = (1, 2, 4, 3)  # of the gold tasks, in the order of their answers
QUALITY = ("best", "good", "worst", "bad")


@pytest.fixture
def gold(store, lead):
    """gold(count): known answers, whose texts tell their quality to this test."""

    def make(count: int = 10) -> None:
        answers = tuple(NewAnswer(f"secret-{q}", f"The {q} answer.") for q in QUALITY)
        add_tasks(
            store,
            lead,
            [
                NewTask(f"known-{n}", "compare", (Message.of("user", f"Known {n}?"),), "secret",
                        answers, purpose="gold", gold=RIGHT)
                for n in range(count)
            ],
        )  # fmt: skip

    return make


@pytest.fixture
def send(store, lead, tmp_path):
    """send(count): (batch, the lines that went out)."""
    folders = iter(range(100))

    def out(count: int = 20, area="compare", share: float = 0.5, vendor: str = "acme"):
        folder = tmp_path / f"out-{next(folders)}"
        batch = send_out(store, lead, vendor, area, count, folder, share)
        lines = (folder / "tasks.jsonl").read_text("utf-8").split("\n")[:-1]
        return batch, [json.loads(line) for line in lines]

    return out


@pytest.fixture
def back(store, lead, tmp_path):
    def take(batch, rows: list) -> BatchBack:
        path = tmp_path / "back.jsonl"
        path.write_bytes(
            b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in rows)
        )
        return take_back(store, lead, batch.batch, path)

    return take


def is_gold(line: dict) -> bool:
    return line["prompt"][0]["content"].startswith("Known")


def answered(lines: list[dict], wrong: int = 0) -> list[dict]:
    """As a careful vendor would: each answer's rank by its text; of gold, `wrong` reversed."""
    by_text = {f"The {q} answer.": rank for q, rank in zip(QUALITY, RIGHT, strict=True)}
    by_text |= {f"Answer {i}.": i + 1 for i in range(4)}
    rows = []
    for line in lines:
        ranks = [by_text[text] for text in line["answers"]]
        if is_gold(line) and wrong > 0:
            ranks, wrong = [5 - rank for rank in ranks], wrong - 1
        rows.append({"item": line["item"], "ranks": ranks})
    return rows


def states(store) -> dict[str, int]:
    with store.read() as session:
        rows = session.execute(select(Slot.state, func.count()).group_by(Slot.state))
        return dict(rows.all())


def count(store, model) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(model))


def state_of(store, batch) -> tuple[str, float | None]:
    with store.read() as session:
        row = session.get_one(VendorBatch, batch.batch)
        return row.state, row.gold_agreement


def test_nothing_tells_gold_from_work(store, tasks, gold, send, tmp_path):
    tasks(20, kind="compare")
    gold()
    batch, lines = send()
    assert (batch.items, batch.gold, len(lines)) == (20, 10, 30)
    assert {tuple(sorted(line)) for line in lines} == {("answers", "item", "prompt", "task")}
    assert {line["task"] for line in lines} == {"rank"}
    assert {len(line["item"]) for line in lines} == {32}
    assert len({line["item"] for line in lines}) == 30
    text = (tmp_path / "out-0" / "tasks.jsonl").read_text("utf-8")
    for hidden in ("secret", "known-", '"t1', '"m0', "gold", "test"):
        assert hidden not in text, hidden
    kinds = "".join("g" if is_gold(line) else "w" for line in lines)
    assert not kinds.startswith("g" * 10)
    assert not kinds.endswith("g" * 10)
    orders = {tuple(line["answers"]) for line in lines if not is_gold(line)}
    assert len(orders) > 5  # of 24, each its own
    instructions = (tmp_path / "out-0" / "instructions.md").read_text("utf-8")
    assert instructions == guidelines.default_text()


def test_all_right_is_taken_and_marked_with_the_vendor(store, lead, clock, tasks, gold, send, back):
    tasks(20, kind="compare", k=4)
    gold()
    batch, lines = send()
    assert states(store) == {"vendor": 20}
    clock.move(days=9)
    assert back(batch, answered(lines)) == BatchBack(True, 20, 1.0, ())
    assert states(store) == {"filled": 20}
    assert state_of(store, batch) == ("accepted", 1.0)
    rows = read_labels(store).comparisons
    assert len(rows) == 20
    for row in rows:
        assert [answer.rank for answer in row.responses] == [1, 2, 3, 4]
        assert (row.vendor, row.created_at, row.assisted) == ("acme", clock(), False)
        assert row.labeler.startswith("simulated-")
        shown = next(x for x in lines if x["prompt"][0]["content"] == row.prompt[0].text)
        assert [row.responses[place].text for place in row.shown_order] == shown["answers"]
    with store.read() as session:
        for vendors, found in ((("acme",), 20), (("other",), 0), ((), 20)):
            assert len(list(iter_comparisons(session, 1, Filters(vendors=vendors)))) == found
        assert set(session.scalars(select(Task.state).where(Task.purpose == "work"))) == {"done"}
    with pytest.raises(UserError, match=f"batch {batch.batch} is accepted"):
        back(batch, answered(lines))
    with pytest.raises(UserError, match="is accepted"):
        withdraw(store, lead, batch.batch)
    assert len(read_labels(store).comparisons) == 20


@pytest.mark.parametrize(("wrong", "taken"), [(0, True), (2, True), (3, False), (10, False)])
def test_too_little_gold_right_and_none_is_taken(store, tasks, gold, send, back, wrong, taken):
    tasks(20, kind="compare")
    gold()
    batch, lines = send()
    assert tau_b([5 - rank for rank in RIGHT], RIGHT) == -1
    done = back(batch, answered(lines, wrong))
    assert (done.accepted, done.labels) == (taken, 20 if taken else 0)
    assert done.agreement == pytest.approx(1 - wrong / 10)
    assert states(store) == {"filled" if taken else "free": 20}
    assert count(store, RankedSet) == (20 if taken else 0)
    assert state_of(store, batch)[0] == ("accepted" if taken else "refused")
    if not taken:
        assert count(store, Lease) == 0
        with pytest.raises(UserError, match="is refused"):
            back(batch, answered(lines))
        again, _ = send()
        assert again.items == 20


def test_gold_that_does_not_come_back_is_wrong(store, tasks, gold, send, back):
    tasks(20, kind="compare")
    gold()
    batch, lines = send()
    done = back(batch, [row for row in answered(lines) if not is_gold_item(lines, row)])
    assert (done.accepted, done.agreement) == (False, 0.0)


def is_gold_item(lines: list[dict], row: dict) -> bool:
    return next(is_gold(line) for line in lines if line["item"] == row["item"])


def test_the_bars_are_the_projects(store, lead, tasks, gold, send, back):
    projects.configure(store, lead, vendor_mark=0.3)
    tasks(20, kind="compare")
    gold()
    batch, lines = send()
    assert back(batch, answered(lines, wrong=7)).accepted


def test_missing_and_broken_lines_leave_their_tasks_open(store, tasks, gold, send, back):
    tasks(20, kind="compare")
    gold()
    batch, lines = send()
    rows = answered(lines)
    work = [row for row in rows if not is_gold_item(lines, row)]
    rest = [row for row in rows if is_gold_item(lines, row)] + work[10:]
    deep = b'{"item": ' + b"[" * 100_000 + b"\n"
    broken = [
        (b"{\n", "not JSON"),
        (b"caf\xe9\n", "not UTF-8"),
        (deep, "JSON that cannot be read"),
        (b"[]\n", "not a JSON object"),
        ({}, "not of this batch"),
        ({"item": "f" * 32, "ranks": [1, 2, 3, 4]}, "not of this batch"),
        ({"item": [work[0]["item"]], "ranks": [1, 2, 3, 4]}, "not of this batch"),
        ({"item": work[0]["item"]}, "ranks must be 4 numbers"),
        ({"item": work[1]["item"], "ranks": "1234"}, "ranks must be 4 numbers"),
        ({"item": work[2]["item"], "ranks": [1, 2, 3]}, "ranks must be 4 numbers"),
        ({"item": work[3]["item"], "ranks": [1, 2, 3, 5]}, "from 1 to 4"),
        ({"item": work[4]["item"], "ranks": [0, 1, 2, 3]}, "from 1 to 4"),
        ({"item": work[5]["item"], "ranks": [1, 2, 3, True]}, "from 1 to 4"),
        ({"item": work[6]["item"], "ranks": [1, 2, 3, 4.0]}, "from 1 to 4"),
        ({"item": work[7]["item"], "ranks": [1, 2, 3, None]}, "from 1 to 4"),
        ({"item": work[8]["item"], "answer": "A text."}, "ranks must be 4 numbers"),
        ({**rest[-1], "ranks": [4, 4, 4, 4]}, "came twice; the first stands"),
    ]
    done = back(batch, [b"\n", *rest, *(row for row, _ in broken)])
    assert (done.accepted, done.labels, done.agreement) == (True, 10, 1.0)
    assert [reject.line for reject in done.rejects] == list(range(22, 22 + len(broken)))
    for reject, (_, why) in zip(done.rejects, broken, strict=True):
        assert why in reject.why
    assert states(store) == {"filled": 10, "free": 10}
    assert len(read_labels(store).comparisons) == 10
    assert {r.rank for c in read_labels(store).comparisons for r in c.responses} == {1, 2, 3, 4}


def test_an_item_of_another_batch(store, tasks, gold, send, back):
    tasks(20, kind="compare")
    gold()
    one, lines = send(10)
    two, others = send(10)
    done = back(one, [*answered(lines), *answered(others)])
    assert (done.labels, {reject.why for reject in done.rejects}) == (
        10,
        {"this item is not of this batch"},
    )
    assert state_of(store, two)[0] == "out"
    assert states(store) == {"filled": 10, "vendor": 10}
    assert back(two, answered(others)).labels == 10


def test_a_byte_order_mark_harms_nothing(store, tasks, send, back):
    tasks(2, kind="compare")
    batch, lines = send(2, share=0)
    rows = [json.dumps(row).encode() + b"\r\n" for row in answered(lines)]
    assert back(batch, [b"\xef\xbb\xbf" + rows[0], rows[1]]).labels == 2


def test_answers_come_back_as_they_were_written(store, tasks, send, back):
    tasks(6, overlap=2)
    batch, lines = send(6, "write", 0)
    assert (batch.items, batch.gold) == (6, 0)
    assert {tuple(sorted(line)) for line in lines} == {("item", "prompt", "task")}
    texts = [" An answer.\n\u2028😀 ", "x", " ", "a\0b", "\ud800", 5]
    rows = [{"item": ln["item"], "answer": t} for ln, t in zip(lines, texts, strict=True)]
    done = back(batch, rows)
    assert (done.accepted, done.labels, done.agreement) == (True, 2, None)
    assert [reject.line for reject in done.rejects] == [3, 4, 5, 6]
    found = read_labels(store).conversations
    assert {row.messages[-1].text for row in found} == {texts[0], "x"}
    assert {(row.vendor, row.origin) for row in found} == {("acme", "human")}
    assert states(store) == {"filled": 2, "free": 10}


def test_reserved_slots_go_to_nobody_else_and_overlap_is_kept(store, person, tasks, send, back):
    tasks(3, kind="compare", overlap=2)
    tasks(1, kind="compare", key="single")
    batch, lines = send(20, share=0)
    assert batch.items == 4
    with pytest.raises(UserError, match="no open task to compare"):
        send(20, share=0, vendor="second")
    worker, other = person("w"), person("v")
    seen = set()
    while work := next_task(store, worker, "compare"):
        seen.add(work.prompt[0].text)
        submit_comparison(store, worker, work.token, Verdict((1, 2, 3, 4)), work.token)
    assert seen == {f"Question t {n}?" for n in range(3)}
    assert next_task(store, other, "compare") is None
    assert back(batch, answered(lines)).labels == 4
    assert states(store) == {"filled": 7}
    assert next_task(store, other, "compare") is None
    by_task: dict[str, list[str]] = {}
    for row in read_labels(store).comparisons:
        by_task.setdefault(row.prompt[0].text, []).append(row.vendor)
    assert sorted(map(sorted, by_task.values())) == [["", "acme"]] * 3 + [["acme"]]
    with pytest.raises(UserError, match="no open task"):
        send(20, share=0)  # never a second voice of a vendor on the same task


def test_withdrawn_tasks_are_open_again(store, lead, person, tasks, gold, send, back):
    tasks(20, kind="compare")
    gold()
    batch, lines = send()
    withdraw(store, lead, batch.batch)
    assert states(store) == {"free": 20}
    assert next_task(store, person("w"), "compare") is not None
    for deed in (
        lambda: back(batch, answered(lines)),
        lambda: withdraw(store, lead, batch.batch),
    ):
        with pytest.raises(UserError, match="is withdrawn; nothing more comes of it"):
            deed()
    with store.read() as session:
        verbs = session.scalars(select(EventRow.verb).where(EventRow.verb.like("vendor%"))).all()
    assert verbs == ["vendor-out", "vendor-withdrawn"]


def test_who_may_and_what_cannot_be_sent(store, lead, person, tasks, gold, send, back, tmp_path):
    tasks(20, kind="compare")
    gold(4)
    for role in ("labeler", "reviewer", "engineer"):
        with pytest.raises(DeniedError):
            send_out(store, person(role, role), "acme", "compare", 5, tmp_path / "x", 0)
    for kwargs, why in (
        ({"count": 0}, "a batch of 0"),
        ({"count": 10_001}, "a batch of 10001"),
        ({"share": 0.6}, "gold share of 0.6"),
        ({"share": float("nan")}, "gold share of nan"),
        ({"vendor": " "}, "the vendor's name is empty"),
        ({}, "4 known answers for 20 tasks"),
        ({"area": "write"}, "no open task to write"),
    ):
        with pytest.raises(UserError, match=why):
            send(**kwargs)
    assert not list(tmp_path.glob("**/tasks.jsonl"))
    assert states(store) == {"free": 20}
    assert count(store, VendorBatch) == count(store, VendorItem) == 0
    batch, lines = send(20, share=0)
    [sent] = tmp_path.glob("*/tasks.jsonl")
    with pytest.raises(DeniedError):
        take_back(store, person("engineer", "engineer"), batch.batch, sent)
    with pytest.raises(UserError, match="cannot read"):
        take_back(store, lead, batch.batch, tmp_path / "absent")
    projects.create_project(store, "other")
    guidelines.publish_default(store, project="other")
    stranger = auth.command_line(store, "other")
    for deed in (
        lambda: withdraw(store, stranger, batch.batch),
        lambda: take_back(store, stranger, batch.batch, sent),
        lambda: withdraw(store, lead, 99),
    ):
        with pytest.raises(UserError, match=r"no batch \d+ in this project"):
            deed()
    with pytest.raises(UserError, match="no open task"):
        send_out(store, stranger, "acme", "compare", 5, tmp_path / "x", 0)
    assert back(batch, answered(lines)).labels == 20


def test_the_most_urgent_go_first(store, tasks, send):
    tasks(5, kind="compare")
    tasks(2, kind="compare", key="urgent", priority=3)
    _, lines = send(2, share=0)
    assert {line["prompt"][0]["content"][:15] for line in lines} == {"Question urgent"}


def test_new_instructions_meanwhile_do_not_stop_a_batch(store, lead, tasks, send, back):
    tasks(2, kind="compare")
    batch, lines = send(2, share=0)
    guidelines.publish(store, lead, "1.1 Another rule.")
    assert back(batch, answered(lines)).labels == 2
    assert {row.instruction_version for row in read_labels(store).comparisons} == {1}


def test_a_second_batch_does_not_write_over_the_first(store, lead, tasks, tmp_path):
    tasks(4, kind="compare")
    send_out(store, lead, "acme", "compare", 2, tmp_path / "out", 0)
    before = (tmp_path / "out" / "tasks.jsonl").read_bytes()
    with pytest.raises(UserError, match="out"):
        send_out(store, lead, "acme", "compare", 2, tmp_path / "out", 0)
    assert (tmp_path / "out" / "tasks.jsonl").read_bytes() == before
