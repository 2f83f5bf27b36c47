"""The LLM's help: what is shown, what is recorded, and what hostile texts can do to its prompts."""

import itertools
import json
import re
import threading
import time

import httpx
import pytest
from sqlalchemy import select

from labeling_app import assist, guidelines, projects
from labeling_app.app_settings import Assistant
from labeling_app.assignment import LeaseLostError, next_task
from labeling_app.auth import DeniedError
from labeling_app.chat import ChatClient
from labeling_app.guidelines import Clause
from labeling_app.schema import Assist, AssistAction, EventRow, Lease
from labeling_app.submissions import submit_demonstration
from pipeline.core.errors import UserError
from pipeline.core.identity import sha256_text
from tests.labeling_app.assists import CRITIC, DRAFTER, Model, events, human, rows

CLAUSES = (Clause("1", "Truth"), Clause("1.2", "Be brief."))


@pytest.fixture
def kaya(store, lead):
    projects.configure(store, lead, unassisted_share=0, gold_share=0)
    return human(store, lead)


@pytest.fixture
def work(store, kaya, tasks):
    tasks(1)
    return next_task(store, kaya, "write")


def test_a_draft_comes_in_paragraphs_from_each_model_that_can(store, kaya, work):
    model = Model(events("\n\nFirst,\r\n\r\n", "\n\nsecond\nline.\n\n \n\n", "Third."))
    silent = Assistant(endpoint="http://m.test", model="silent", abilities=())
    other = Assistant(endpoint="http://m.test", model="other", abilities=("draft", "critique"))
    able = (DRAFTER, silent, CRITIC, other)
    shown = assist.ask(store, kaya, work.token, "draft", able, client=model.client)
    assert sorted(body["model"] for body in model.asked) == ["other", "tiny"]
    assert [[part.text for part in each.parts] for each in shown] == [
        ["First,", "second\nline.", "Third."]
    ] * 2
    assert assist.shown_before(store, kaya, work.token) == shown


def test_several_models_are_asked_at_once_and_shown_in_their_order(store, kaya, work):
    names = ("slow", "quick", "third")
    both_asked, answered = threading.Barrier(len(names), timeout=30), []

    class Waits(Model):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            name = json.loads(request.content)["model"]
            both_asked.wait()  # one after the other would wait here for ever
            while name == "slow" and len(answered) < len(names) - 1:
                time.sleep(0.001)
            answered.append(name)
            return httpx.Response(200, content=events(f"By {name}."))

    able = [Assistant(endpoint="http://m.test", model=n, abilities=("draft",)) for n in names]
    shown = assist.ask(store, kaya, work.token, "draft", able, client=Waits().client)
    assert answered[-1] == "slow"
    assert [each.parts[0].text for each in shown] == [f"By {name}." for name in names]
    assert assist.shown_before(store, kaya, work.token) == shown
    assert [row.model for row in rows(store, Assist)] == list(names)


def test_without_a_model_whose_card_says_so_nobody_is_asked(store, kaya, work):
    model = Model(events("x"))
    for able in ((), (CRITIC,), (Assistant(endpoint="http://m.test", model="m", abilities=()),)):
        with pytest.raises(UserError, match="no model here can draft"):
            assist.ask(store, kaya, work.token, "draft", able, client=model.client)
    assert (model.asked, rows(store, Assist)) == ([], [])


def test_an_endpoints_models_are_known_by_their_cards():
    def client(data: object) -> ChatClient:
        reply = data if isinstance(data, bytes) else json.dumps({"data": data}).encode()
        answer = httpx.MockTransport(lambda _: httpx.Response(200, content=reply))
        return ChatClient("http://m.test", transport=answer)

    cards = [
        {"id": "plain"},
        {"id": "some", "abilities": ["rank-check", "draft", "fly", 7, None, {"a": []}]},
        {"id": "text", "abilities": "draft"},
        {"id": "none", "abilities": []},
        {"id": "odd", "abilities": {"draft": True}},
    ]
    [found] = assist.served("http://m.test", client(cards))
    assert (found.model, found.abilities) == ("some", ("draft", "rank-check"))
    for nothing in ([], [{"x": 1}], b"<html>", b"", [7], b"\xff"):
        assert assist.served("http://m.test", client(nothing)) == ()


