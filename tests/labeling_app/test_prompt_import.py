"""Prompts from files into the queue: reruns, a kill, near-duplicates, people at work meanwhile."""

import concurrent.futures
import itertools
import json
import random
from pathlib import Path

import pytest
from sqlalchemy import func, select

from labeling_app import auth
from labeling_app.assignment import next_task
from labeling_app.auth import DeniedError
from labeling_app.prompt_files import Defaults
from labeling_app.prompt_import import PromptReport, import_prompts
from labeling_app.schema import Demonstration, EventRow, Prompt, Response, Slot, Task, TaskResponse
from labeling_app.submissions import submit_demonstration

WORDS = [a + b for a, b in itertools.product("bdfghklmnprst", ("ala", "ero", "ino", "ulu", "yky"))]
PAIR = {"prompt": "Pick.", "responses": ["a", "b"]}
GOOD = {"id": "good", "prompt": "A good one?"}


def line(row: object) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row).encode()


@pytest.fixture
def write(tmp_path):
    def to_file(name: str, rows: list) -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join(line(row) + b"\n" for row in rows))
        return path

    return to_file


def some_prompts(num: int, seed: int = 0, words: int = 12) -> list[dict]:
    rng = random.Random(seed)
    return [{"prompt": " ".join(rng.choices(WORDS, k=words))} for _ in range(num)]


def all_tasks(store) -> list[tuple]:
    """What the import made, without row numbers."""
    with store.read() as session:
        rows = session.execute(
            select(Task.key, Task.kind, Prompt.content_sha256, Task.purpose, func.count(Slot.id))
            .join(Prompt, Prompt.id == Task.prompt_id)
            .outerjoin(Slot, Slot.task_id == Task.id)
            .group_by(Task.id, Prompt.id)
        )
        return sorted(tuple(row) for row in rows)


def count(store, model) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(model))


def test_rejects_are_counted_and_written_and_a_rerun_adds_nothing(store, lead, write, tmp_path):
    path = write("p.jsonl", [GOOD, b"{", *some_prompts(600), {"prompt": ""}, b"caf\xe9"])
    kept = tmp_path / "rejects" / "r.jsonl"
    told: list[int] = []
    report = import_prompts(store, lead, [path], rejects_to=kept, progress=told.append)
    assert (report.lines, report.added, report.known, report.similar) == (604, 601, 0, 0)
    written = [json.loads(row) for row in kept.read_text("utf-8").splitlines()]
    assert [(row["file"], row["line"]) for row in written] == [
        ("p.jsonl", 2), ("p.jsonl", 603), ("p.jsonl", 604),
    ]  # fmt: skip
    assert [row["why"] for row in written] == [each.why for each in report.rejects]
    assert told == sorted(set(told))
    assert told[-1] == 604
    before, events = all_tasks(store), count(store, EventRow)
    again = import_prompts(store, lead, [path])
    assert (again.added, again.known, again.similar) == (0, 601, 0)
    assert (all_tasks(store), count(store, EventRow)) == (before, events)
    fixed = write("p.jsonl", [GOOD])
    import_prompts(store, lead, [fixed], rejects_to=kept)
    assert not kept.exists() or kept.read_text() == ""


_IMPORT = """
import sys
from pathlib import Path
from labeling_app import auth
from labeling_app.prompt_import import import_prompts
from labeling_app.store import open_store
store = open_store(sys.argv[1])
import_prompts(store, auth.act_as(store, "lead"), [Path(name) for name in sys.argv[2:]])
"""


@pytest.mark.long
@pytest.mark.parametrize("kill_after", [1, 1000])
def test_killed_in_the_middle_and_run_again(
    store, lead, new_store, write, kill_when, person, kill_after
):
    rows = some_prompts(2500)
    near = [{"prompt": row["prompt"] + " " + WORDS[n % 40]} for n, row in enumerate(rows[::10])]
    files = [write("one.jsonl", rows + near), write("two.jsonl", near + [PAIR] * 3)]
    arguments = ["-c", _IMPORT, store.url, *map(str, files)]
    kill_when(arguments, lambda: count(store, Task) >= kill_after)
    left = count(store, Task)
    assert kill_after <= left < 2500
    report = import_prompts(store, lead, files)
    assert report.known >= left
    calm = new_store()
    auth.create_simulated(calm, "lead", "lead")
    import_prompts(calm, auth.act_as(calm, "lead"), files)
    assert all_tasks(store) == all_tasks(calm)
    for model in (Prompt, Slot, Response, TaskResponse):
        assert count(store, model) == count(calm, model)


