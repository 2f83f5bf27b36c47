"""Training against TRL: the same model, data, precision and tokens, the two sides in turn.

    python benchmarks/train.py                       # all of it, about 25 minutes on two cores
    python benchmarks/train.py --only sft-4M         # one row, nothing recorded

TRL stands in the `dev` extra, beside the same torch. Needs the shared data (FLYWHEEL_DATA).
"""

import argparse
import dataclasses
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from rows import Row, record, record_table, row

from finetune.data import batches_of
from finetune.dpo import DpoConfig, Pair, _objective, _source, answer_log_probs
from finetune.grpo import GrpoConfig, group_objective, source
from finetune.labels import answer_segment, chat_segment
from finetune.loop import LoopConfig, train
from finetune.model import (
    ModelConfig,
    best_precision,
    load_language_model,
    new_model,
    reward_model_from,
    training_flops,
)
from finetune.packing import Segment, pack_best_fit
from finetune.pretrain import next_token_objective
from finetune.reward import AnswerSet, RewardConfig, ranking_objective
from finetune.reward import _source as reward_source
from finetune.rollouts import Question, Sampler
from finetune.tokenizer import (
    PAD,
    TokenizerConfig,
    as_hugging_face,
    load_tokenizer,
    token_id,
    train_bpe,
)
from pipeline.core.records import Message

SCRIPT = "train.py"
# What both sides are told of the loop.
SAME: dict[str, Any] = {"weight_decay": 0.0, "final_lr_fraction": 0.0, "checkpoint_every": 10**6}
DATA = Path(__file__).resolve().parents[1] / os.environ.get("FLYWHEEL_DATA", "../shared/data")
SHAPES = {
    "4M": ModelConfig(hidden_size=256, num_layers=4, num_heads=8, intermediate_size=704, max_length=512),
    "50M": ModelConfig(hidden_size=576, num_layers=12, num_heads=9, intermediate_size=1536, max_length=512),
}  # fmt: skip
ROW, ROWS = 512, 4
PAIR_LENGTH, PAIRS = 256, 8
GROUP, PROMPTS, NEW_TOKENS, RL_STEPS = 8, 4, 48, 12
SIZES = {"sft-4M": 600, "sft-50M": 120, "dpo-4M": 240, "reward-4M": 240, "grpo-4M": 64}
MARKS = {"sft-4M": 2.0, "sft-50M": 1.3, "dpo-4M": 2.0, "reward-4M": 2.0, "grpo-4M": 3.0}


