"""What people hand in: every value kept and exported as given, every misfit refused unused."""

import datetime as dt

import pytest
from sqlalchemy import func, select

from labeling_app.assignment import LeaseLostError, next_task
from labeling_app.drafts import save_draft
from labeling_app.export import export_labels, read_labels
from labeling_app.projects import FLAGS, configure
from labeling_app.schema import Demonstration, Lease, RankedItem, RankedSet, Slot
from labeling_app.store import MAX_TEXT_BYTES
from labeling_app.submissions import (
    MAX_ACTIVE_MS,
    MAX_TURNS,
    Trace,
    skip,
    submit_comparison,
    submit_demonstration,
)
from labeling_app.tasks import NewAnswer, NewTask, add_tasks
from labeling_app.verdicts import CONFIDENCES, DEGREES, Verdict
from pipeline.core.errors import UserError
from pipeline.core.records import Comparison, Conversation, Message, read_records

TEXTS = {
    "arabic": "مرحبا بالعالم، كيف الحال؟",
    "hebrew": "שלום עולם",
    "mixed-direction": "abc \u202eשלום\u202c 123 \u2066x\u2069",
    "han": "漢字かな交じり文 한국어 𠮷野家",
    "indic": "हिन्दी தமிழ் বাংলা ಕನ್ನಡ",
    "african": "አማርኛ ߒߞߏ Yorùbá",
    "thai": "ภาษาไทยไม่มีช่องว่าง",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ☃️",
    "combining": "e\u0301 Z\u0351\u036b\u0343 A\u030a Å",
    "ancient": "𓀀𓂀 𐎠𐎡 𒀀",
    "controls": "a\x01\x07\x08\x0b\x0c\x1b[31m\x7f\x85z",
    "blanks": "  \tfirst\r\nsecond\rthird\u2028\u2029\u00a0\u3000end \n",
    "zero-width": "a\u200bb\u200d\ufeff\u00ad",
    "non-characters": "\ufffe\uffff\U0010ffff\ue000",
    "markup": "<script>alert(1)</script> **b** $x$ ![](http://x.example/y) '; DROP TABLE users;--",
    "escapes": '\\u0000 \\n %s {0} %(x)s :name ? "quoted"',
}


def write(store, who, text, token=None):
    token = token or next_task(store, who, "write").token
    return submit_demonstration(store, who, token, text, token)


def ask_pair(store, lead, k=2) -> None:
    answers = tuple(NewAnswer(f"m{place}", f"Answer {place}.") for place in range(k))
    task = NewTask("pair", "compare", (Message.of("user", "Which?"),), "test", answers)
    add_tasks(store, lead, [task])


def count(store, model) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(model))


@pytest.mark.parametrize("k", range(2, 10))
def test_all_of_a_verdict_is_kept_and_exported(store, lead, person, tmp_path, k):
    ask_pair(store, lead, k)
    worker = person("w")
    verdict = Verdict(
        ranks=tuple(range(k, 0, -1)),
        confidence="very",
        likert=tuple([None, 7, 1, 4, 2, 3, 5, 6, None][:k]),
        flags=((FLAGS[2], FLAGS[0]), *[()] * (k - 2), FLAGS),
        degree="significantly" if k == 2 else None,
        comment=" Both <b>are</b> good.\n😀",
    )
    work = next_task(store, worker, "compare")
    assert len(work.answers) == k
    submit_comparison(store, worker, work.token, verdict, "k", Trace(active_ms=61_000))
    url = export_labels(store, str(tmp_path / "out")).comparisons_url
    [row] = read_records(url, Comparison)
    assert tuple(answer.rank for answer in row.responses) == verdict.ranks
    assert tuple(answer.likert for answer in row.responses) == verdict.likert
    assert tuple(answer.flags for answer in row.responses) == verdict.flags
    assert [answer.text for answer in row.responses] == [f"Answer {place}." for place in range(k)]
    assert (row.confidence, row.degree, row.comment) == ("very", verdict.degree, verdict.comment)
    assert (row.not_rankable, row.not_rankable_reason, row.active_ms) == (False, "", 61_000)
    assert row.shown_order == tuple(answer.position for answer in work.answers)
    assert len(list(row.pairs())) == k * (k - 1) // 2