def jaccard(one: str, other: str) -> float:
    """Of word pairs, by the book."""
    pairs = [set(itertools.pairwise(text.split())) for text in (one, other)]
    return len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])


def changed(rng: random.Random, text: str, words: int) -> str:
    parts = text.split()
    for place in rng.sample(range(len(parts)), words):
        parts[place] = rng.choice([word for word in WORDS if word != parts[place]])
    return " ".join(parts)


def kept_texts(store) -> set[str]:
    with store.read() as session:
        return {rows[-1]["content"][0]["text"] for rows in session.scalars(select(Prompt.messages))}


def families(num: int, seed: int) -> list[list[str]]:
    """Prompts of 120 words, each with two much like it (Jaccard 0.97 and 0.9) and one less so."""
    rng = random.Random(seed)
    firsts = [" ".join(rng.choices(WORDS, k=120)) for _ in range(num)]
    return [[text, *(changed(rng, text, words) for words in (1, 3, 24))] for text in firsts]


@pytest.mark.parametrize("how", ["one file", "across files", "across runs"])
def test_near_duplicates_are_left_out_wherever_the_first_one_is(store, lead, write, how):
    found = families(60, seed=3)
    rows = [[{"prompt": texts[i]} for texts in found] for i in range(4)]
    if how == "one file":
        runs = [[write("all.jsonl", list(itertools.chain(*rows)))]]
    else:
        files = [write(f"{i}.jsonl", some) for i, some in enumerate(rows)]
        runs = [files] if how == "across files" else [[file] for file in files]
    similar = sum(import_prompts(store, lead, files).similar for files in runs)
    kept = kept_texts(store)
    missed = sum(jaccard(t[0], copy) >= 0.9 and copy in kept for t in found for copy in t[1:])
    sure = sum(jaccard(t[0], copy) >= 0.9 for t in found for copy in t[1:])
    assert missed <= sure * 0.03, f"{missed} of {sure} near-duplicates came in"
    assert all(text in kept for t in found for text in (t[0], t[3]))  # 0.5: never left out
    assert similar == 240 - len(kept)


def test_what_is_left_out_has_one_almost_the_same_by_brute_force(store, lead, write):
    texts = list(itertools.chain(*families(80, seed=5)))
    random.Random(1).shuffle(texts)
    report = import_prompts(store, lead, [write("p.jsonl", [{"prompt": text} for text in texts])])
    kept = kept_texts(store)
    assert report.added == len(kept)
    assert report.added + report.similar == 320
    closest = {t: max(jaccard(t, other) for other in kept) for t in texts if t not in kept}
    assert min(closest.values()) > 0.6  # 0.8, less four standard deviations of 64 lanes
    assert sum(value >= 0.75 for value in closest.values()) > 0.9 * len(closest)


def test_similar_ones_are_kept_when_asked_for(store, lead, write):
    texts = list(itertools.chain(*families(20, seed=7)))
    path = write("p.jsonl", [{"prompt": text} for text in texts])
    report = import_prompts(store, lead, [path], dedupe=False)
    assert (report.added, report.similar) == (80, 0)
    assert import_prompts(store, lead, [path]).known == 80


def test_a_prompt_is_written_for_and_compared_and_compared_again_with_other_answers(
    store, lead, write, tmp_path
):
    text = " ".join(WORDS[:60])
    almost = " ".join([*WORDS[:59], "other"])

    def compared(prompt: str, *answers: str) -> dict:
        return {"prompt": prompt, "responses": [{"model": "m", "text": each} for each in answers]}

    rows = [
        {"prompt": text},
        compared(text, "a", "b"),
        compared(text, "a", "c"),
        {**compared(text, "b", "a"), "id": "the same answers"},
        {**compared(almost, "x", "y"), "id": "almost the same prompt"},
        {"prompt": almost},
    ]
    report = import_prompts(store, lead, [write("one.jsonl", rows)])
    assert (report.added, report.similar) == (3, 3)
    kept = tmp_path / "left-out.jsonl"
    again = import_prompts(store, lead, [write("two.jsonl", [
        {**compared(text, "a", "b"), "id": "again"}, compared(text, "d", "e"),
    ])], rejects_to=kept)  # fmt: skip
    assert (again.added, again.similar) == (1, 1)
    [told] = map(json.loads, kept.read_text("utf-8").splitlines())
    assert told["why"] == "task 'two:again' is almost the same as one that is there"