@dataclasses.dataclass(frozen=True)
class Found:
    """One run of one side: seconds of training alone, what it did in them, and the mean of its losses."""

    seconds: float
    done: float
    loss: float
    memory_gb: float
    flops: float = 0.0
    data_share: float = 0.0  # of the time, waiting for batches


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(SIZES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=["ours", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work = OURS if options.side == "ours" else TRL
        stage = options.only.partition("-")[0]
        print(json.dumps(dataclasses.asdict(work[stage](Path(options.folder)))))
        return 0
    rows: list[Row] = []
    lines = ["| what | ours | TRL | ratio (mark) | of the matrix rate | waiting for data | peak memory | mean loss |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    limit = matrix_rate()
    print(f"matrix product, bf16 where the hardware has it: {limit / 1e9:,.0f} GFLOP/s", flush=True)
    for name in [options.only] if options.only else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            prepare(name, Path(folder))
            rows.append(compare(name, Path(folder), options.runs, limit, lines))
    print("\n".join(lines))
    if not options.only:
        record(rows)
        record_table(
            "training", "Training beside TRL", "\n".join([*lines, "", NOTE.format(limit / 1e9)])
        )
    return 0


NOTE = (
    "Seconds of training alone, loading and packing apart (for DPO ours holds the reference's pass"
    " too, as TRL's does). bf16 autocast on both sides where the processor multiplies in it; the"
    " matrix product of 2,048 square matrices reached {:,.0f} GFLOP/s in the same run. GRPO counts"
    " its training passes alone as arithmetic. The arithmetic is 6 for each token and parameter, the"
    " head at positions without a label among them, which is not computed: 1 to 5% too much. Peak memory is the whole process's."
)


def compare(name: str, folder: Path, runs: int, limit: float, lines: list[str]) -> Row:
    found: dict[str, list[Found]] = {"ours": [], "trl": []}
    for number in range(runs):
        for side in ("ours", "trl") if number % 2 == 0 else ("trl", "ours"):
            output = subprocess.run(
                [sys.executable, __file__, "--only", name, "--side", side, "--folder", str(folder)],
                check=True, capture_output=True, text=True,
                env={**os.environ, "WANDB_DISABLED": "true", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            ).stdout  # fmt: skip
            found[side].append(Found(**json.loads(output.splitlines()[-1])))
            last = found[side][-1]
            print(
                f"{name} {side}: {last.done / last.seconds:,.1f}/s, loss {last.loss:.3f}",
                flush=True,
            )
    ours, theirs = (
        statistics.median(f.done / f.seconds for f in found[s]) for s in ("ours", "trl")
    )
    unit = "samples/s" if name.startswith("grpo") else "tokens/s"
    share = statistics.median(f.flops / f.seconds for f in found["ours"]) / limit
    memory = [max(f.memory_gb for f in found[s]) for s in ("ours", "trl")]
    # GRPO's source samples: that is its work.
    waited = "" if name.startswith("grpo") else f"{found['ours'][-1].data_share:.2%}"
    lines.append(
        f"| {name} | {ours:,.1f} {unit} | {theirs:,.1f} | {ours / theirs:.2f} ({MARKS[name]}) |"
        f" {share:.0%} | {waited} | {memory[0]:.2f} and {memory[1]:.2f} GB |"
        f" {found['ours'][-1].loss:.4f} and {found['trl'][-1].loss:.4f} |"
    )
    import trl

    what = {"sft": "sft", "dpo": "dpo", "reward": "reward", "grpo": "rlhf"}[name.partition("-")[0]]
    return row(what, SCRIPT, ("trl", trl.__version__), ours, theirs, f"{unit} {name}")


def prepare(name: str, folder: Path) -> None:
    """A model, its tokenizer, and the tokens that both sides train on."""
    stage, _, size = name.partition("-")
    dolly = [(r["instruction"], r["output"]) for r in _archive("sft/dolly-3k", "dolly_3k.json")]
    tokenizer = train_bpe((q + "\n" + a for q, a in dolly), TokenizerConfig(vocab_size=4096))
    model = new_model(SHAPES[size], tokenizer, seed=0)
    model.save_pretrained(str(folder / "model"))
    (folder / "model" / "tokenizer.json").write_text(tokenizer.to_str())
    as_hugging_face(tokenizer).save_pretrained(str(folder / "model"))
    data: list[Any] = []
    limit = ROW if stage == "sft" else PAIR_LENGTH
    for question, answer in dolly:
        prompt = (Message.of("user", question),)
        if stage == "sft":
            segment = chat_segment(tokenizer, (*prompt, Message.of("assistant", answer)))
            entry: Any = [list(segment.ids), [int(s) for s in segment.supervised]]
            fits = len(segment.ids) <= limit
        else:
            # The better side is the person's answer; the worse one its first half, said twice.
            half = answer[: max(1, len(answer) // 2)]
            sides = [answer_segment(tokenizer, prompt, a) for a in (answer, half + " " + half)]
            start = sides[0].supervised.index(True)
            entry = [list(sides[0].ids[:start]), *(list(s.ids[start:]) for s in sides)]
            fits = max(len(s.ids) for s in sides) <= limit and entry[1] != entry[2]
        if fits:
            data.append(entry)
        if len(data) == SIZES[name]:
            break
    (folder / "data.json").write_text(json.dumps(data))


def _archive(name: str, wanted: str) -> list[dict[str, str]]:
    with tarfile.open(DATA / f"{name}.tar.xz") as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith(".json"))
        return json.loads(tar.extractfile(member).read())  # type: ignore[union-attr]


def matrix_rate() -> float:
    dtype = best_precision().autocast_dtype or torch.float32
    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(100):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(seconds)


def _measured(work: Callable[[], list[dict[str, float]]], done: float, flops: float = 0.0) -> Found:
    started = time.perf_counter()
    steps = work()
    seconds = time.perf_counter() - started
    # Over all steps: the sides do not see their batches in the same order.
    loss = statistics.mean(step["loss"] for step in steps)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    share = statistics.mean(step.get("data_share", 0.0) for step in steps)
    return Found(seconds, done, loss, memory, flops, share)


def _data(folder: Path) -> list[Any]:
    return json.loads((folder / "data.json").read_text())


def _new(folder: Path) -> Path:
    """Where no checkpoint lies: a run that goes on from another one's end takes no time."""
    return Path(tempfile.mkdtemp(dir=folder))


def ours_sft(folder: Path) -> Found:
    model = load_language_model(folder / "model")
    segments = [Segment(tuple(ids), tuple(map(bool, mask))) for ids, mask in _data(folder)]
    rows, _ = pack_best_fit(segments, ROW, token_id(load_tokenizer(folder / "model"), PAD))
    steps = len(rows.ids_BT) // ROWS
    config = LoopConfig(learning_rate=1e-3, warmup_steps=10, **SAME)
    tokens = sum(len(s.ids) for s in segments) * steps * ROWS / len(rows.ids_BT)
    flops = training_flops(model, int(tokens), rows.num_attended)

    def work() -> list[dict[str, float]]:
        source = batches_of(rows, ROWS, ROWS, 0)
        result = train("sft", model, next_token_objective, source, steps, config, _new(folder))
        return result.metrics

    return _measured(work, tokens, flops)


def _pairs(folder: Path) -> list[tuple[Segment, Segment]]:
    def segment(prompt: list[int], answer: list[int]) -> Segment:
        return Segment((*prompt, *answer), (*[False] * len(prompt), *[True] * len(answer)))

    return [(segment(p, c), segment(p, r)) for p, c, r in _data(folder)]


def ours_dpo(folder: Path) -> Found:
    model, reference = (load_language_model(folder / "model") for _ in range(2))
    sides = _pairs(folder)
    pad_id = token_id(load_tokenizer(folder / "model"), PAD)
    config = DpoConfig(
        learning_rate=1e-4, warmup_steps=10, batch_pairs=PAIRS, micro_batch_pairs=PAIRS, **SAME
    )
    tokens = sum(len(s.ids) for pair in sides for s in pair)
    attended = sum(len(s.ids) ** 2 for pair in sides for s in pair)

    def work() -> list[dict[str, float]]:
        with torch.no_grad(), best_precision().autocast():
            sums = answer_log_probs(reference, [s for pair in sides for s in pair], pad_id)
        pairs = [Pair(str(n), c, r, sums[2 * n], sums[2 * n + 1]) for n, (c, r) in enumerate(sides)]
        objective = functools.partial(_objective, config=config, pad_id=pad_id)
        result = train("dpo", model, objective, _source(pairs, config, pad_id), len(pairs) // PAIRS, config,
                       _new(folder))  # fmt: skip
        return result.metrics

    return _measured(work, tokens, training_flops(model, tokens, attended) * 4 / 3)


def ours_reward(folder: Path) -> Found:
    model = reward_model_from(folder / "model")
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight, std=0.02)
    sets = [
        AnswerSet(str(n), pair, (((0, 1),),), (0.0,), (1, 1))
        for n, pair in enumerate(_pairs(folder))
    ]
    config = RewardConfig(learning_rate=1e-4, warmup_steps=10, batch_prompts=PAIRS, micro_batch_prompts=PAIRS,
                          loss="pairwise", **SAME)  # fmt: skip
    pad_id = token_id(load_tokenizer(folder / "model"), PAD)
    tokens = sum(len(s.ids) for answers in sets for s in answers.segments)
    attended = sum(len(s.ids) ** 2 for answers in sets for s in answers.segments)

    def work() -> list[dict[str, float]]:
        objective = functools.partial(ranking_objective, pad_id=pad_id, loss="pairwise")
        result = train("reward", model, objective, reward_source(sets, config), len(sets) // PAIRS, config,
                       _new(folder))  # fmt: skip
        return result.metrics

    return _measured(work, tokens, training_flops(model, tokens, attended))


class _LengthJudge:
    def rewards(self, questions: Any, completions: Any) -> torch.Tensor:
        return torch.tensor([float(len(set(c.ids))) for c in completions])


def ours_grpo(folder: Path) -> Found:
    model, reference = (load_language_model(folder / "model") for _ in range(2))
    tokenizer = load_tokenizer(folder / "model")
    questions = [Question(str(n), tuple(p)) for n, (p, _, _) in enumerate(_data(folder))]
    config = GrpoConfig(steps=RL_STEPS, batch_prompts=PROMPTS, group_size=GROUP, max_new_tokens=NEW_TOKENS,
                        max_kl=1e9, beta=0.04, learning_rate=1e-5, warmup_steps=10, **SAME)  # fmt: skip
    sampler = Sampler(_LengthJudge(), reference.eval(), NEW_TOKENS, 1.0, tokenizer, 0)

    def work() -> list[dict[str, float]]:
        objective = functools.partial(group_objective, config=config)
        result = train("grpo", model, objective, source(sampler, questions, config), RL_STEPS, config,
                       _new(folder))  # fmt: skip
        return result.metrics

    samples = RL_STEPS * PROMPTS * GROUP
    lengths = [len(q.ids) + NEW_TOKENS for q in questions[: RL_STEPS * PROMPTS]]
    tokens = GROUP * sum(lengths)
    return _measured(
        work, samples, training_flops(model, tokens, GROUP * sum(n * n for n in lengths))
    )


def _arguments(folder: Path, batch: int, rate: float) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "trl"), "per_device_train_batch_size": batch, "report_to": "none",
        "use_cpu": True, "bf16": best_precision().autocast_dtype is not None, "num_train_epochs": 1,
        "gradient_checkpointing": False, "save_strategy": "no", "logging_steps": 1, "learning_rate": rate,
        "lr_scheduler_type": "cosine", "warmup_steps": 10, "max_grad_norm": 1.0, "adam_beta2": 0.95,
        "optim": "adamw_torch_fused", "disable_tqdm": True, "seed": 0, "dataloader_drop_last": True,
    }  # fmt: skip


def _run_trl(trainer: Any, done: float) -> Found:
    def work() -> list[dict[str, float]]:
        trainer.train()
        return [entry for entry in trainer.state.log_history if "loss" in entry]

    return _measured(work, done)


def _their_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)


def trl_sft(folder: Path) -> Found:
    import datasets
    from trl import SFTConfig, SFTTrainer

    data = [
        {"input_ids": ids, "labels": [i if m else -100 for i, m in zip(ids, mask, strict=True)]}
        for ids, mask in _data(folder)
    ]
    config = SFTConfig(**_arguments(folder, ROWS, 1e-3), packing=True, max_length=ROW)
    trainer = SFTTrainer(
        _their_model(folder),
        config,
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=as_hugging_face(load_tokenizer(folder / "model")),
    )
    rows = len(trainer.train_dataset)
    tokens = sum(len(r["input_ids"]) for r in data) * (rows // ROWS * ROWS) / rows
    return _run_trl(trainer, tokens)


def trl_dpo(folder: Path) -> Found:
    import datasets
    from trl import DPOConfig, DPOTrainer

    data = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in _data(folder)]
    text = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * len(data))
    config = DPOConfig(**_arguments(folder, PAIRS, 1e-4), beta=0.1, max_length=PAIR_LENGTH)
    trainer = DPOTrainer(
        _their_model(folder), _their_model(folder), config, train_dataset=text,
        processing_class=as_hugging_face(load_tokenizer(folder / "model")),
    )  # fmt: skip
    trainer.train_dataset = datasets.Dataset.from_list(data)  # the very tokens, not their text
    return _run_trl(trainer, sum(len(p) * 2 + len(c) + len(r) for p, c, r in _data(folder)))


