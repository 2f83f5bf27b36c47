"""The API for programs: tokens, scopes and projects, imports with broken lines, exports, progress."""

import datetime as dt
import json
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import func, select

from labeling_app import api, auth, labels, projects, sessions
from labeling_app.app_settings import AppSettings
from labeling_app.assignment import next_task
from labeling_app.export import iter_comparisons, iter_conversations
from labeling_app.formats import conversation_row, k_wise_row, preference_rows
from labeling_app.planning import plan
from labeling_app.prompt_files import MAX_LINE_BYTES
from labeling_app.schema import Prompt, Task
from labeling_app.store import Store, open_store, utc_now
from labeling_app.submissions import Trace, submit_comparison, submit_demonstration
from labeling_app.verdicts import Verdict
from tests.labeling_app import browser
from tests.labeling_app.desk import Desk, at_once, desk_of

ALL = ("import", "export", "progress")
CALLS = (
    ("import", "POST", "prompts"),
    ("export", "GET", "export/conversations"),
    ("export", "GET", "export/comparisons"),
    ("export", "GET", "export/pairs"),
    ("progress", "GET", "progress"),
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def served(request, empty_stores) -> Iterator[tuple[str, Store]]:
    store = open_store(empty_stores(request.param))
    with browser.running(AppSettings(store=store.url)) as app:
        yield app.url, store
    store.close()


@pytest.fixture
def desk(served) -> Desk:
    return desk_of(*served)


def call(desk: Desk, token: str, method: str, path: str, **more) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}".strip()} | more.pop("headers", {})
    url = f"{desk.url}/api/v1/{path}"
    return httpx.request(method, url, headers=headers, timeout=120, **more)


def token(desk: Desk, *scopes: str) -> str:
    return sessions.create_api_token(desk.store, desk.lead, "t", scopes or ALL).token


def lines(*rows: object) -> bytes:
    return b"".join(
        row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows
    )


def keys(desk: Desk) -> list[str]:
    with desk.store.read() as session:
        query = select(Task.key).where(Task.project_id == desk.lead.project_id).order_by(Task.id)
        return list(session.scalars(query))


def label(desk: Desk) -> None:
    """Three answers and two rankings in the desk's project."""
    kaya = desk.person().who
    desk.task("demo", 3)
    for number in range(3):
        work = next_task(desk.store, kaya, "write")
        text = f"É <b>{number}</b>\n\u2028"
        submit_demonstration(desk.store, kaya, work.token, text, work.token, Trace(1000))
    desk.task("compare", 2)
    for ranks in ((1, 2, 2, 4), (1, 1, 1, 1)):
        work = next_task(desk.store, kaya, "compare")
        verdict = Verdict(ranks, "very", comment="Hm — ja.")
        submit_comparison(desk.store, kaya, work.token, verdict, work.token)


def test_a_token_does_what_its_scopes_say_and_no_more(desk):
    for scope in ALL:
        mine = token(desk, scope)
        for needs, method, path in CALLS:
            said = call(desk, mine, method, path)
            assert (scope, path, said.status_code) == (scope, path, 200 if needs == scope else 403)
            if needs != scope:
                assert said.json() == {"error": f"this API token is for {scope}, not for {needs}"}


def test_no_token_but_a_live_one_opens_anything(desk):
    good = sessions.create_api_token(desk.store, desk.lead, "t", ALL)
    ended = sessions.create_api_token(desk.store, desk.lead, "t", ALL)
    sessions.end_api_token(desk.store, desk.lead, ended.id)
    past = open_store(desk.store.url, lambda: utc_now() - dt.timedelta(days=91))
    expired = sessions.create_api_token(past, desk.lead, "t", ALL).token
    past.close()
    browser_token = sessions.start_session(desk.store, desk.lead)
    page = sessions.page_token(desk.store, browser_token.id, desk.lead.project_id)
    bad = [
        "", "x", good.token[:-1], good.token.upper(), f"{good.token}, {good.token}", ended.token,
        expired, browser_token.token, page, "fw_" + "0" * 64, "x" * 20_000,
    ]  # fmt: skip
    for _, method, path in CALLS:
        for each in bad:
            refused = call(desk, each, method, path)
            assert (refused.status_code, list(refused.json())) == (403, ["error"])
        for scheme in ("Basic", "Token", ""):
            odd = {"Authorization": f"{scheme} {good.token}".strip()}
            assert call(desk, "", method, path, headers=odd).status_code == 403
        url = f"{desk.url}/api/v1/{path}"
        assert httpx.request(method, url).status_code == 403
        assert httpx.request(method, url, params={"token": good.token}).status_code == 403
        cookie = {"Cookie": f"flywheel_session={browser_token.token}"}
        assert httpx.request(method, url, headers=cookie).status_code == 403
        odd = {"Authorization": f"bEARER   {good.token}"}
        assert call(desk, "", method, path, headers=odd).status_code == 200