def test_different_questions_behind_one_system_prompt_are_kept(store, lead, write):
    system = {"role": "system", "content": " ".join(WORDS[:50])}
    rows = [
        {"messages": [system, {"role": "user", "content": each["prompt"]}]}
        for each in some_prompts(20, words=8)
    ]
    assert import_prompts(store, lead, [write("p.jsonl", rows)]).added == 20


def test_short_documents_are_kept(store, lead, write):
    rows = [{"doc_id": f"d{n}", "text": word} for n, word in enumerate(WORDS[:20])]
    assert import_prompts(store, lead, [write("d.jsonl", rows)]).added == 20


def test_short_prompts_of_other_words_or_signs_are_kept(store, lead, write):
    texts = ["Hi?", "Ho?", "???", "!!!", "2 + 2?", "2 + 3?", "你好", "再见", "a b", "b a"]
    report = import_prompts(store, lead, [write("p.jsonl", [{"prompt": t} for t in texts])])
    assert (report.added, report.similar) == (10, 0)
    again = [{"prompt": t} for t in ("hi", "HI!", "2+2", "???")]  # case and signs do not count
    assert import_prompts(store, lead, [write("q.jsonl", again)]).similar == 4


def test_one_id_with_two_prompts_is_told(store, lead, write):
    rows = [{"id": 1, "prompt": "What is a heap?"}, {"id": 1, "prompt": "Who was Ada Lovelace?"}]
    report = import_prompts(store, lead, [write("p.jsonl", rows)])
    assert (report.added, report.known, len(report.rejects)) == (1, 0, 1)


def test_known_answers_come_in_without_slots(store, lead, write):
    rows = [
        {**PAIR, "prompt": f"{word}?", "id": word, **more}
        for word, more in (
            ("work", {}),
            ("gold", {"gold": [2, 1]}),
            ("test", {"gold": [1, 2], "purpose": "qualification"}),
        )
    ]
    assert import_prompts(store, lead, [write("p.jsonl", rows)]).added == 3
    assert [(key, purpose, slots) for key, _, _, purpose, slots in all_tasks(store)] == [
        ("p:gold", "gold", 0), ("p:test", "qualification", 0), ("p:work", "work", 1),
    ]  # fmt: skip
    with store.read() as session:
        golds = session.execute(select(Task.key, Task.gold).order_by(Task.key)).all()
        assert [gold for _, gold in golds] == [[2, 1], [1, 2], None]


def test_priority_skill_and_overlap_reach_the_queue(store, lead, person, write):
    rows = [{"prompt": "late"}, {"prompt": "soon", "priority": 9}, {"prompt": "law", "skill": "x"}]
    import_prompts(store, lead, [write("p.jsonl", rows)], Defaults("import", overlap=2))
    one, other = person("w"), person("v")
    for who in (one, other, person("u")):
        seen = []
        while work := next_task(store, who, "write"):
            seen.append(work.prompt[0].text)
            submit_demonstration(store, who, work.token, "An answer.", work.token)
        assert seen == (["soon", "late"] if who in (one, other) else [])


def test_only_leads_and_engineers_import(store, person, write):
    path = write("p.jsonl", [GOOD])
    for role in ("labeler", "reviewer"):
        with pytest.raises(DeniedError):
            import_prompts(store, person(role, role), [path])
    assert import_prompts(store, person("e", "engineer"), [path]) == PromptReport(1, 1, 0, 0, ())


def test_two_imports_at_once_add_each_prompt_once(store, lead, write):
    files = [write("p.jsonl", some_prompts(1000))] * 2
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda file: import_prompts(store, lead, [file]), files))
    assert count(store, Task) == count(store, Slot) == count(store, Prompt) == 1000
    assert sum(report.added for report in reports) == 1000
    for report in reports:
        assert report.added + report.known + report.similar == 1000


def test_people_label_while_an_import_runs(store, lead, person, write):
    import_prompts(store, lead, [write("first.jsonl", some_prompts(900, seed=9))])
    path = write("p.jsonl", some_prompts(2000))
    people = [person(f"w{number}") for number in range(3)]

    def label(who) -> int:
        done = 0
        while not running.done() or done < 5:
            work = next_task(store, who, "write")
            submit_demonstration(store, who, work.token, "An answer.", work.token)
            done += 1
        return done

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = pool.submit(import_prompts, store, lead, [path])
        done = list(pool.map(label, people))
        assert running.result().added == 2000
    assert count(store, Demonstration) == sum(done)
    assert count(store, Slot) == 2900
