"""Labels as TRL and LLaMA-Factory read them, and the manifest that says what was written."""

import datetime as dt
import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from finetune import labels as finetune_labels
from labeling_app import guidelines
from labeling_app.assignment import next_task
from labeling_app.export import Filters, export_labels, read_labels, run_labels
from labeling_app.formats import export, kto_rows, preference_rows, split_of
from labeling_app.store import LabelsConfig
from labeling_app.submissions import submit_comparison, submit_demonstration
from labeling_app.tasks import NewAnswer, NewTask, add_tasks
from labeling_app.verdicts import Verdict
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.identity import HELDOUT_FRACTION, is_heldout, prompt_id
from pipeline.core.records import (
    Comparison,
    Conversation,
    Message,
    RankedResponse,
    read_records,
    schema_of,
)

SPLITS = ("train", "heldout")
FILES = {
    "comparisons.jsonl", "comparisons.parquet", "conversations.jsonl", "conversations.parquet",
    "llama-factory/dataset_info.json",
    *(f"llama-factory/{kind}_{s}.jsonl" for s in SPLITS for kind in ("sft", "preference")),
    *(f"trl/{kind}_{s}.jsonl" for s in SPLITS for kind in ("sft", "preference", "kto")),
}  # fmt: skip


def turns(number: int) -> tuple[Message, ...]:
    """With a system prompt, with more turns, or bare."""
    last = Message.of("user", f"Question {number}?\n\u2028 😀")
    if number % 3 == 1:
        return (Message.of("system", f"Be brief, {number}."), last)
    if number % 3 == 2:
        return (Message.of("user", f"First {number}?"), Message.of("assistant", "So."), last)
    return (last,)


@pytest.fixture
def label(store, lead, person, clock):
    """label(first, last): answers and rankings of prompts first to last, by one of two people."""

    def make(first: int, last: int) -> None:
        pair = (NewAnswer("m0", "Answer 0."), NewAnswer("m1", "Answer 1."))
        four = tuple(NewAnswer(f"m{i}", f"Answer {i}.") for i in range(4))
        who = person("w" if first == 0 else "v")
        for n in range(first, last):
            add_tasks(
                store,
                lead,
                [
                    NewTask(f"d{n}", "demo", turns(n), "demo-source"),
                    NewTask(f"c{n}", "compare", turns(n), "test", pair if n % 2 else four),
                ],
            )
            clock.move(minutes=1)
            work = next_task(store, who, "write")
            submit_demonstration(store, who, work.token, f'Written\n"{n}".', f"d{n}")
            work = next_task(store, who, "compare")
            verdict = (Verdict((2, 1), degree="clearly"), Verdict((1, 1)))[n % 4 == 3]
            if n % 2 == 0:
                ranks = Verdict((1, 3, 2, 3), "very", likert=(7, 2, None, 1))
                verdict = ranks if n % 6 else Verdict(not_rankable="All alike.")
            submit_comparison(store, who, work.token, verdict, f"c{n}")

    return make