def test_a_token_ends_with_its_makers_part_in_the_project(desk):
    who = desk.account("engineer")
    mine = sessions.create_api_token(desk.store, who, "t", ALL).token
    assert call(desk, mine, "GET", "progress").status_code == 200
    projects.assign(desk.store, desk.lead, who.name, "labeler", ())
    assert call(desk, mine, "GET", "progress").status_code == 403
    assert call(desk, mine, "POST", "prompts", content=lines({"prompt": "x"})).status_code == 403
    projects.remove_member(desk.store, desk.lead, who.name)
    assert {call(desk, mine, method, path).status_code for _, method, path in CALLS} == {403}
    assert keys(desk) == []


def test_a_maker_who_labels_now_exports_no_more(desk):
    label(desk)
    who = desk.account("engineer")
    mine = sessions.create_api_token(desk.store, who, "t", ALL).token
    assert call(desk, mine, "GET", "export/conversations").status_code == 200
    projects.assign(desk.store, desk.lead, who.name, "labeler", ())
    assert call(desk, mine, "GET", "export/conversations").status_code == 403


def test_another_projects_data_never_appears(desk, served):
    apart = desk_of(*served)
    label(apart)
    mine = token(desk)
    for _, method, path in CALLS[1:4]:
        assert call(desk, mine, method, path).content == b""
    now = call(desk, mine, "GET", "progress").json()
    assert (now["open_labels"], now["days"], now["waiting_reviews"]) == ({}, [], 0)
    said = call(desk, mine, "POST", "prompts", content=lines({"id": "mine", "prompt": "Mine?"}))
    assert said.json()["added"] == 1
    assert keys(desk) == ["api:mine"]
    assert "api:mine" not in keys(apart)
    there = call(
        apart, token(apart), "POST", "prompts", content=lines({"id": "mine", "prompt": "Mine?"})
    )
    assert (there.json()["added"], there.json()["similar"]) == (1, 0)


def test_good_lines_go_in_and_broken_ones_are_named(desk):
    mine = token(desk)
    body = lines(
        {"id": "a", "prompt": "How do I boil an egg?"},
        b"{oops\n",
        b"\n",
        {"id": "b", "prompt": "Why is the sky blue?", "priority": 7, "overlap": 2},
        b"\xff\xfe\n",
        b"[1]\n",
        {"id": "c"},
        {"id": "d", "prompt": "x", "unknown": 1},
        {"id": "e", "prompt": "a\0b"},
        b'{"id": "f", "prompt": "\\ud800"}\n',
        {"id": "g", "prompt": "Which?", "answers": ["one", "two"]},
        {"id": "h", "prompt": "Whose?", "overlap": 99},
        b'{"id": "i", "prompt": "No end of line, which will do?"}',
    )
    said = call(desk, mine, "POST", "prompts", content=body)
    assert said.status_code == 200
    report = said.json()
    assert (report["added"], report["known"], report["similar"]) == (4, 0, 0)
    assert [row["line"] for row in report["rejects"]] == [2, 5, 6, 7, 8, 9, 10, 12]
    whys = ["not JSON", "not UTF-8", "not a JSON object", "has no prompt", "unknown key 'unknown'",
            "NUL", "not valid Unicode", "overlap 99"]  # fmt: skip
    for row, why in zip(report["rejects"], whys, strict=True):
        assert why in row["why"]
        assert row["file"] == "api.jsonl"
    assert report["rejected"] == 8
    assert keys(desk) == [f"api:{name}" for name in "abgi"]
    again = call(desk, mine, "POST", "prompts", content=body).json()
    assert (again["added"], again["known"], again["rejected"]) == (0, 4, 8)


def test_what_is_almost_the_same_is_left_out_unless_asked_for(desk):
    mine = token(desk)
    text = "Please explain to me in a few words how an egg is boiled well and for how long?"
    rows = lines({"id": "a", "prompt": text}, {"id": "b", "prompt": text + " "})
    first = call(desk, mine, "POST", "prompts", content=rows).json()
    assert (first["added"], first["similar"]) == (1, 1)
    rows = lines({"id": "c", "prompt": text})
    said = call(desk, mine, "POST", "prompts", params={"dedupe": "false"}, content=rows).json()
    assert (said["added"], said["similar"]) == (1, 0)


@pytest.mark.parametrize(
    "bad",
    [{"skill": "a\0b"}, {"skill": "\ud800"}, {"source": "a\0b"}, {"skill": "x" * 65},
     {"purpose": "y" * 40, "gold": [1, 2], "answers": ["one", "two"]},
     {"purpose": "weird", "gold": [1, 2], "answers": ["one", "two"]},
     {"purpose": ["work"]}, {"gold": [1, 2]}, {"priority": 2**40}, {"id": {"a": 1}, "kind": [1]}],
)  # fmt: skip
def test_a_field_that_will_not_do_is_one_rejected_line(desk, bad):
    rows = lines({"id": "a", "prompt": "How?"}, {"prompt": "Why not?", **bad})
    said = call(desk, token(desk), "POST", "prompts", content=rows)
    assert said.status_code == 200
    assert [row["line"] for row in said.json()["rejects"]] == [2]
    assert keys(desk) == ["api:a"]


