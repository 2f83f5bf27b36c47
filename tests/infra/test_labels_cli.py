"""`flywheel labels DEED`: each deed on a store of its own, and what is said to a user's mistake."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from infra import cli
from labeling_app import auth, guidelines, invitations, sessions
from labeling_app.assignment import next_task
from labeling_app.auth import DeniedError
from labeling_app.backlog import open_tasks
from labeling_app.export import read_labels, response_id
from labeling_app.projects import Settings
from labeling_app.schema import Project, Prompt, Response, Task, TaskResponse
from labeling_app.store import Store, open_store
from labeling_app.submissions import submit_demonstration

PASSWORD = "correct horse battery"
PAIR = {"responses": ["a", "b"]}


@pytest.fixture
def labels(tmp_path, monkeypatch, capsys):
    """labels(DEED, OPTION…): what it printed. `wrong` gives the one line of a refusal."""
    monkeypatch.delenv("FLYWHEEL_LABELS", raising=False)

    def run(*arguments: str, status: int = 0) -> str:
        capsys.readouterr()
        words = [*arguments, f"run.root={tmp_path}/data", "labels.instructions="]
        assert cli.main(["labels", *words]) == status
        said = capsys.readouterr()
        if status:
            *progress, last = said.err.splitlines()
            assert all(re.match(r"(export|prompts): \d+/", line) for line in progress), said.err
            assert last.startswith("flywheel: ")
            return last
        return said.out

    return run


@pytest.fixture
def wrong(labels):
    return lambda *arguments: labels(*arguments, status=2)


@pytest.fixture
def store(tmp_path, labels) -> Store:
    """The store that the commands are about, opened once more."""
    labels("settings")
    opened = open_store(f"{tmp_path}/data/labels.sqlite")
    guidelines.publish_default(opened)
    yield opened
    opened.close()


@pytest.fixture
def write(tmp_path):
    def to_file(name: str, rows: list) -> str:
        path = tmp_path / name
        path.write_text(
            "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        )
        return str(path)

    return to_file


def comparisons(num: int, **more) -> list[dict]:
    return [{"id": f"c{n}", "prompt": f"Which is {n}?", **PAIR, **more} for n in range(num)]


def in_order(text: str, *words: str) -> bool:
    return re.search(".*".join(map(re.escape, words)), text, re.DOTALL) is not None


def test_prompts_and_the_queue(labels, write, store, tmp_path):
    path = write("p.jsonl", [{"prompt": "What is a heap?"}, "{", {"prompt": "what is a HEAP"}])
    said = labels("prompts", "--file", path, "--rejects", f"{tmp_path}/rejects.jsonl",
                  "--source", "site", "--priority", "5", "--overlap", "2")  # fmt: skip
    assert in_order(said, "lines", "added", "there already", "almost the same", "refused")
    assert in_order(said, "3", "1", "0", "1", "1", "p.jsonl:2: not JSON")
    assert f"all 1 refused lines, with reasons: {tmp_path}/rejects.jsonl" in said
    refused, similar = map(json.loads, (tmp_path / "rejects.jsonl").read_text().splitlines())
    assert (refused["line"], "almost the same as one" in similar["why"]) == (2, True)
    [task] = open_tasks(store)
    assert (task.source, task.priority, task.open_slots, task.kind) == ("site", 5, 2, "demo")
    said = labels("queue")
    assert in_order(said, "task", "open", "prompt", "site", "What is a heap?", "1 open tasks")
    labels("prompts", "--file", path, "--keep-similar", "--kind", "question", "--skill", "law")
    assert {task.kind for task in open_tasks(store)} == {"demo", "question"}
    many = write("many.jsonl", ["{"] * 13)
    said = labels("prompts", "--file", many, "--file", path)
    assert in_order(said, "many.jsonl:10: ", "and 4 more")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["prompts", "--file", "/no/such.jsonl"], "'/no/such.jsonl'"),
        (["prompts", "--file", "/no/such.parquet"], "'/no/such.parquet'"),
        (["prompts", "--file", "/"], "'/'"),
        (["import", "--file", "/no/such.jsonl"], "/no/such.jsonl"),
        (["queue"], "no labels at"),
        (["export", "--to", ""], "--to is empty"),
        (["export", "--to", "x", "--since", "yesterday"], "'yesterday' is no date"),
        (["export", "--to", "x", "--until", "2026-02-30"], "'2026-02-30' is no date"),
        (["order", "--scores", "/no/such.parquet"], "no score file '/no/such.parquet'"),
        (["account", "--name", "Ada!", "--role", "lead"], "'Ada!'"),
        (["close", "--name", "nobody"], "'nobody'"),
        (["close", "--name", "nobody", "--erase"], "'nobody'"),
        (["password", "--name", "nobody"], "'nobody'"),
        (["project", "--name", "default"], "'default' exists"),
        (["project", "--name", ""], "name is empty"),
        (["settings", "--set", "gold_share"], "'gold_share' is not of the form name=value"),
        (["settings", "--set", "gold_share=2"], "gold_share = '2'"),
        (["settings", "--set", "colour=red"], "colour = 'red'"),
        (["settings", "labels.project=x"], "no project 'x'"),
        (["invite", "--role", "lead", "--skills", "x" * 65], "65 characters"),
        (["token", "--name", "t", "--scope", "export", "--days", "0"], "0"),
        (["token", "--name", "t", "--scope", "export", "--days", "99999999999"], "99999999999"),
        (["token", "--name", " ", "--scope", "export"], "empty"),
        (["restore", "--from", "/no/such.zip"], "'/no/such.zip'"),
        (["vendor-in", "--batch", "7", "--file", "/dev/null"], "no batch 7"),
        (["vendor-withdraw", "--batch", "7"], "no batch 7"),
        (["vendor-out", "--vendor", "v", "--count", "3", "--to", "x"], "no open task to compare"),
        (["vendor-out", "--vendor", "v", "--count", "0", "--to", "x"], "a batch of 0"),
        (["vendor-out", "--vendor", "v", "--count", "3", "--to", "x", "--gold", "nan"], "nan"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(wrong, labels, tmp_path, arguments, why):
    if arguments[0].startswith("vendor"):
        labels("prompts", "--file", "/dev/null")  # instructions are there
    assert why in wrong(*arguments)
    assert not Path("x").exists()


@pytest.mark.parametrize(
    "arguments",
    [["frob"], ["prompts"], ["prompts", "--file", "x", "--kind", "x"], ["invite", "--role", "boss"],
     ["token", "--name", "t", "--scope", "all"], ["export", "--to", "x", "--format", "csv"],
     ["vendor-out", "--vendor", "v", "--count", "many", "--to", "x"], ["backup"]],
)  # fmt: skip
def test_unknown_words_are_argparses_business(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["labels", *arguments])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "usage: flywheel" in said
    assert "error: " in said


def test_an_account_and_its_passwords(labels, wrong, store):
    said = labels("account", "--name", "ada", "--role", "labeler")
    once = said.split("shown only now: ")[1].strip()
    who = auth.set_password(store, auth.sign_in(store, "ada", once), PASSWORD)
    assert "'ada' exists" in wrong("account", "--name", "ada", "--role", "lead")
    said = labels("password", "--name", "ada")
    again = said.split("shown only now: ")[1].strip()
    with pytest.raises(DeniedError):
        auth.current(store, who)
    assert auth.sign_in(store, "ada", again).must_change
    assert "all sessions" in labels("close", "--name", "ada")
    with pytest.raises(DeniedError):
        auth.sign_in(store, "ada", again)
    said = labels("close", "--name", "ada", "--erase")
    assert re.search(r"ada is forgotten; the labels stay under person-[0-9a-f]{16}", said)
    assert "'ada'" in wrong("close", "--name", "ada")
    assert "'command'" in wrong("close", "--name", "command")


def test_an_invitation_leads_in(labels, store):
    said = labels("invite", "--role", "reviewer", "--skills", "law, art,", "--note", "for Ada")
    token = re.search(r"/invitation\?token=(\S+)", said)[1]
    assert invitations.look_up(store, token).role == "reviewer"
    who = invitations.accept(store, token, "ada", PASSWORD)
    assert who.role == "reviewer"


def test_a_project_of_its_own(labels, wrong, store, write):
    assert "project law is number 2" in labels("project", "--name", "law")
    path = write("p.jsonl", [{"prompt": "Whose is it?"}])
    labels("prompts", "--file", path, "labels.project=law")
    assert open_tasks(store) == []
    assert [task.prompt for task in open_tasks(store, "law")] == ["Whose is it?"]
    assert "0 open tasks" in labels("queue")
    assert "1 open tasks" in labels("queue", "labels.project=law")
    assert "no project 'tax'" in wrong("prompts", "--file", path, "labels.project=tax")


def test_settings_are_shown_and_changed(labels, wrong, store):
    said = labels("settings")
    for name, field in Settings.model_fields.items():
        assert name in said
        assert (field.description or "") in said
    said = labels("settings", "--set", "gold_share=0.25", "--set", "flags=rude;false=yes")
    assert "0.25" in said
    with store.read() as session:
        kept = session.scalars(select(Project.settings)).one()
    assert kept == {"gold_share": 0.25, "flags": ["rude", "false=yes"]}
    wrong("settings", "--set", "gold_share=0.1", "--set", "gold_mark=x")
    assert "0.25" in labels("settings")


def test_a_token_for_the_api(labels, store):
    said = labels("token", "--name", "nightly", "--scope", "export", "--scope", "progress")
    token = said.split("shown only now: ")[1].strip()
    assert sessions.account_of_api(store, token, "export").role == "lead"
    with pytest.raises(DeniedError):
        sessions.account_of_api(store, token, "import")


def test_labels_in_and_out(labels, wrong, store, write, tmp_path):
    rows = [{"id": "c1", "kind": "benign", "question": "Say 1.", "answer": "1."},
            {"prompt": "Pick.", **PAIR, "ranks": [2, 1]}]  # fmt: skip
    said = labels("import", "--file", write("l.jsonl", rows))
    assert in_order(said, "file", "answers", "rankings", "l.jsonl", "2", "1", "1", "0")
    said = labels("export", "--to", f"{tmp_path}/out")
    assert in_order(
        said, "file", "rows", "comparisons.jsonl", "1", f"{tmp_path}/out/labels-manifest.json"
    )
    assert len(list((tmp_path / "out").rglob("*.*"))) == 16
    labels("export", "--to", f"{tmp_path}/one", "--format", "trl")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"trl", "labels-manifest.json"}
    for options in (["--since", "2199-01-01"], ["--until", "2001-01-01"], ["--no-simulated"]):
        labels("export", "--to", f"{tmp_path}/none", "--format", "records", *options)
        manifest = json.loads((tmp_path / "none" / "labels-manifest.json").read_text())
        assert {entry["rows"] for entry in manifest["files"].values()} == {0}
        assert manifest["filters"]
    (tmp_path / "file").write_text("here before")
    assert f"{tmp_path}/file" in wrong("export", "--to", f"{tmp_path}/file")


def test_the_queue_in_the_order_of_doubt(labels, wrong, store, write, tmp_path):
    labels("prompts", "--file", write("p.jsonl", comparisons(3)), "--keep-similar")
    scores = {"p:c0": (9, 0), "p:c1": (1, 1)}
    with store.read() as session:
        found = session.execute(
            select(Task.key, TaskResponse.position, Prompt.content_sha256, Response)
            .join(Prompt, Prompt.id == Task.prompt_id)
            .join(TaskResponse, TaskResponse.task_id == Task.id)
            .join(Response, Response.id == TaskResponse.response_id)
        )
        rows = [
            {"response_id": response_id(prompt, each.model, each.sha256), "score": scores[key][at]}
            for key, at, prompt, each in found
            if key in scores
        ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "s.parquet")
    said = labels("order", "--scores", f"{tmp_path}/s.parquet")
    assert said == "2 comparisons ordered, the least sure first; 1 unscored\n"
    assert in_order(labels("queue"), "Which is 1?", "Which is 0?", "Which is 2?")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "s.parquet")
    assert "s.parquet has no columns" in wrong("order", "--scores", f"{tmp_path}/s.parquet")


def vendor_rows(folder: Path, ranks: list[int]) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "tasks.jsonl").read_text().splitlines()]
    return [
        {"item": line["item"], "ranks": [ranks["ab".index(text)] for text in line["answers"]]}
        for line in lines
    ]


def test_a_vendors_batch(labels, wrong, store, write, tmp_path):
    gold = [{**row, "id": f"g{n}"} for n, row in enumerate(comparisons(5, gold=[2, 1]))]
    labels("prompts", "--file", write("p.jsonl", comparisons(10)), "--keep-similar")
    labels("prompts", "--file", write("g.jsonl", gold), "--keep-similar")
    out = ["vendor-out", "--vendor", "acme", "--count", "10", "--to", f"{tmp_path}/v"]
    assert "1 known answers for 10 tasks" in wrong(*out)
    assert labels(*out, "--gold", "0.5") == (
        f"batch 1: 10 tasks and 5 known answers in {tmp_path}/v\n"
    )
    assert (tmp_path / "v" / "instructions.md").read_text() == guidelines.default_text()
    back = write("back.jsonl", [*vendor_rows(tmp_path / "v", [1, 2]), "{"])
    said = wrong("vendor-in", "--batch", "1", "--file", back)
    assert "batch 1 is refused (0% of gold right): none of its labels came in" in said
    assert labels(*out[:-1], f"{tmp_path}/v2", "--gold", "0.5").startswith("batch 2: 10 tasks")
    back = write("back.jsonl", vendor_rows(tmp_path / "v2", [2, 1]))
    said = labels("vendor-in", "--batch", "2", "--file", back)
    assert said == "batch 2 is accepted: 10 labels (100% of gold right)\n"
    assert {row.vendor for row in read_labels(store).comparisons} == {"acme"}
    assert "batch 2 is accepted" in wrong("vendor-withdraw", "--batch", "2")
    labels("prompts", "--file", write("d.jsonl", [{"prompt": "Say it."}]))
    out = ["vendor-out", "--vendor", "acme", "--work", "write", "--count", "5"]
    assert labels(*out, "--to", f"{tmp_path}/w").startswith("batch 3: 1 tasks and 0 known")
    said = labels("vendor-withdraw", "--batch", "3")
    assert said == "batch 3 is withdrawn; its tasks are open\n"
    (tmp_path / "taken").write_text("here before")
    assert f"{tmp_path}/taken" in wrong(*out, "--to", f"{tmp_path}/taken")


def test_a_backup_and_back(labels, wrong, store, write, tmp_path):
    labels("prompts", "--file", write("p.jsonl", [{"prompt": "What is a heap?"}]))
    auth.create_simulated(store, "w", "labeler")
    who = auth.act_as(store, "w")
    guidelines.acknowledge(store, who, 1)
    work = next_task(store, who, "write")
    submit_demonstration(store, who, work.token, "A tree.", "k")
    said = labels("backup", "--to", f"{tmp_path}/all.zip")
    assert re.fullmatch(rf"\d+ rows of \d+ tables are in {tmp_path}/all\.zip; keep it safe\n", said)
    assert "restore into an empty one" in wrong("restore", "--from", f"{tmp_path}/all.zip")
    new = f"labels.store={tmp_path}/new.sqlite"
    said_again = labels("restore", "--from", f"{tmp_path}/all.zip", new)
    assert said_again.split(" are in ")[0] == said.split(" are in ")[0]
    restored = open_store(f"{tmp_path}/new.sqlite")
    assert read_labels(restored) == read_labels(store)
    restored.close()
    assert f"{tmp_path}: " in wrong("backup", "--to", str(tmp_path))
    (tmp_path / "bad.zip").write_text("hello")
    assert "bad.zip" in wrong("restore", "--from", f"{tmp_path}/bad.zip", f"{new}2")
    assert "is of this release" in labels("upgrade")