def lines(folder: Path, name: str) -> list[dict]:
    text = (folder / name).read_text("utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def both(folder: Path, name: str) -> list[dict]:
    return [row for split in SPLITS for row in lines(folder, f"{name}_{split}.jsonl")]


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def comparison(ranks: tuple[int, ...], **more) -> Comparison:
    prompt = (Message.of("system", "Brief."), Message.of("user", "Hi?"))
    answers = tuple(RankedResponse(f"id{i}", f"m{i}", f"A{i}", r) for i, r in enumerate(ranks))
    return Comparison(
        comparison_id="c", prompt_id=prompt_id(prompt), prompt=prompt, responses=answers,
        shown_order=tuple(range(len(ranks))), not_rankable=False, confidence=None, labeler="p",
        instruction_version=1, created_at=dt.datetime(2026, 3, 2, tzinfo=dt.UTC), **more,
    )  # fmt: skip


def test_pairs_and_margins_of_a_ranking():
    [row] = preference_rows(comparison((2, 1), degree="clearly"))
    assert row == {
        "prompt": [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Hi?"}],
        "chosen": [{"role": "assistant", "content": "A1"}],
        "rejected": [{"role": "assistant", "content": "A0"}],
        "margin": 0.666667,
        "prompt_id": comparison((2, 1)).prompt_id,
        "comparison_id": "c",
    }
    found = [
        (row["chosen"][0]["content"], row["rejected"][0]["content"], row["margin"])
        for row in preference_rows(comparison((1, 3, 2, 3)))
    ]
    assert sorted(found) == [
        ("A0", "A1", 0.666667), ("A0", "A2", 0.333333), ("A0", "A3", 0.666667),
        ("A2", "A1", 0.333333), ("A2", "A3", 0.333333),
    ]  # fmt: skip
    degrees = ("significantly", "slightly", "negligibly")
    margins = [next(preference_rows(comparison((1, 2), degree=d)))["margin"] for d in degrees]
    assert margins == [1, 0.333333, 0]
    assert next(preference_rows(comparison((1, 2))))["margin"] == 1


def test_ties_and_sets_that_cannot_be_ranked_give_nothing():
    for ranks in ((1, 1), (2, 2, 2), (1, 1, 1, 1)):
        assert list(preference_rows(comparison(ranks))) == []
        assert list(kto_rows(comparison(ranks))) == []
    spoilt = {**vars(comparison((1, 2, 3))), "not_rankable": True}
    assert list(preference_rows(Comparison(**spoilt))) == []
    assert list(kto_rows(Comparison(**spoilt))) == []


def test_the_best_are_good_and_the_worst_bad():
    found = [(row["completion"], row["label"]) for row in kto_rows(comparison((2, 1, 4, 1, 4, 3)))]
    assert found == [
        ([{"role": "assistant", "content": f"A{i}"}], good)
        for i, good in ((1, True), (2, False), (3, True), (4, False))
    ]
    assert {tuple(row) for row in kto_rows(comparison((1, 2)))} == {
        ("prompt", "completion", "label", "prompt_id")
    }


def assert_chat(messages: list[dict], last: str) -> None:
    """As TRL's conversational form: role and content, both texts."""
    assert messages
    for message in messages:
        assert set(message) == {"role", "content"}
        assert message["role"] in ("system", "user", "assistant")
        assert isinstance(message["content"], str)
    assert messages[-1]["role"] == last


def test_files_for_trl(store, label, tmp_path):
    label(0, 30)
    export(store, str(tmp_path), formats=("trl",))
    sft, pairs, kto = (both(tmp_path / "trl", kind) for kind in ("sft", "preference", "kto"))
    assert len(sft) == 30
    for row in sft:
        assert_chat(row["messages"], "assistant")
    # Of 15 pairs 7 tie; of 15 sets of four 5 cannot be ranked, the others give 5 pairs each.
    assert len(pairs) == 8 + 50
    for row in pairs:
        assert_chat(row["prompt"], "user")
        assert_chat(row["chosen"], "assistant")
        assert_chat(row["rejected"], "assistant")
        assert len(row["chosen"]) == len(row["rejected"]) == 1
        assert row["chosen"] != row["rejected"]
    assert len(kto) == 8 * 2 + 10 * 3
    assert sum(row["label"] for row in kto) == 18
    found = read_labels(store)
    assert {row["prompt_id"] for row in sft} == {row.prompt_id for row in found.conversations}
    systems = [row for row in sft if row["messages"][0]["role"] == "system"]
    assert len(systems) == 10
    assert set(files_of(tmp_path)) == {name for name in FILES if "trl" in name} | {
        "labels-manifest.json"
    }


def test_datasets_reads_them(store, label, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    label(0, 30)
    export(store, str(tmp_path / "out"))
    for name in ("trl/sft", "trl/preference", "trl/kto", "llama-factory/preference"):
        file = str(tmp_path / "out" / f"{name}_train.jsonl")
        cache = str(tmp_path / "cache")
        read = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
        assert [dict(row) for row in read] == lines(tmp_path / "out", f"{name}_train.jsonl")


def test_trl_takes_them_as_they_are(store, label, tmp_path):
    trl = pytest.importorskip("trl.data_utils", reason="trl is not installed")
    label(0, 30)
    export(store, str(tmp_path), formats=("trl",))
    for kind in ("sft", "preference", "kto"):
        rows = lines(tmp_path / "trl", f"{kind}_train.jsonl")
        assert rows
        assert all(trl.is_conversational(row) for row in rows)


def test_files_for_llama_factory(store, label, tmp_path):
    label(0, 30)
    export(store, str(tmp_path), formats=("llama-factory",))
    folder = tmp_path / "llama-factory"
    info = json.loads((folder / "dataset_info.json").read_text())
    assert len(info) == 4
    for name, entry in info.items():
        assert (folder / entry["file_name"]).is_file()
        assert entry["formatting"] == "sharegpt"
        is_pairs = "preference" in name
        assert entry.get("ranking", False) == is_pairs
        names = {"messages", "system"} | ({"chosen", "rejected"} if is_pairs else set())
        assert set(entry["columns"]) == names
        tags = entry["tags"]
        for row in lines(folder, entry["file_name"]):
            assert set(row) == set(entry["columns"].values())
            said = row[entry["columns"]["messages"]]
            roles = [turn[tags["role_tag"]] for turn in said]
            # human and gpt in turns, human first; pairs end with human (its README, data/)
            wanted = [tags["user_tag"], tags["assistant_tag"]] * 20
            assert roles == wanted[: len(roles)]
            assert len(roles) % 2 == is_pairs
            assert isinstance(row[entry["columns"]["system"]], str)
            for side in ("chosen", "rejected") if is_pairs else ():
                assert set(row[side]) == {tags["role_tag"], tags["content_tag"]}
                assert row[side][tags["role_tag"]] == tags["assistant_tag"]
    sft = both(folder, "sft")
    assert len(sft) == 30
    assert sorted(row["system"] for row in sft if row["system"]) == sorted(
        f"Be brief, {n}." for n in range(30) if n % 3 == 1
    )
    assert not any("Be brief" in turn["value"] for row in sft for turn in row["conversations"])


def test_json_lines_and_parquet_say_the_same(store, label, tmp_path):
    label(0, 12)
    export(store, str(tmp_path), formats=("records",))
    found = read_labels(store)
    said = read_records(str(tmp_path / "conversations.parquet"), Conversation)
    assert tuple(said) == found.conversations
    ranked = read_records(str(tmp_path / "comparisons.parquet"), Comparison)
    assert tuple(ranked) == found.comparisons
    for row, record in zip(lines(tmp_path, "conversations.jsonl"), said, strict=True):
        assert row.pop("messages") == [
            {"role": turn.role, "content": turn.text} for turn in record.messages
        ]
        assert row.pop("split") == split_of(record.messages)
        assert dt.datetime.fromisoformat(row.pop("created_at")) == record.created_at
        assert row == {name: getattr(record, name) for name in row}
        assert set(row) >= {"origin", "labeler", "vendor", "assisted", "source", "prompt_id"}
    for row, record in zip(lines(tmp_path, "comparisons.jsonl"), ranked, strict=True):
        assert row["ranks"] == [each.rank for each in record.responses]
        assert [each["likert"] for each in row["responses"]] == [
            each.likert for each in record.responses
        ]
        assert row["not_rankable"] == record.not_rankable_reason
        for name in ("degree", "confidence", "labeler", "comparison_id", "source", "comment"):
            assert row[name] == getattr(record, name)
    export_labels(store, str(tmp_path / "stage"))
    for name in ("conversations.parquet", "comparisons.parquet"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "stage" / name).read_bytes()


def test_the_split_is_the_trainers_and_never_moves(store, label, tmp_path):
    label(0, 60)
    before = sides(store, tmp_path / "one")
    manifest = run_labels(LabelsConfig(), store, RunConfig(root=str(tmp_path / "data")))
    for split in SPLITS:
        heldout = split == "heldout"
        conversations = finetune_labels.conversations(manifest, heldout=heldout)
        assert {c.prompt_id for c in conversations} == {
            row["prompt_id"] for row in lines(tmp_path / "one", f"trl/sft_{split}.jsonl")
        }
        ranked = finetune_labels.ranked_prompts(manifest, heldout=heldout)
        pairs = lines(tmp_path / "one", f"trl/preference_{split}.jsonl")
        assert {row["prompt_id"] for row in pairs} <= {each.prompt_id for each in ranked}
    assert {split_of(turns(n)) for n in range(60)} == set(SPLITS)
    for n in range(60):
        first = next(i for i, turn in enumerate(turns(n)) if turn.role == "user")
        heldout = is_heldout(prompt_id(turns(n)[: first + 1]), HELDOUT_FRACTION)
        assert split_of(turns(n)) == ("heldout" if heldout else "train")
    label(60, 90)
    after = sides(store, tmp_path / "two")
    assert len(after) > len(before)
    assert {identity: after[identity] for identity in before} == before


def sides(store, folder: Path) -> dict[str, str]:
    """Of each prompt its one side, in all files."""
    export(store, str(folder))
    found: dict[str, str] = {}
    for split in SPLITS:
        for kind in ("sft", "preference", "kto"):
            for row in lines(folder, f"trl/{kind}_{split}.jsonl"):
                assert found.setdefault(row["prompt_id"], split) == split
    for name in ("conversations.jsonl", "comparisons.jsonl"):
        for row in lines(folder, name):
            assert found.setdefault(row["prompt_id"], row["split"]) == row["split"]
    return found


def test_the_manifest_says_what_is_in_the_files(store, lead, label, tmp_path):
    label(0, 12)
    filters = Filters(simulated=True, sources=("test", "demo-source"))
    done = export(store, str(tmp_path), filters=filters)
    manifest = json.loads((tmp_path / "labels-manifest.json").read_text())
    assert manifest == json.loads(json.dumps(done.manifest))
    assert set(manifest["files"]) == FILES
    assert set(files_of(tmp_path)) == FILES | {"labels-manifest.json"}
    for name, entry in manifest["files"].items():
        data = (tmp_path / name).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest(), name
        if name.endswith(".jsonl"):
            assert entry["rows"] == len(lines(tmp_path, name)), name
        if name.endswith(".parquet"):
            assert entry["rows"] == 12, name
    assert manifest["filters"] == {"sources": ["test", "demo-source"]}
    assert manifest["heldout_fraction"] == HELDOUT_FRACTION
    body = guidelines.newest(store, lead).body_md
    assert manifest["instructions"] == {"1": hashlib.sha256(body.encode()).hexdigest()}
    assert manifest["project"] == "default"


def test_an_empty_export_has_all_its_files(store, tmp_path):
    done = export(store, str(tmp_path))
    assert set(files_of(tmp_path)) == FILES | {"labels-manifest.json"}
    assert {entry["rows"] for entry in done.manifest["files"].values()} == {0}
    assert done.manifest["instructions"] == {}
    empty = pq.read_table(tmp_path / "comparisons.parquet")
    assert (empty.num_rows, empty.schema.names) == (0, schema_of(Comparison).names)
    with pytest.raises(UserError, match="format 'csv' is unknown"):
        export(store, str(tmp_path / "x"), formats=("csv",))
    with pytest.raises(UserError, match="no project 'x'"):
        export(store, str(tmp_path / "y"), project="x")
    assert not (tmp_path / "x").exists()