def test_many_paragraphs_become_the_last_part():
    text = "\n\n".join(f"p{n}" for n in range(100))
    parts = assist.paragraphs(text)
    assert len(parts) == assist.MAX_PARTS
    assert "\n\n".join(part.text for part in parts) == text
    assert [assist.paragraphs(empty) for empty in ("", " \n\n\t\n\n")] == [(), ()]


def finding(clause: object = "1.2", quote: object = "", why: object = "Because.") -> dict:
    return {"clause": clause, "quote": quote, "why": why}


def test_findings_cite_clauses_that_there_are_and_words_that_the_text_holds():
    said = [
        finding(quote="an egg"),
        finding(quote="no such words"),
        finding(clause="1.3"),
        finding(clause="12"),
        finding(clause=" 1 ", quote=""),
        finding(why=" "),
        finding(clause=None),
        finding(clause=["1"]),
        "1.2",
        None,
        [finding()],
        {"clause": "1.2"},
    ]
    for reply in (json.dumps(said), f"Here you are:\n```json\n{json.dumps(said)}\n```\nBye."):
        found = assist.findings(reply, CLAUSES, "I boil an egg.")
        assert [(part.clause, part.quote) for part in found] == [
            ("1.2", "an egg"), ("1.2", ""), ("1", "")
        ]  # fmt: skip
    assert assist.findings("[]", CLAUSES, "x") == ()
    many = assist.findings(json.dumps([finding(why="w" * 900)] * 50), CLAUSES, "x")
    assert [len(part.text) for part in many] == [500] * assist.MAX_FINDINGS
    long = "q" * 300
    assert assist.findings(json.dumps([finding(quote=long)]), CLAUSES, long)[0].quote == "q" * 200


@pytest.mark.parametrize(
    "reply", ["", "I see none.", "{}", "][", '[{"clause": ', "null", "[" * 5000 + "]", "[1,]"]
)
def test_a_reply_that_is_no_list_is_an_error_and_not_praise(store, kaya, work, reply):
    model = Model(events(reply, " "))
    [shown] = assist.ask(
        store, kaya, work.token, "critique", (CRITIC,), "My text.", client=model.client
    )
    assert "not a list of findings" in shown.error
    assert shown.parts == ()


def test_a_critique_reads_the_persons_own_text(store, kaya, work):
    number = guidelines.newest(store, kaya).clauses[0].number
    reply = json.dumps([finding(number, "My text"), finding("99.9", "My text")])
    model = Model(events(reply))
    [shown] = assist.ask(
        store, kaya, work.token, "critique", (CRITIC,), "My text.", client=model.client
    )
    assert shown.parts == (assist.Part("Because.", number, "My text"),)
    assert "answer begins]\nMy text.\n[" in model.prompts()[0][1]
    for empty in ("", " \n", "a\0b", "\ud800", "x" * 2_000_000):
        with pytest.raises(UserError, match="your text"):
            assist.ask(store, kaya, work.token, "critique", (CRITIC,), empty, client=model.client)
    assert len(model.asked) == 1


def test_a_rank_check_reads_the_answers_under_their_letters_on_the_screen(store, kaya, tasks):
    tasks(1, kind="compare", k=5)
    work = next_task(store, kaya, "compare")
    model = Model(events("[]"))
    said = "A, then B and C tie."
    assist.ask(store, kaya, work.token, "rank-check", (CRITIC,), said, client=model.client)
    system, user = model.prompts()[0]
    found = re.findall(r"answer ([A-E]) begins\]\n(.*)\n", user)
    assert found == [("ABCDE"[n], answer.text) for n, answer in enumerate(work.answers)]
    assert f"ranking begins]\n{said}\n" in user
    assert said not in system


