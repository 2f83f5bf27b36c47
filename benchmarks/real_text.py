"""Real text and real labels: books beside compressors, SFT on three sets, a reward model on HH.

    python benchmarks/real_text.py             # about twenty minutes on two cores
    python benchmarks/real_text.py --tiny      # a minute; records nothing

A base model is pretrained on books of FLYWHEEL_DATA. Dolly, GSM8K and OpenAssistant's trees come in
through the label store, are exported and finetuned on, each from that base. The
first 3,000 records of each. Interrupted, the same command goes on (--root).
"""

import argparse
import gzip
import json
import lzma
import os
import re
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import zstandard

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from rows import record_table
from scaling import book_shards

from eval.stats import wilson
from finetune.labels import chat_segment, conversations
from finetune.metrics import METRICS, read_rows
from finetune.model import ModelConfig
from finetune.packing import Segment, pack_best_fit
from finetune.pretrain import PretrainConfig, run_pretrain
from finetune.reward import PAIRS, RewardConfig, run_reward
from finetune.sft import SftConfig, run_sft
from finetune.tokenizer import TokenizerConfig, document_texts, load_tokenizer, run_tokenizer
from labeling_app.export import run_labels
from labeling_app.imports import import_labels
from labeling_app.store import LabelsConfig, open_store
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest

DATA = Path(__file__).resolve().parents[1] / os.environ.get("FLYWHEEL_DATA", "../shared/data")
SETS = {
    "dolly": ("sft/dolly-3k", "dolly_3k.json"),
    "gsm8k": ("sft/gsm8k", "train.jsonl"),
    "oasst": ("sft/oasst-trees", "en_trees.jsonl"),
    "hh": ("preferences/hh-rlhf-harmless-test", "test.jsonl.gz"),
}
ROWS = (512, 1024, 2048)  # packed rows whose efficiency is told
_TURN = re.compile(r"\n\n(Human|Assistant): ")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", default="data/bench-real", help="where the runs are kept")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    tiny: bool = options.tiny
    run = RunConfig(root=options.root)
    shards = book_shards(run.root, (1 if tiny else 24) * 1_000_000, 30_000 if tiny else 600_000)
    words = run_tokenizer(TokenizerConfig(vocab_size=512 if tiny else 4096), shards, run)
    shape = ModelConfig(depth=1 if tiny else 4, max_length=512)
    pretrain = PretrainConfig(num_tokens=20_000 if tiny else 1_500_000, row_length=256,
                              evaluate_every=10**9, evaluate_bytes=600_000)  # fmt: skip
    base = run_pretrain(pretrain, shape, shards, words, run)
    parts = [books_table(base, shards)]
    labels = {name: read_set(name, run, 60 if tiny else 3_000) for name in SETS}
    base_id = base.facts["model_id"]
    parts.append(sft_table({k: v for k, v in labels.items() if k != "hh"}, base_id, words, run))
    parts.append(reward_table(labels["hh"], base_id, run, tiny))
    text = "\n\n".join(parts)
    print(text)
    if not tiny:
        record_table("real-text", "Real text and real labels", text)
    return 0


def books_table(base: Manifest, shards: Manifest) -> str:
    """Bits per byte of held-out books: the model's, and compressors'."""
    held = "".join(document_texts(shards, "heldout")).encode()
    read = "".join(document_texts(shards, "train")).encode()
    packed: dict[str, Callable[[bytes], int]] = {
        "zlib -9": lambda data: len(zlib.compress(data, 9)),
        "xz -9e": lambda data: len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        "zstd -19": lambda data: len(zstandard.ZstdCompressor(level=19).compress(data)),
    }
    rows = [(name, 8 * size(held) / len(held)) for name, size in packed.items()]
    xz = packed["xz -9e"]
    primed = 8 * (xz(read + held) - xz(read)) / len(held)
    rows.append(("xz -9e that has read the training text", primed))
    measured = [row["heldout_bits_per_byte"] for row in _measured(base, "heldout_bits_per_byte")]
    size, tokens = base.facts["num_parameters"], base.facts["num_tokens"]
    rows.append((f"the model, {size:,} parameters, {tokens:,} tokens", measured[-1]))
    head = f"Held-out books, {len(held):,} bytes, of which nothing was trained on:"
    return "\n".join([head, "", "| by | bits per byte |", "| --- | --- |",
                      *(f"| {name} | {value:.3f} |" for name, value in rows)])  # fmt: skip


def _measured(manifest: Manifest, key: str) -> list[dict[str, float]]:
    rows = read_rows(Path(manifest.file_url(METRICS)))
    return [row for row in rows if key in row]