def trl_reward(folder: Path) -> Found:
    import datasets
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig as TheirConfig
    from trl import RewardTrainer

    data = [{"chosen_ids": p + c, "rejected_ids": p + r} for p, c, r in _data(folder)]
    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "model", dtype=torch.float32, num_labels=1
    )
    trainer = RewardTrainer(
        model,
        TheirConfig(**_arguments(folder, PAIRS, 1e-4), max_length=PAIR_LENGTH),
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=as_hugging_face(load_tokenizer(folder / "model")),
    )
    return _run_trl(trainer, sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in data))


def trl_grpo(folder: Path) -> Found:
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = as_hugging_face(load_tokenizer(folder / "model"))
    tokenizer.padding_side = "left"
    prompts = [
        {"prompt": tokenizer.decode(p, skip_special_tokens=False)} for p, _, _ in _data(folder)
    ]
    arguments = _arguments(folder, PROMPTS * GROUP, 1e-5) | {"max_steps": RL_STEPS}
    config = GRPOConfig(
        **arguments, num_generations=GROUP, max_completion_length=NEW_TOKENS, beta=0.04,
        temperature=1.0, scale_rewards="none",
    )  # fmt: skip
    trainer = GRPOTrainer(
        _their_model(folder),
        lambda completion_ids, **_: [float(len(set(ids))) for ids in completion_ids],
        config,
        train_dataset=datasets.Dataset.from_list(prompts),
        processing_class=tokenizer,
    )
    return _run_trl(trainer, RL_STEPS * PROMPTS * GROUP)


OURS = {"sft": ours_sft, "dpo": ours_dpo, "reward": ours_reward, "grpo": ours_grpo}
TRL = {"sft": trl_sft, "dpo": trl_dpo, "reward": trl_reward, "grpo": trl_grpo}

if __name__ == "__main__":
    print(f"torch {torch.__version__}")
    sys.exit(main())
