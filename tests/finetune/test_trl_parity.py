"""One batch of SFT, of preferences and of rewards through TRL's trainers and through ours."""

import os

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from finetune.attention import NAME
from finetune.dpo import DpoConfig, Pair, PairBatch, _objective, answer_log_probs
from finetune.labels import answer_segment, chat_segment
from finetune.model import new_model, reward_model_from
from finetune.packing import pack_best_fit
from finetune.pretrain import next_token_objective
from finetune.reward import AnswerSet, ranking_objective
from finetune.tokenizer import PAD, as_hugging_face, token_id
from pipeline.core.records import Message
from tests.finetune.conftest import TINY, sentences

# In fp32, as TRL's are here; what TRL or its libraries warn of is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")
QUESTIONS = [sentence[:40] for sentence in sentences(1, 6)]
ANSWERS = [sentence[:30] for sentence in sentences(2, 6)]
WORSE = [sentence[:70] for sentence in sentences(3, 6)]


@pytest.fixture(scope="module")
def trl():
    os.environ.setdefault("WANDB_DISABLED", "true")
    return pytest.importorskip("trl", reason="trl is not installed")


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="datasets is not installed")


def _arguments(tmp_path, **more) -> dict:
    common = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 6, "report_to": "none",
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip
    return common | more


def _of(model, loss) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _same(ours, theirs) -> None:
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-3)


def _messages(number: int, answer: str) -> tuple[Message, ...]:
    return Message.of("user", QUESTIONS[number]), Message.of("assistant", answer)


def test_sft(trl, datasets, tokenizer, tmp_path) -> None:
    segments = [chat_segment(tokenizer, _messages(n, ANSWERS[n])) for n in range(6)]
    rows = datasets.Dataset.from_list(
        [
            {
                "input_ids": list(s.ids),
                "labels": [i if x else -100 for i, x in zip(s.ids, s.supervised, strict=True)],
            }
            for s in segments
        ]
    )
    model = new_model(TINY, tokenizer, seed=1).train()
    trainer = trl.SFTTrainer(
        model,
        trl.SFTConfig(**_arguments(tmp_path, max_length=None)),
        train_dataset=rows,
        processing_class=as_hugging_face(tokenizer),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = _of(model, trainer.compute_loss(model, batch))
    mine = new_model(TINY, tokenizer, seed=1).train()
    packed, _ = pack_best_fit(segments, 128, token_id(tokenizer, PAD))
    _same(_of(mine, next_token_objective(mine, packed).total / packed.num_supervised), theirs)


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_dpo(trl, datasets, tokenizer, tmp_path, loss: str) -> None:
    chosen, rejected = (
        [answer_segment(tokenizer, _messages(n, "")[:1], texts[n]) for n in range(6)]
        for texts in (ANSWERS, WORSE)
    )
    start = [c.supervised.index(True) for c in chosen]
    rows = datasets.Dataset.from_list(
        [
            {
                "prompt_ids": list(c.ids[:at]),
                "chosen_ids": list(c.ids[at:]),
                "rejected_ids": list(r.ids[at:]),
            }
            for c, r, at in zip(chosen, rejected, start, strict=True)
        ]
    )
    model, reference = (new_model(TINY, tokenizer, seed=seed).train() for seed in (1, 2))
    name = {"dpo": "sigmoid", "ipo": "ipo"}[loss]
    arguments = _arguments(tmp_path, beta=0.1, loss_type=[name], max_length=None)
    collate = trl.trainer.dpo_trainer.DataCollatorForPreference(token_id(tokenizer, PAD))
    text = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 6)
    trainer = trl.DPOTrainer(
        model,
        reference,
        trl.DPOConfig(**arguments),
        train_dataset=text,
        processing_class=as_hugging_face(tokenizer),
    )
    theirs = _of(model, trainer.compute_loss(model, collate(list(rows))))
    mine = new_model(TINY, tokenizer, seed=1).train()
    fixed = new_model(TINY, tokenizer, seed=2)
    pad_id = token_id(tokenizer, PAD)
    sums = [answer_log_probs(fixed, side, pad_id) for side in (chosen, rejected)]
    pairs = [Pair("p", c, r, a, b) for c, r, a, b in zip(chosen, rejected, *sums, strict=True)]
    total = _objective(mine, PairBatch(pairs), DpoConfig(loss=loss, beta=0.1), pad_id).total
    _same(_of(mine, total / 6), theirs)


@pytest.mark.parametrize("margin", [None, 0.5])
def test_reward(trl, datasets, tokenizer, tmp_path, margin: float | None) -> None:
    sides = [
        [answer_segment(tokenizer, _messages(n, "")[:1], texts[n]) for n in range(6)]
        for texts in (ANSWERS, WORSE)
    ]
    extra = {} if margin is None else {"margin": margin}
    rows = datasets.Dataset.from_list(
        [
            {"chosen_ids": list(c.ids), "rejected_ids": list(r.ids), **extra}
            for c, r in zip(*sides, strict=True)
        ]
    )
    folder = tmp_path / "base"
    new_model(TINY, tokenizer, seed=1).save_pretrained(folder)
    mine = reward_model_from(folder).train()
    torch.nn.init.normal_(mine.score.weight, generator=torch.Generator().manual_seed(0))
    mine.config.pad_token_id = token_id(tokenizer, PAD)
    mine.save_pretrained(tmp_path / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "reward", dtype=torch.float32, attn_implementation=NAME
    ).train()
    trainer = trl.RewardTrainer(
        model,
        trl.RewardConfig(**_arguments(tmp_path, max_length=None)),
        train_dataset=rows,
        processing_class=as_hugging_face(tokenizer),
    )
    batch = trainer.data_collator(list(rows))
    theirs = _of(model, trainer.compute_loss(model, batch))
    sets = [
        AnswerSet("p", (c, r), (((0, 1),),), (margin or 0.0,), (1, 1))
        for c, r in zip(*sides, strict=True)
    ]
    loss = ranking_objective(mine, sets, token_id(tokenizer, PAD), "margin")
    _same(_of(mine, loss.total / 6), theirs)