def sft_table(labels: dict[str, Manifest], base_id: str, words: Manifest, run: RunConfig) -> str:
    tokenizer = load_tokenizer(words.url)
    heads = ["SFT on", "conversations", "held-out bits per byte, before", "after"]
    heads += [f"packed into {size}" for size in ROWS]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, snapshot in labels.items():
        config = SftConfig(epochs=1, batch_rows=8, micro_batch_rows=8, learning_rate=1e-3)
        found = _measured(run_sft(config, base_id, snapshot, run), "heldout_bits_per_byte")
        curve = [f"{row['heldout_bits_per_byte']:.3f}" for row in found] or ["none held out"]
        train = conversations(snapshot, heldout=False)
        segments = [chat_segment(tokenizer, c.messages) for c in train]
        packed = " | ".join(f"{efficiency(segments, size):.2%}" for size in ROWS)
        lines.append(f"| {name} | {len(train):,} | {curve[0]} | {curve[-1]} | {packed} |")
    return "\n".join(lines)


def efficiency(segments: list[Segment], row_length: int) -> float:
    """The share of a packed batch that is not padding; what is longer than a row is left out."""
    rows, _ = pack_best_fit(segments, row_length, 0)
    return sum(len(s.ids) for s in segments if len(s.ids) <= row_length) / rows.ids_BT.numel()


def reward_table(labels: Manifest, base_id: str, run: RunConfig, tiny: bool) -> str:
    """Each pair judged by a model that saw none of its prompt (two folds)."""
    config = RewardConfig(epochs=1, folds=2, max_length=128 if tiny else 256, loss="pairwise")
    reward = run_reward(config, base_id, labels, run)
    pairs = json.loads(Path(reward.file_url(PAIRS)).read_text())
    lines = ["| HH harmless, held-out pairs | right | 95% interval |", "| --- | --- | --- |"]
    for key, said in (("model", "the reward model"), ("length", "by length alone")):
        right = sum(pair[key] for pair in pairs)
        low, high = wilson(right, len(pairs))
        lines.append(
            f"| {said}, {len(pairs):,} | {right / len(pairs):.3f} | {low:.3f} to {high:.3f} |"
        )
    error, dropped = reward.facts["calibration"]["error"], reward.counts.dropped
    return "\n".join([*lines, "", f"Calibration error {error:.3f}; left out: {dropped or 'none'}."])


def read_set(name: str, run: RunConfig, limit: int) -> Manifest:
    """The set as a snapshot of labels: written as label lines, imported, exported."""
    folder = Path(run.root) / "sets"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.jsonl"
    lines = [line for line, _ in zip(_lines(name), range(limit), strict=False)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = open_store(str(folder / f"{name}.db"))
    report = import_labels(store, [file], keep_good=True)
    refused = sum(len(f.refused) for f in report.files)
    print(f"{name}: {len(lines):,} lines, {refused:,} refused", flush=True)
    return run_labels(LabelsConfig(), store, run)


def _lines(name: str) -> Iterator[dict[str, Any]]:
    raw = _raw(*SETS[name])
    if name == "dolly":
        for row in json.loads(raw):
            asked = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
            yield _said(asked, row["output"])
    elif name == "gsm8k":
        for row in map(json.loads, raw.splitlines()):
            yield _said(row["question"], row["answer"])
    elif name == "oasst":
        yield from map(json.loads, raw.splitlines())
    else:
        for row in map(json.loads, gzip.decompress(raw).splitlines()):
            better, worse = (_turns(row[side]) for side in ("chosen", "rejected"))
            if better[:-1] == worse[:-1] and better[-1] != worse[-1]:
                answers = [turns[-1]["content"] for turns in (better, worse)]
                yield {"prompt": better[:-1], "responses": answers, "ranks": [1, 2]}


def _said(question: str, answer: str) -> dict[str, Any]:
    turns = [("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def _turns(transcript: str) -> list[dict[str, str]]:
    _, *parts = _TURN.split(transcript)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": text.strip()}
            for who, text in zip(parts[::2], parts[1::2], strict=True)]  # fmt: skip


def _raw(name: str, wanted: str) -> bytes:
    with tarfile.open(DATA / f"{name}.tar.xz") as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith(wanted))
        file = tar.extractfile(member)
        if file is None:
            raise UserError(f"{wanted} of {name}.tar.xz is not a file")
        return file.read()


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("THREADS", os.cpu_count() or 1)))
    sys.exit(main())