def test_help_is_withheld_where_it_is_measured(store, lead, tasks):
    projects.configure(store, lead, unassisted_share=1)
    tasks(1)
    who, model = human(store, lead), Model(events("x"))
    work = next_task(store, who, "write")
    assert not work.assisted
    with pytest.raises(DeniedError, match="without help"):
        assist.ask(store, who, work.token, "draft", (DRAFTER,), client=model.client)
    assert (model.asked, rows(store, Assist)) == ([], [])


def test_help_is_for_whoever_has_the_task(store, clock, lead, kaya, work, person):
    noor, model = human(store, lead, "noor"), Model(events("x"))

    def ask(who, token: str = work.token) -> list:
        return assist.ask(store, who, token, "draft", (DRAFTER,), client=model.client)

    for who in (noor, kaya):
        with pytest.raises(LeaseLostError, match="not given to you"):
            ask(who, work.token if who is noor else "another")
    with pytest.raises(DeniedError, match="is a engineer"):
        ask(person("eng", "engineer"))
    [shown] = ask(kaya)
    with pytest.raises(DeniedError, match="not given to you"):
        assist.act(store, noor, shown.id, 0, "take")
    assert assist.shown_before(store, noor, work.token) == []
    clock.move(hours=2)
    assert next_task(store, noor, "write").task_id == work.task_id
    with pytest.raises(DeniedError, match="no longer yours"):
        ask(kaya)
    submit_demonstration(store, noor, next_task(store, noor, "write").token, "So.", "k")
    with store.read() as session:
        submitted = session.scalars(select(Lease.token).where(Lease.outcome == "submitted")).one()
    with pytest.raises(DeniedError, match=r"no longer yours \(submitted\)"):
        ask(noor, submitted)
    assert len(model.asked) == 1


@pytest.mark.parametrize(
    ("reply", "status", "why"),
    [
        (httpx.ConnectError("no"), 200, "nothing answers"),
        (httpx.ReadTimeout("slow"), 200, "said nothing for too long"),
        (httpx.ReadError("gone"), 200, "broke off"),
        ('{"error": {"message": "overloaded"}}', 500, "status 500: overloaded"),
        ("<!DOCTYPE html><h1>Error</h1>", 502, "not as an OpenAI"),
        ("garbage", 200, "broke off before the end"),
        (b"\xff\xfe\x00", 200, "broke off before the end"),
        ("data: {", 200, "no answer"),
        ('data: {"choices": [{"delta": {"content": ["x"]}}]}\n\ndata: [1]\n\n', 200, "no answer"),
        (events("half", end=False), 200, "broke off before the end"),
        (events(*["x" * 5000] * 5), 200, "more than 20,000 characters"),
        (events(" \n\n "), 200, "nothing to say"),
        (events("\0\0"), 200, "nothing to say"),
    ],
)
def test_a_model_that_fails_is_recorded_and_work_goes_on(store, kaya, work, reply, status, why):
    broken, good = Model(reply, status), Model(events("Fine."))
    pick = {"tiny": broken, "other": good}
    other = Assistant(endpoint="http://m.test", model="other", abilities=("draft",))
    shown = assist.ask(
        store, kaya, work.token, "draft", (DRAFTER, other),
        client=lambda assistant: pick[assistant.model].client(assistant),
    )  # fmt: skip
    assert why in shown[0].error
    assert not set("<\n\0") & set(shown[0].error)
    assert [part.text for part in shown[1].parts] == ["Fine."]
    assert [(row.model, row.error, len(row.output)) for row in rows(store, Assist)] == [
        ("tiny", shown[0].error, 0), ("other", "", 1)
    ]  # fmt: skip
    assert assist.shown_before(store, kaya, work.token) == shown[1:]
    assert not submit_demonstration(store, kaya, work.token, "Mine.", "k").repeated


