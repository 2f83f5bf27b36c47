"""The requests that the work pages make themselves, over HTTP against the real app."""

import contextlib
import http.client
import urllib.parse
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import select

from labeling_app import auth, guidelines, invitations, labels, projects, sessions
from labeling_app.app_settings import AppSettings, Assistant
from labeling_app.assignment import next_task
from labeling_app.drafts import MAX_DRAFT_BYTES
from labeling_app.page_api import MAX_BODY, PAGE_HEADER
from labeling_app.schema import Assist, AssistAction, Demonstration, Lease, RankedItem
from labeling_app.store import MAX_TEXT_BYTES, Store, open_store
from tests import postgres
from tests.labeling_app import browser
from tests.labeling_app.desk import Desk, answer, at_once, dead_pages, desk_of, ranking
from tests.labeling_app.scripted_model import ScriptedModel, serve

DEEDS = ("draft", "submit", "put-back", "give-up", "assist", "assist-action")


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    with serve(ScriptedModel(["draft"], {"possible answer": "One.\n\nTwo."})) as scripted:
        yield scripted


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def served(request, empty_stores, model) -> Iterator[tuple[str, Store]]:
    store = open_store(empty_stores(request.param))
    with browser.running(AppSettings(store=store.url, endpoint=model.url)) as app:
        yield app.url, store
    store.close()


@pytest.fixture
def desk(served) -> Desk:
    return desk_of(*served)


def test_a_draft_is_kept_and_an_older_one_changes_nothing(desk):
    kaya = desk.person()
    work = desk.work(kaya)
    body = {"token": work.token, "rev": 2, "body": {"turns": [], "text": "Bo"}}
    kept = kaya.post("draft", body)
    assert (kept.status_code, kept.json()["rev"], kept.json()["kept"]) == (200, 2, True)
    late = kaya.post("draft", body | {"rev": 1, "body": {"text": "B"}}).json()
    assert (late["rev"], late["kept"]) == (2, False)
    assert next_task(desk.store, kaya.who, "write").draft.body == body["body"]


def test_an_answer_is_handed_in_once(desk):
    kaya = desk.person()
    work = desk.work(kaya)
    first, again = (kaya.post("submit", answer(work)).json() for _ in range(2))
    assert (first["repeated"], again["repeated"]) == (False, True)
    assert first["label"] == again["label"]
    other = kaya.post("submit", answer(work, "Other."))
    assert (other.status_code, "with other content" in other.json()["error"]) == (400, True)
    fresh = kaya.post("submit", answer(work, key="another"))
    assert (fresh.status_code, "no longer yours" in fresh.json()["error"]) == (409, True)
    late = kaya.post("draft", {"token": work.token, "rev": 1, "body": {}})
    assert (late.status_code, "already submitted" in late.json()["error"]) == (409, True)
    with desk.store.read() as session:
        row = session.get_one(Demonstration, first["label"])
        assert (row.active_ms, row.pasted_chars, row.origin) == (1200, 3, "human")


def test_a_ranking_on_the_screen_is_stored_by_the_tasks_order(desk):
    kaya = desk.person()
    work = desk.work(kaya, "compare")
    said = ranking(work, likert=[1, 2, 3, 4], confidence="very", comment="Why not.")
    label = kaya.post("submit", said).json()["label"]
    with desk.store.read() as session:
        items = session.scalars(select(RankedItem).where(RankedItem.comparison_id == label)).all()
    by_place = {item.position: (item.rank, item.likert) for item in items}
    shown = [by_place[each.position] for each in work.answers]
    assert shown == [(2, 1), (1, 2), (3, 3), (3, 4)]