@pytest.mark.parametrize(
    "source", ["../../etc/passwd", "a/b", "<b>", "\0", "", "é" * 100, "-", ".."]
)
def test_a_source_is_a_name_and_no_path(desk, source):
    rows = lines({"id": "a", "prompt": f"Question of {source!r}?"})
    said = call(desk, token(desk), "POST", "prompts", params={"source": source}, content=rows)
    assert said.status_code in (200, 400)
    assert all("/" not in key and "\0" not in key for key in keys(desk))


def test_long_lines_and_bodies_have_their_limits(desk):
    mine = token(desk)
    huge = b'{"prompt": "' + b"x" * MAX_LINE_BYTES + b'"}\n'
    said = call(desk, mine, "POST", "prompts", content=huge + lines({"id": "a", "prompt": "Hm?"}))
    assert [(row["line"], row["text"]) for row in said.json()["rejects"]] == [(1, "")]
    assert said.json()["added"] == 1
    broken = b"{\n" * 3000
    said = call(desk, mine, "POST", "prompts", content=broken).json()
    assert (said["rejected"], len(said["rejects"])) == (3000, 1000)

    def endless() -> Iterator[bytes]:
        piece = b"{}\n" * (1 << 20)
        for _ in range(api.MAX_IMPORT // len(piece) + 2):
            yield piece

    said = call(desk, mine, "POST", "prompts", content=endless())
    assert (said.status_code, "send it in parts" in said.json()["error"]) == (400, True)
    assert keys(desk) == ["api:a"]


def test_the_same_import_from_two_programs_at_once_adds_each_prompt_once(desk):
    mine = token(desk)
    rows = lines(*[{"id": str(n), "prompt": f"{n} ?" * (n + 1)} for n in range(200)])
    said = at_once(
        *[lambda: call(desk, mine, "POST", "prompts", params={"dedupe": "false"}, content=rows)] * 3
    )
    assert [each.status_code for each in said] == [200] * 3
    assert sum(each.json()["added"] for each in said) == 200
    assert sorted(keys(desk)) == sorted(f"api:{n}" for n in range(200))


def test_exports_are_the_rows_of_the_formats(desk):
    label(desk)
    with desk.store.read() as session:
        project = desk.lead.project_id
        ranked = list(iter_comparisons(session, project))
        expected = {
            "conversations": [conversation_row(c) for c in iter_conversations(session, project)],
            "comparisons": [k_wise_row(c) for c in ranked],
            "pairs": [row for c in ranked for row in preference_rows(c)],
        }
    assert [len(rows) for rows in expected.values()] == [3, 2, 5]
    mine = token(desk, "export")
    for name, rows in expected.items():
        said = call(desk, mine, "GET", f"export/{name}")
        assert said.headers["content-type"].startswith("application/x-ndjson")
        assert said.content.endswith(b"\n")
        found = [json.loads(line) for line in said.content.removesuffix(b"\n").split(b"\n")]
        assert found == json.loads(json.dumps(rows))
        assert said.content == call(desk, mine, "GET", f"export/{name}").content
        assert desk.lead.name.encode() not in said.content
    for name in ("users", "secrets", "..%2f..", "Conversations"):
        assert call(desk, mine, "GET", f"export/{name}").status_code == 400


def test_an_export_holds_what_stands_only(desk):
    label(desk)
    mine = token(desk, "export")
    kaya = desk.person().who
    desk.task()
    work = next_task(desk.store, kaya, "write")
    first = submit_demonstration(desk.store, kaya, work.token, "Old.", "o" + work.token)
    again = labels.reopen(desk.store, kaya, "demo", first.submission_id)
    submit_demonstration(desk.store, kaya, again.token, "New.", "n" + work.token)
    said = call(desk, mine, "GET", "export/conversations").text
    assert ("Old." in said, "New." in said) == (False, True)


def test_progress_is_the_plan(desk):
    label(desk)
    desk.task("demo", 4)
    kaya = desk.person().who
    next_task(desk.store, kaya, "write")
    said = call(desk, token(desk, "progress"), "GET", "progress").json()
    now = plan(desk.store, desk.lead)
    assert (said["open_labels"], said["in_hand"], said["at_vendors"]) == ({"demo": 3}, 1, 0)
    assert [(day["kind"], day["labels"], day["active_ms"]) for day in said["days"]] == [
        ("compare", 2, 0), ("write", 3, 3000)
    ]  # fmt: skip
    assert said["pace_per_day"] == now.pace == 5
    assert said["done_on"] == now.done_on.isoformat()


def test_other_methods_are_refused(desk):
    mine = token(desk)
    for method, path in (
        ("PUT", "prompts"),
        ("DELETE", "prompts"),
        ("POST", "progress"),
        ("DELETE", "export/pairs"),
    ):
        assert call(desk, mine, method, path).status_code == 405
    with desk.store.read() as session:
        query = select(func.count()).where(Prompt.project_id == desk.lead.project_id)
        assert session.scalar(query) == 0
    assert auth.current(desk.store, desk.lead)
