"""Rejection sampling: the best of n it is, and what lies in its folder is ours or is not believed."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import finetune.rejection
from finetune.engines import TorchEngine
from finetune.generate import Completion
from finetune.model import new_model
from finetune.registry import Registry
from finetune.rejection import RejectionConfig, best_of_n, run_rejection
from finetune.reward import RewardConfig, run_reward
from finetune.rollouts import Question
from finetune.tokenizer import TURN_END, token_id
from pipeline.core.config import RunConfig
from pipeline.core.identity import prompt_id
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.records import (
    Comparison,
    Conversation,
    Message,
    RankedResponse,
    read_records,
    to_table,
    write_table,
)
from tests.finetune.conftest import TINY

CONFIG = RejectionConfig(samples=128, max_new_tokens=8, device="cpu")  # a prompt at a time


class Drawn:
    """Answers of one word each, and what they were drawn with."""

    def __init__(self, words: Sequence[int], end: int) -> None:
        self.words, self.end = words, end
        self.seeds: list[int] = []

    def generate(self, prompts, _sampling, seed: int) -> list[Completion]:
        self.seeds.append(seed)
        answers = [(self.words[i % len(self.words)], self.end) for i in range(len(prompts))]
        return [Completion(ids, (-1.0, -1.0), ids[0] != 99) for ids in answers]

    def load_weights(self, _model) -> None: ...


class LikesMost:
    def __init__(self, word: int) -> None:
        self.word = word

    def rewards(self, _questions, completions: Sequence[Completion]) -> Tensor:
        return torch.tensor([-abs(c.ids[0] - self.word) + 0.0 for c in completions])


@pytest.mark.parametrize("liked", [80, 83, 87])
def test_it_is_the_answer_that_the_judge_likes_most(tokenizer, tmp_path, liked: int) -> None:
    engine = Drawn([*range(80, 88)], token_id(tokenizer, TURN_END))
    questions = [Question(f"q{n}", (70, 71)) for n in range(3)]
    config = RejectionConfig(samples=128, max_new_tokens=4)
    best = best_of_n(engine, questions, LikesMost(liked), tokenizer, config, tmp_path)
    assert best == [tokenizer.decode([liked])] * 3
    assert len(set(engine.seeds)) == 3  # no prompt has another one's draws


def test_what_is_cut_off_or_empty_is_no_answer(tokenizer, tmp_path: Path) -> None:
    end = token_id(tokenizer, TURN_END)
    questions = [Question("q", (70, 71))]
    config = RejectionConfig(samples=4, max_new_tokens=4)
    found = best_of_n(Drawn([99, 80], end), questions, LikesMost(99), tokenizer, config, tmp_path)
    assert found == [tokenizer.decode([80])]
    blank = tokenizer.encode(" ", add_special_tokens=False).ids[0]
    folder = tmp_path / "blank"
    assert best_of_n(
        Drawn([99, blank], end), questions, LikesMost(99), tokenizer, config, folder
    ) == [None]


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory) -> tuple[RunConfig, tuple[str, str], Manifest]:
    from tests.finetune.conftest import write_labels

    run = RunConfig(root=str(tmp_path_factory.mktemp("rejection")))
    labels = write_labels(run.root)
    base = Registry(run.root).publish(
        new_model(TINY, tokenizer, seed=1), tokenizer, {"kind": "base"}
    )
    reward = run_reward(RewardConfig(epochs=1, folds=2), base, labels, run).facts["model_id"]
    return run, (base, reward), labels


def _folder(run: RunConfig, models, labels: Manifest, monkeypatch) -> Path:
    """Of a run that ended after two prompts."""
    sample = TorchEngine.generate
    asked = list[int]()

    def ends_at_the_third(self, prompts, sampling, seed):
        asked.append(seed)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return sample(self, prompts, sampling, seed)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "generate", ends_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            run_rejection(CONFIG, *models, labels, run)
    (part, _) = sorted((Path(run.root) / "rejection").rglob("best-*.json"))
    return part.parent


FOREIGN = {
    "nothing": b"",
    "cut off": b'{"best": ["ye',
    "not UTF-8": b'{"best": ["\xff\xfe"], "sha256": "0"}',
    "a list": b'["yes it sorts"]',
    "a number": b"7",
    "another prompt's": b'{"best": ["POISON"], "sha256": "' + b"0" * 64 + b'"}',
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_part_that_is_not_ours_is_said_and_made_anew(
    made, tmp_path, monkeypatch, caplog, content: bytes
) -> None:
    whole, models, labels = made
    expected = run_rejection(CONFIG, *models, labels, whole).content
    run = RunConfig(root=str(tmp_path))
    (tmp_path / "models").symlink_to(Path(whole.root) / "models")
    folder = _folder(run, models, labels, monkeypatch)
    (folder / "best-000000000.json").write_bytes(content)
    (folder / "best-mine.json").write_text("notes of a person")
    assert run_rejection(CONFIG, *models, labels, run).content == expected
    assert "best-000000000.json is damaged" in caplog.text
    assert [path.name for path in folder.glob("best-*")] == ["best-mine.json"]


def test_what_a_kill_after_the_end_left_is_swept(made, tmp_path, monkeypatch) -> None:
    whole, models, labels = made
    run = RunConfig(root=str(tmp_path))
    (tmp_path / "models").symlink_to(Path(whole.root) / "models")
    with monkeypatch.context() as patch:
        patch.setattr(finetune.rejection, "_sweep", lambda output: None)
        done = run_rejection(CONFIG, *models, labels, run)
    assert list(Path(done.url).glob("best-*.json"))
    assert run_rejection(CONFIG, *models, labels, run) == done
    assert not list(Path(done.url).glob("best-*.json"))


def test_a_prompt_with_several_answer_sets_is_asked_once(made, tmp_path: Path) -> None:
    whole, models, _ = made
    when = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    output = StageOutput.of(str(tmp_path), "labels", 1, {"twice": True}, {})
    asked = [(Message.of("user", f"does the heap keep order {i}"),) for i in range(12)]
    answered = [
        Conversation(f"c{i}", prompt_id(q), (*q, Message.of("assistant", "yes it does")), "test",
                     "human", "p1", 1, when)
        for i, q in enumerate(asked)
    ]  # fmt: skip
    ranked = [
        Comparison(f"k{i}{s}", prompt_id(q), q,
                   tuple(RankedResponse(f"r{i}-{s}-{k}", "m", f"answer {k}", k + 1) for k in (0, 1)),
                   (0, 1), False, None, "p1", 1, when)
        for i, q in enumerate(asked) for s in range(3)
    ]  # fmt: skip
    write_table(to_table(answered, Conversation), output.path("conversations.parquet"))
    write_table(to_table(ranked, Comparison), output.path("comparisons.parquet"))
    names = ("conversations.parquet", "comparisons.parquet")
    labels = output.commit(
        [describe_file(output.path(name), name) for name in names], Counts(48, 48), started=0.0
    )
    run = RunConfig(root=str(tmp_path))
    (tmp_path / "models").symlink_to(Path(whole.root) / "models")
    done = run_rejection(CONFIG, *models, labels, run)
    found = read_records(done.file_url("conversations.parquet"), Conversation)
    ids = [c.conversation_id for c in found if c.origin == "model"]
    assert len(ids) == len(set(ids)) == done.counts.rows_out > 0
    assert done.counts.rows_in < 12