@pytest.mark.parametrize(("verb", "outcome"), [("skip", "skipped"), ("flag", "flagged")])
def test_a_task_is_put_back_with_its_reason(desk, verb, outcome):
    kaya = desk.person()
    work = desk.work(kaya)
    body = {"token": work.token, "verb": verb, "reason": "Not mine."}
    assert kaya.post("put-back", body | {"reason": " "}).status_code == 400
    assert [kaya.post("put-back", body).status_code for _ in range(2)] == [200, 200]
    with desk.store.read() as session:
        lease = session.scalars(select(Lease).where(Lease.token == work.token)).one()
        assert (lease.outcome, lease.reason) == (outcome, "Not mine.")
    assert kaya.post("submit", answer(work)).status_code == 409
    assert kaya.post("put-back", body | {"verb": "burn"}).status_code == 400


def test_a_correction_is_given_up_and_work_is_not(desk):
    kaya = desk.person()
    work = desk.work(kaya)
    assert kaya.post("give-up", {"token": work.token}).status_code == 400
    label = kaya.post("submit", answer(work)).json()["label"]
    again = labels.reopen(desk.store, kaya.who, "demo", label)
    assert [kaya.post("give-up", {"token": again.token}).status_code for _ in range(2)] == [200] * 2
    assert kaya.post("submit", answer(again, "New.", "k2")).status_code == 409
    assert labels.last_label(desk.store, kaya.who).text == "So."


def test_help_is_asked_for_and_what_was_done_with_it_recorded(desk):
    kaya = desk.person()
    work = desk.work(kaya)
    [shown] = kaya.post("assist", {"token": work.token, "kind": "draft"}).json()["shown"]
    assert [part["text"].strip() for part in shown["parts"]] == ["One.", "Two."]
    act = {"id": shown["id"], "part": 1, "action": "take"}
    assert kaya.post("assist-action", act).status_code == 200
    for bad in ({"part": 2}, {"part": -1}, {"action": "accept"}, {"part": 2**70}):
        assert kaya.post("assist-action", act | bad).status_code == 400
    assert desk.person().post("assist-action", act).status_code == 403
    assert kaya.post("assist-action", act | {"id": 2**61}).status_code == 403
    for kind, why in (("critique", "no model here"), ("steal", "one of draft")):
        refused = kaya.post("assist", {"token": work.token, "kind": kind, "text": "So."})
        assert (refused.status_code, why in refused.json()["error"]) == (400, True)
    with desk.store.read() as session:
        actions = select(AssistAction).where(AssistAction.assist_id == shown["id"])
        assert [(row.part, row.action) for row in session.scalars(actions)] == [(1, "take")]


def test_a_task_without_help_says_so(desk):
    projects.configure(desk.store, desk.lead, unassisted_share=1)
    kaya = desk.person()
    refused = kaya.post("assist", {"token": desk.work(kaya).token, "kind": "draft"})
    assert (refused.status_code, "without help" in refused.json()["error"]) == (403, True)


def test_no_page_token_but_a_live_one_opens_anything(desk):
    kaya = desk.person()
    work = desk.work(kaya)
    bodies = {
        "draft": {"token": work.token, "rev": 1, "body": {}},
        "submit": answer(work),
        "put-back": {"token": work.token, "verb": "skip", "reason": "x"},
        "give-up": {"token": work.token},
        "assist": {"token": work.token, "kind": "draft"},
        "assist-action": {"id": 1, "part": 0, "action": "take"},
    }
    before = (desk.counts(), desk.count(Assist))
    for name, page in dead_pages(desk, kaya.who, kaya.session):
        for deed, body in bodies.items():
            refused = desk.post(deed, body, page)
            assert (name, deed, refused.status_code) == (name, deed, 403)
    assert (desk.counts(), desk.count(Assist)) == before
    assert kaya.post("draft", bodies["draft"]).status_code == 200