def test_what_cannot_be_ranked_says_why_and_gives_no_pair(store, lead, person, tmp_path):
    ask_pair(store, lead, 4)
    worker = person("w")
    work = next_task(store, worker, "compare")
    flags = ((FLAGS[3],), (), (), (FLAGS[4],))
    verdict = Verdict(flags=flags, comment="See the second.", not_rankable="Cut off: 漢字")
    submit_comparison(store, worker, work.token, verdict, "k")
    [row] = read_records(export_labels(store, str(tmp_path)).comparisons_url, Comparison)
    assert (row.not_rankable, row.not_rankable_reason) == (True, "Cut off: 漢字")
    assert (row.comment, tuple(answer.flags for answer in row.responses)) == (
        "See the second.",
        flags,
    )
    assert {answer.rank for answer in row.responses} == {1}
    assert list(row.pairs()) == []


@pytest.mark.parametrize("ranks", [(1, 1), (2, 2), (1, 2), (2, 1)])
@pytest.mark.parametrize("degree", [None, *DEGREES])
def test_a_degree_is_for_two_answers_that_do_not_tie(store, lead, person, ranks, degree):
    ask_pair(store, lead)
    worker = person("w")
    work = next_task(store, worker, "compare")
    if degree and ranks[0] == ranks[1]:
        with pytest.raises(UserError, match="two answers that do not tie"):
            submit_comparison(store, worker, work.token, Verdict(ranks, degree=degree), "k")
        assert count(store, RankedSet) == 0
    else:
        submit_comparison(store, worker, work.token, Verdict(ranks, degree=degree), "k")
        [row] = read_labels(store).comparisons
        assert (tuple(answer.rank for answer in row.responses), row.degree) == (ranks, degree)


OK = (1, 2, 3)
MISFITS = [
    (Verdict((1, 2)), "2 ranks for 3 answers"),
    (Verdict(()), "0 ranks for 3"),
    (Verdict((1, 2, 4)), "rank 4"),
    (Verdict((1, 2, 0)), "rank 0"),
    (Verdict((1, 2, None)), "rank None"),
    (Verdict((True, 2, 3)), "rank True"),
    (Verdict(OK, "sure"), "confidence 'sure'"),
    (Verdict(OK, ""), "confidence ''"),
    (Verdict(OK, likert=(1, 2)), "2 values of likert for 3 answers"),
    (Verdict(OK, likert=(1, 2, 3, 4)), "4 values of likert"),
    (Verdict(OK, likert=(1, 2, 8)), "quality 8"),
    (Verdict(OK, likert=(0, 2, 3)), "quality 0"),
    (Verdict(OK, likert=(1, True, 3)), "quality True"),
    (Verdict(OK, likert=(1, 2.0, 3)), r"quality 2\.0"),
    (Verdict(OK, likert=(1, "2", 3)), "quality '2'"),
    (Verdict(OK, flags=((), ())), "2 values of flags"),
    (Verdict(OK, flags=((), (), ("odd",))), "box 'odd'"),
    (Verdict(OK, flags=((), (), FLAGS[0])), "box 'f'"),
    (Verdict(OK, degree="slightly"), "two answers that do not tie"),
    (Verdict(OK, degree="much"), "degree 'much'"),
    (Verdict(OK, degree=""), "degree ''"),
    (Verdict(OK, comment=" "), "comment is empty"),
    (Verdict(OK, comment="x" * 2001), "2001 characters"),
    (Verdict(OK, comment="a\0"), "comment holds a NUL"),
    (Verdict(OK, comment="\udfff"), "comment is not valid Unicode"),
    (Verdict(OK, not_rankable="Bad."), "has no ranks"),
    (Verdict(degree="slightly", not_rankable="Bad."), "has no ranks"),
    (Verdict(likert=(1, 2, 3), not_rankable="Bad."), "has no"),
    (Verdict(not_rankable=" "), "reason why it cannot be ranked is empty"),
    (Verdict(not_rankable="x" * 2001), "2001 characters"),
    (Verdict(not_rankable="\0x"), "NUL"),
]


@pytest.mark.parametrize(("verdict", "why"), MISFITS)
def test_a_misfit_is_refused_and_nothing_used_up(store, lead, person, verdict, why):
    ask_pair(store, lead, 3)
    worker = person("w")
    work = next_task(store, worker, "compare")
    with pytest.raises(UserError, match=why):
        submit_comparison(store, worker, work.token, verdict, "k")
    assert count(store, RankedSet) == count(store, RankedItem) == 0
    assert next_task(store, worker, "compare").token == work.token
    submit_comparison(store, worker, work.token, Verdict(OK, comment="x" * 2000), "k")