def test_an_address_that_is_none_and_a_model_too_slow_are_recorded(store, kaya, work):
    nowhere = Assistant(endpoint="nowhere", model="m", abilities=("draft",))
    [shown] = assist.ask(store, kaya, work.token, "draft", (nowhere,))
    assert "not a URL" in shown.error
    ticks = itertools.count(0, 20)
    model = Model(events(*"abcdef"))

    def slow(_: Assistant) -> ChatClient:
        transport = httpx.MockTransport(model)
        return ChatClient("http://m.test", transport=transport, monotonic=lambda: next(ticks))

    [shown] = assist.ask(store, kaya, work.token, "draft", (DRAFTER,), client=slow)
    assert "took longer than 45 s" in shown.error
    assert len(rows(store, Assist)) == 2


@pytest.mark.parametrize("sign", ["a\0b", "a\ud800b", "<img src=x onerror=alert(1)>", "\x1b[31m"])
def test_odd_signs_of_a_model_are_stored_as_text(store, kaya, work, sign):
    model = Model(events(sign))
    [shown] = assist.ask(store, kaya, work.token, "draft", (DRAFTER,), client=model.client)
    expected = sign.replace("\0", "").replace("\ud800", "?")
    assert (shown.error, shown.parts) == ("", (assist.Part(expected),))
    reply = json.dumps([finding(guidelines.newest(store, kaya).clauses[0].number, why=sign)])
    [shown] = assist.ask(
        store, kaya, work.token, "critique", (CRITIC,), "x", client=Model(events(reply)).client
    )
    assert (shown.error, shown.parts[0].text) == ("", expected)


def test_all_that_was_shown_and_done_is_recorded(store, clock, kaya, work):
    model = Model(events("One.\n\nTwo."))
    [shown] = assist.ask(store, kaya, work.token, "draft", (DRAFTER,), "typed", client=model.client)
    for part in (1, 0, 1):
        assist.act(store, kaya, shown.id, part, "take")
    for part, action in ((2, "take"), (-1, "take"), (0, "accept"), (0, "reject"), (0, "")):
        with pytest.raises(UserError, match="means nothing"):
            assist.act(store, kaya, shown.id, part, action)
    with pytest.raises(DeniedError):
        assist.act(store, kaya, shown.id + 1, 0, "take")
    [row] = rows(store, Assist)
    assert (row.kind, row.model, row.error, row.shown_at) == ("draft", "tiny", "", clock.now)
    assert row.prompt_sha256 == sha256_text(assist.prompt_of("draft"))
    assert row.input_sha256 == sha256_text("typed")
    assert [part["text"] for part in row.output] == ["One.", "Two."]
    assert [(r.part, r.action) for r in rows(store, AssistAction)] == [
        (1, "take"), (0, "take"), (1, "take")
    ]  # fmt: skip
    logged = [each for each in rows(store, EventRow) if each.verb.startswith("assist")]
    assert [(each.verb, each.target) for each in logged] == [
        ("assist-shown", f"assist:{row.id}"), *[("assist-take", f"assist:{row.id}")] * 3
    ]  # fmt: skip
    assert logged[0].payload == {"kind": "draft", "typed_chars": 5, "error": ""}
    assert all(each.actor.startswith("person-") for each in logged)


def test_the_number_of_helps_for_one_task_has_an_end(store, kaya, work):
    model = Model(events("x"))
    for _ in range(assist.MAX_ASSISTS):
        assist.ask(store, kaya, work.token, "draft", (DRAFTER,), client=model.client)
    with pytest.raises(UserError, match="30 helps for one task are enough"):
        assist.ask(store, kaya, work.token, "draft", (DRAFTER,), client=model.client)
    assert len(model.asked) == assist.MAX_ASSISTS