def test_who_has_no_page_is_refused_before_their_text_is_read(desk):
    address = urllib.parse.urlsplit(desk.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/api/page/draft")
        connection.putheader("Content-Length", str(MAX_BODY))
        connection.putheader(PAGE_HEADER, "1.1.forged")
        connection.endheaders()  # and not a byte of the text
        assert connection.getresponse().status == 403


def test_a_page_stops_when_its_person_signs_out_or_leaves(desk):
    kaya, noor = desk.person(), desk.person()
    body = {"token": desk.work(kaya).token, "rev": 1, "body": {}}
    assert kaya.post("draft", body).status_code == 200
    projects.remove_member(desk.store, desk.lead, kaya.who.name)
    refused = kaya.post("draft", body)
    assert (refused.status_code, "not in this project" in refused.json()["error"]) == (403, True)
    body["token"] = desk.work(noor).token
    auth.close_account(desk.store, noor.who.name)
    refused = noor.post("draft", body)
    assert (refused.status_code, "session has ended" in refused.json()["error"]) == (403, True)


def test_another_persons_task_and_another_projects_page_do_nothing(desk, served):
    kaya, noor = desk.person(), desk.person()
    work, ranked = desk.work(kaya), desk.work(kaya, "compare")
    apart = desk_of(*served)
    token = invitations.invite(desk.store, apart.lead, "labeler")
    there = invitations.accept_signed_in(desk.store, token, kaya.who)
    guidelines.acknowledge(desk.store, there, 1)
    before = desk.counts()
    for stranger in (noor, apart.at_a_browser(there, desk.store)):
        for deed, body in (
            ("draft", {"token": work.token, "rev": 1, "body": {}}),
            ("submit", answer(work)),
            ("submit", ranking(ranked)),
            ("put-back", {"token": work.token, "verb": "skip", "reason": "x"}),
            ("give-up", {"token": work.token}),
            ("assist", {"token": work.token, "kind": "draft"}),
        ):
            refused = stranger.post(deed, body)
            assert (deed, refused.status_code) == (deed, 409)
            assert "not given to you" in refused.json()["error"]
    assert desk.counts() == before
    assert kaya.post("submit", answer(work)).status_code == 200


WRONG = (None, True, 0, -1, 1.5, 2**80, "", "x", "\ud800", "a\0b", [], [None], [[]], {}, {"a": 1})


def _changed(body: dict, path: tuple, value: object) -> dict:
    if len(path) == 1:
        return {**body, path[0]: value}
    return {**body, path[0]: _changed(body[path[0]], path[1:], value)}


@pytest.mark.long
def test_a_field_of_another_type_is_said_and_nothing_is_stored(desk):
    kaya = desk.person()
    work, ranked = desk.work(kaya), desk.work(kaya, "compare")
    plain = {"token": work.token, "rev": 1, "body": {}}
    cases = [("draft", plain, (name,)) for name in ("token", "rev", "body")]
    cases += [("submit", answer(work), (name,)) for name in ("token", "key", "turns", "trace")]
    verdict = ("ranks", "likert", "flags", "confidence", "degree")
    cases += [("submit", ranking(ranked), ("verdict", name)) for name in verdict]
    cases += [("submit", ranking(ranked), ("verdict",)), ("submit", ranking(ranked), ("token",))]
    skip = {"token": work.token, "verb": "skip", "reason": "x"}
    cases += [("put-back", skip, (name,)) for name in ("token", "verb")]
    cases += [("give-up", {"token": work.token}, ("token",))]
    ask = {"token": work.token, "kind": "draft", "text": ""}
    cases += [("assist", ask, (name,)) for name in ("token", "kind", "text")]
    act = {"id": 1, "part": 0, "action": "take"}
    cases += [("assist-action", act, (name,)) for name in act]
    fine = {  # what is right after all, and would be taken
        "rev": [2**80], "body": [{}, {"a": 1}], "key": ["x"], "trace": [{}, {"a": 1}],
        "confidence": [None], "degree": [None], "text": ["", "x", "a\0b"], "id": [1], "part": [0],
    }  # fmt: skip
    before, wrong = desk.counts(), []
    for deed, body, path in cases:
        for value in WRONG:
            if value in fine.get(path[-1], []) and type(value) is not bool:
                continue
            status = kaya.post(deed, _changed(body, path, value)).status_code
            if status not in (400, 403, 409):
                wrong.append((deed, path, value, status))
    assert wrong == []
    assert desk.counts() == before


@pytest.mark.parametrize("field", ["comment", "not_rankable"])
def test_a_comment_that_is_no_text_is_refused(desk, field):
    kaya = desk.person()
    work = desk.work(kaya, "compare")
    ranks = {"ranks": [None] * 4} if field == "not_rankable" else {}
    for value in (True, 7, 1.5, [1], {"a": 1}):
        assert kaya.post("submit", ranking(work, **{field: value}, **ranks)).status_code == 400
    assert kaya.post("submit", ranking(work, **{field: "So."}, **ranks)).status_code == 200


@pytest.mark.parametrize(
    "turn",
    [None, "x", 7, [], {}, {"role": "assistant"}, {"role": 1, "text": "x"}, {"text": "x"},
     {"role": "assistant", "text": None}, {"role": "assistant", "text": " \n"},
     {"role": "user", "text": "x"}, {"role": "system", "text": "x"},
     {"role": "assistant", "text": "a\0"}, {"role": "assistant", "text": "\ud83d"}],
)  # fmt: skip
def test_a_turn_that_is_none_is_refused(desk, turn):
    kaya = desk.person()
    work = desk.work(kaya)
    for turns in ([turn], [{"role": "assistant", "text": "So."}, turn], [turn] * 41):
        refused = kaya.post("submit", answer(work) | {"turns": turns})
        assert (refused.status_code, list(refused.json())) == (400, ["error"])


@pytest.mark.parametrize("deed", DEEDS)
def test_what_is_no_json_object_is_refused(desk, deed):
    kaya = desk.person()
    for body in (
        b"", b"{", b"\xff\xfe", b"[]", b'"x"', b"7", b"null", b"{'a': 1}", b"[" * 200_000,
        b'{"a":' * 100_000, b'{"rev": NaN}', b'{"rev": Infinity}', b'{"rev": -Infinity}', b'{"rev": 1e400}',
        b'{"rev": 1' + b"0" * 5000 + b"}",
    ):  # fmt: skip
        refused = kaya.post(deed, body)
        assert (refused.status_code, "JSON" in refused.json()["error"]) == (400, True)


@pytest.mark.parametrize("depth", [50, 300, 600, 800, 900, 950, 970, 985, 995, 2000, 20_000])
def test_a_draft_of_any_depth_is_kept_or_refused_and_the_task_still_opens(desk, depth):
    kaya = desk.person()
    work = desk.work(kaya)
    nested = b'{"token":"%s","rev":1,"body":{"a":' % work.token.encode()
    said = kaya.post("draft", nested + b"[" * depth + b"]" * depth + b"}}")
    assert said.status_code in (200, 400), said.text
    assert next_task(desk.store, kaya.who, "write").token == work.token


def test_a_megabyte_of_text_is_kept_and_more_is_refused(desk):
    kaya = desk.person()
    work = desk.work(kaya)
    signs = "é" * (MAX_TEXT_BYTES // 2)  # two bytes each, six in JSON's escapes
    draft = {"token": work.token, "rev": 1, "body": {"text": signs[:-50]}}
    assert kaya.post("draft", draft).status_code == 200
    assert next_task(desk.store, kaya.who, "write").draft.body == draft["body"]
    more = kaya.post("draft", draft | {"rev": 2, "body": {"text": "x" * MAX_DRAFT_BYTES}})
    assert (more.status_code, f"at most {MAX_DRAFT_BYTES:,}" in more.json()["error"]) == (400, True)
    assert kaya.post("submit", answer(work, signs + "x")).status_code == 400
    assert kaya.post("submit", answer(work, signs)).status_code == 200


def test_a_body_over_the_limit_is_refused_whole_or_in_chunks(desk):
    kaya = desk.person()
    work = desk.work(kaya)
    data = b'{"token": "' + b" " * MAX_BODY + b'"}'
    for body in (data, iter([data[: len(data) // 2], data[len(data) // 2 :]])):
        page = sessions.page_token(desk.store, kaya.session, kaya.who.project_id)
        with httpx.Client(timeout=60) as client:
            refused = client.post(
                f"{desk.url}/api/page/draft", content=body, headers={PAGE_HEADER: page}
            )
        assert (refused.status_code, "make the text shorter" in refused.text) == (400, True)
    assert kaya.post("submit", answer(work)).status_code == 200


@pytest.mark.parametrize("kind", ["demo", "compare"])
def test_the_same_label_from_several_connectionsat_once_is_one(desk, kind):
    kaya = desk.person()
    for _ in range(5):
        work = desk.work(kaya, kind)
        body = ranking(work) if kind == "compare" else answer(work)
        said = at_once(*[lambda body=body: kaya.post("submit", body)] * 4)
        assert [each.status_code for each in said] == [200] * 4
        assert len({each.json()["label"] for each in said}) == 1
        assert sorted(each.json()["repeated"] for each in said) == [False, True, True, True]


def test_two_answers_to_one_taskat_once_are_one(desk):
    kaya = desk.person()
    for _ in range(5):
        work = desk.work(kaya)
        before = desk.count(Demonstration)
        said = at_once(
            lambda work=work: kaya.post("submit", answer(work, "One.", work.token + "1")),
            lambda work=work: kaya.post("submit", answer(work, "Two.", work.token + "2")),
        )
        assert sorted(each.status_code for each in said) == [200, 409]
        assert desk.count(Demonstration) == before + 1


def test_slow_models_do_not_hold_up_what_people_type(desk, model):
    people = [desk.person() for _ in range(12)]
    desk.task(count=12)
    works = [next_task(desk.store, each.who, "write") for each in people]
    typist = desk.person()
    draft = {"token": desk.work(typist).token, "rev": 1, "body": {"text": "T"}}
    done: list[str] = []

    def ask(number: int) -> httpx.Response:
        body = {"token": works[number].token, "kind": "draft"}
        said = people[number].post("assist", body)
        done.append("help")
        return said

    def save() -> httpx.Response:
        while len(model.asked) < asked + 12:  # all twelve are waiting for their model
            pass
        said = typist.post("draft", draft)
        done.append("draft")
        return said

    asked, model.delay_s = len(model.asked), 2.0
    try:
        said = at_once(save, *[lambda n=n: ask(n) for n in range(12)])
    finally:
        model.delay_s = 0
    assert done[0] == "draft"
    assert [each.status_code for each in said] == [200] * 13


def test_another_sites_page_is_given_no_leave_to_ask(desk):
    headers = {"Origin": "https://evil.test", "Access-Control-Request-Method": "POST"}
    asked = httpx.options(f"{desk.url}/api/page/submit", headers=headers)
    assert "access-control-allow-origin" not in asked.headers


def test_the_app_outlives_its_database():
    if postgres.binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    dead = Assistant(endpoint="http://127.0.0.1:9", model="m", abilities=("draft",))
    with postgres.server() as server:
        store = open_store(server.url)
        with browser.running(AppSettings(store=store.url, assistants=(dead,))) as app:
            desk = desk_of(app.url, store)
            kaya = desk.person()
            work = desk.work(kaya)
            draft = {"token": work.token, "rev": 1, "body": {"text": "Before."}}
            assert kaya.post("draft", draft).status_code == 200
            page = sessions.page_token(store, kaya.session, kaya.who.project_id)
            server.stop()
            for deed, body in (
                ("draft", draft | {"rev": 2}),
                ("submit", answer(work)),
                ("assist", {"token": work.token, "kind": "draft"}),
            ):
                away = desk.post(deed, body, page)
                assert (away.status_code, "does not answer" in away.json()["error"]) == (503, True)
            server.start()
            assert desk.post("draft", draft | {"rev": 2}, page).json()["kept"]
            [shown] = kaya.post("assist", {"token": work.token, "kind": "draft"}).json()["shown"]
            assert "nothing answers" in shown["error"]
            assert kaya.post("submit", answer(work)).json()["repeated"] is False
        store.close()