def test_the_boxes_are_the_projects(store, lead, person):
    ask_pair(store, lead)
    configure(store, lead, flags=["rude", "Übertrieben 😀"])
    worker = person("w")
    token = next_task(store, worker, "compare").token
    with pytest.raises(UserError, match="not one of this project's"):
        submit_comparison(store, worker, token, Verdict((1, 2), flags=((FLAGS[0],), ())), "k")
    verdict = Verdict((1, 2), flags=(("Übertrieben 😀",), ("rude",)))
    submit_comparison(store, worker, token, verdict, "k")
    [row] = read_labels(store).comparisons
    assert tuple(answer.flags for answer in row.responses) == verdict.flags


def test_a_digest_is_of_all_that_was_said_and_of_nothing_else():
    said = [
        Verdict((1, 2)),
        Verdict((2, 1)),
        *[Verdict((1, 2), confidence) for confidence in CONFIDENCES],
        *[Verdict((1, 2), degree=degree) for degree in DEGREES],
        Verdict((1, 2), likert=(1, None)),
        Verdict((1, 2), likert=(None, 1)),
        Verdict((1, 2), flags=(("x",), ())),
        Verdict((1, 2), flags=((), ("x",))),
        Verdict((1, 2), comment="x"),
        Verdict(not_rankable="x"),
    ]
    assert len({verdict.digest(["a", "b"]) for verdict in said}) == len(said)
    assert said[0].digest(["a", "b"]) != said[0].digest(["b", "a"])
    empty = Verdict((1, 2), likert=(None, None), flags=((), ()))
    assert empty.digest(["a", "b"]) == said[0].digest(["a", "b"])


def test_the_same_key_with_another_verdict_is_refused(store, lead, person):
    ask_pair(store, lead)
    worker = person("w")
    token = next_task(store, worker, "compare").token
    first = submit_comparison(store, worker, token, Verdict((1, 2), comment="x"), "k")
    again = submit_comparison(store, worker, token, Verdict((1, 2), comment="x"), "k")
    assert (again.submission_id, again.repeated) == (first.submission_id, True)
    with pytest.raises(UserError, match="with other content; it stands"):
        submit_comparison(store, worker, token, Verdict((1, 2), comment="y"), "k")
    assert read_labels(store).comparisons[0].comment == "x"


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_text_comes_out_as_it_went_in(store, person, tasks, tmp_path, text):
    tasks(1)
    worker = person("w")
    work = next_task(store, worker, "write")
    save_draft(store, worker, work.token, 1, {"turns": [{"role": "assistant", "text": text}]})
    assert next_task(store, worker, "write").draft.body["turns"][0]["text"] == text
    write(store, worker, text, work.token)
    [row] = read_records(export_labels(store, str(tmp_path)).conversations_url, Conversation)
    assert row.messages[-1].text == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" \u3000\n", "empty"),
        ("a\0b", "NUL"),
        ("a\ud800", "Unicode"),
        ("\udc00\ud800", "Unicode"),
    ],
)
def test_a_text_that_cannot_be_kept_is_refused_and_the_task_stays(store, person, tasks, text, why):
    tasks(1)
    worker = person("w")
    work = next_task(store, worker, "write")
    for answer in (text, (Message.of("assistant", "x"), Message.of("user", text))):
        with pytest.raises(UserError, match=why):
            submit_demonstration(store, worker, work.token, answer, "k")
    with pytest.raises(UserError, match=why):
        submit_demonstration(store, worker, work.token, "Good.", text)  # as its key
    write(store, worker, "Good.", work.token)


@pytest.mark.parametrize("letter", ["x", "é", "漢", "😀"])
def test_an_answer_of_a_megabyte_is_taken_and_a_byte_more_is_not(store, person, tasks, letter):
    tasks(1)
    worker = person("w")
    work = next_task(store, worker, "write")
    size = len(letter.encode())
    longest = letter * (MAX_TEXT_BYTES // size) + "y" * (MAX_TEXT_BYTES % size)
    with pytest.raises(UserError, match=r"1,048,577 bytes; at most 1,048,576"):
        write(store, worker, longest + "y", work.token)
    write(store, worker, longest, work.token)
    assert read_labels(store).conversations[0].messages[-1].text == longest


def test_what_can_be_handed_in_can_be_saved_while_it_is_typed(store, person, tasks):
    tasks(1)
    worker = person("w")
    work = next_task(store, worker, "write")
    text = 'It is "long".\n' * (MAX_TEXT_BYTES // 15)
    save_draft(store, worker, work.token, 1, {"turns": [{"role": "assistant", "text": text}]})
    write(store, worker, text, work.token)


def turns(roles: str) -> tuple[Message, ...]:
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return tuple(Message.of(names[role], f"Turn {n}.") for n, role in enumerate(roles))


@pytest.mark.parametrize("kind", ["demo", "question"])
@pytest.mark.parametrize(
    "roles", ["", "a", "u", "ua", "au", "aua", "uaua", "aa", "uua", "sa", "sua", "uta", "tua",
              "ua" * 20, "ua" * 21, "a" + "ua" * 19, "a" + "ua" * 20]
)  # fmt: skip
def test_turns_alternate_and_end_with_an_answer(store, person, tasks, kind, roles):
    tasks(1, kind=kind)
    worker = person("w")
    work = next_task(store, worker, "write")
    said = turns(roles)
    ends = "a" + "ua" * (len(roles) // 2) if kind == "demo" else "ua" * (len(roles) // 2)
    if roles and roles == ends and len(roles) <= MAX_TURNS:
        write(store, worker, said, work.token)
        [row] = read_labels(store).conversations
        asked = (Message.of("user", "Question t 0?"),) if kind == "demo" else ()
        assert row.messages == (*asked, *said)
    else:
        with pytest.raises(UserError, match=r"turns alternate|at most 40"):
            write(store, worker, said, work.token)
        assert count(store, Demonstration) == 0
        assert next_task(store, worker, "write").token == work.token


def test_an_expired_lease_comes_back_while_its_slot_is_free(store, clock, person, tasks):
    tasks(1)
    tasks(1, key="other")
    worker, other = person("w"), person("v")
    work = next_task(store, worker, "write", lease=dt.timedelta(minutes=1))
    mine = next_task(store, other, "write")  # of the other task
    clock.move(minutes=2)
    skip(store, other, mine.token, "unclear")
    taken = next_task(store, other, "write")  # gives the expired one back, and takes its slot
    assert taken.task_id == work.task_id
    for deed in (
        lambda: write(store, worker, "Late.", work.token),
        lambda: skip(store, worker, work.token, "unclear"),
    ):
        with pytest.raises(LeaseLostError, match=r"no longer yours \(expired\)"):
            deed()
    skip(store, other, taken.token, "unclear")
    assert not write(store, worker, "Late.", work.token).repeated
    with store.read() as session:
        lease = session.scalars(select(Lease).where(Lease.token == work.token)).one()
        assert (lease.outcome, session.get(Slot, lease.slot_id).state) == ("submitted", "filled")


def test_typing_brings_an_expired_lease_back_to_life(store, clock, person, tasks):
    tasks(1)
    worker, other = person("w"), person("v")
    work = next_task(store, worker, "write")
    clock.move(hours=2)
    other_work = next_task(store, other, "write")
    skip(store, other, other_work.token, "unclear")
    save_draft(store, worker, work.token, 1, {"text": "Half"})
    assert next_task(store, person("x"), "write") is None
    back = next_task(store, worker, "write")
    assert (back.token, back.expires) == (work.token, clock() + dt.timedelta(minutes=45))


def test_an_old_page_hands_in_under_ones_newer_lease_of_the_same_task(store, clock, person, tasks):
    tasks(1, overlap=2)
    worker, other = person("w"), person("v")
    old = next_task(store, worker, "write")
    clock.move(hours=2)
    write(store, other, "By the other.")  # in the slot that the old lease held
    new = next_task(store, worker, "write")
    assert (new.task_id, new.token != old.token) == (old.task_id, True)
    save_draft(store, worker, old.token, 1, {"text": "Half"})
    assert next_task(store, worker, "write").draft.body == {"text": "Half"}
    assert write(store, worker, "From the old page.", old.token).repeated is False
    with pytest.raises(LeaseLostError, match="submitted"):
        write(store, worker, "From the new page.", new.token)
    with store.read() as session:
        assert session.scalars(select(Slot.state)).all() == ["filled", "filled"]
    assert len(read_labels(store).conversations) == 2


@pytest.mark.parametrize(
    ("seen", "kept"),
    [
        (None, (0, 0)),
        (Trace(1, 2), (1, 2)),
        (Trace(-1, -(2**70)), (0, 0)),
        (Trace(2**70, 2**70), (MAX_ACTIVE_MS, 2**31 - 1)),
        (Trace(MAX_ACTIVE_MS, 2**31 - 1), (86_400_000, 2_147_483_647)),
    ],
)
def test_what_a_page_claims_to_have_seen_is_bounded(store, person, tasks, seen, kept):
    tasks(1)
    worker = person("w")
    work = next_task(store, worker, "write")
    submit_demonstration(store, worker, work.token, "Mine.", "k", seen)
    [row] = read_labels(store).conversations
    assert (row.active_ms, row.pasted_chars) == kept
