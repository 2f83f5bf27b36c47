"""Hand-made outputs of every stage of a turn, for what only reads them."""

import dataclasses
import datetime as dt
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.compression import CompressionConfig
from eval.gate import GateConfig, run_gate
from eval.redteam.transforms import TRANSFORMS
from eval.results import SampleResult, summarise, write_results
from eval.win_rate import compare
from finetune.registry import Registry
from infra import corpus, weekly
from infra.base import run_base
from infra.settings import SECTIONS
from pipeline.core.config import Config, load_config
from pipeline.core.identity import is_heldout, prompt_id
from pipeline.core.manifest import (
    Counts,
    Manifest,
    WouldRun,
    describe_file,
    planning,
    read_manifest,
)
from pipeline.core.records import (
    Comparison,
    Conversation,
    Message,
    RankedResponse,
    to_table,
    write_table,
)

REPOSITORY = Path(__file__).resolve().parents[2]
WHEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
BASE, SFT, REWARD, DPO, GRPO = (digit * 64 for digit in "abcde")
DREAM = "Return the smallest item of the heap, or raise IndexError if the heap is empty. "
REASONS = {"bullet-lines": 6, "few-stop-words": 6, "language": 2, "language-score": 11}
REASONS |= {"long-words": 5, "not-alphabetic": 7, "too-few-words": 13, "too-many-words": 1}
# Per transform: canary good, bad, unclear; benign good, bad, unclear. First the champion's.
GRADES = (
    [(0, 4 + i % 3, 6 - i % 3, 5 - i % 4, 0, 5 + i % 4) for i in range(len(TRANSFORMS))],
    [(8 - i % 5, i % 3, 2 + i % 5 - i % 3, 9 - i % 4, 1, i % 4) for i in range(len(TRANSFORMS))],
)
QUESTIONS = [
    json.loads(line)["question"]
    for path in sorted((REPOSITORY / "infra" / "demo_labels").glob("questions-*.jsonl"))
    for line in path.read_text(encoding="utf-8").splitlines()
]


@dataclasses.dataclass
class Build:
    """Writes what a stage would have written, where the report will look for it."""

    root: Path
    dreams: list[str] = dataclasses.field(
        default_factory=lambda: [DREAM * (2 + i) for i in range(6)]
    )
    answer: str = "Call heapq.heappush(heap, item): the list stays a heap, and no copy is made."
    question: str = ""
    num_people: int = 0  # the first so many rankings are people's, the others simulated
    reasons: dict[str, int] = dataclasses.field(default_factory=lambda: dict(REASONS))
    num_steps: int = 196
    num_answers: int = 30
    token: str = " the"
    commit: str = "0123456789ab"
    seed: int = 7
    made: dict[str, list[Manifest]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        overrides = [f"run.root={self.root}", "run.backend=local", "run.workers=1"]
        path = REPOSITORY / "infra" / "runs" / "demo.toml"
        self.config: Config = load_config(path, overrides, tuple(SECTIONS))

    def write(self, stage: str, url: str, **fields: Any) -> Manifest:
        """A manifest, and files that are there already, under the key that was asked for."""
        folder = Path(url)
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in folder.iterdir())
        defaults = {"version": 1, "config": {}, "parents": {}, "counts": Counts(0, 0), "facts": {}}
        manifest = Manifest(
            **{**defaults, **fields},
            stage=stage,
            key=folder.name,
            files=tuple(describe_file(str(folder / name), name) for name in names),
            record=None,
            run={"started": 1.0, "seconds": 12.5, "host": "here", "commit": self.commit},
            url=url,
        )
        body = {
            "content": manifest.content,
            "content_hash": manifest.content_hash,
            "run": manifest.run,
        }
        (folder / "manifest.json").write_text(json.dumps(body), encoding="utf-8")
        found = read_manifest(url)
        self.made.setdefault(stage, []).append(found)
        return found

    def complete(self, look: Callable[[Config], object]) -> None:
        """Make whatever stage is the next that is not done, until none is left."""
        while True:
            try:
                with planning():
                    look(self.config)
                return
            except WouldRun as left:
                folder = Path(left.url)
                folder.mkdir(parents=True)
                fields = getattr(self, left.stage)(folder)
                if fields is not None:
                    self.write(left.stage, left.url, **fields)

    def whole(self) -> "Build":
        self.through_base()
        self.registry_of_a_week()
        self.complete(weekly.finished_week)
        registry = Registry(str(self.root), lambda: WHEN)
        registry.promote(GRPO, f"gate: {self.answer[:20]}")
        return self

    def through_corpus(self) -> "Build":
        self.complete(corpus.run_corpus)
        return self

    def through_base(self) -> "Build":
        self.through_corpus()
        if (self.root / "models").exists():
            return self
        self.publish(BASE, {"kind": "base"})
        Registry(str(self.root), lambda: WHEN).promote(BASE, "the first champion")
        self.complete(run_base)
        return self

    def publish(self, identity: str, lineage: dict[str, Any]) -> None:
        folder = self.root / "models" / identity
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        (folder / "lineage.json").write_text(json.dumps(lineage))

    def registry_of_a_week(self) -> None:
        """The label snapshot, and a challenger whose lineage names it."""
        folder = self.root / "labels" / ("f" * 64)
        folder.mkdir(parents=True)
        self.comparisons = [self.comparison(i) for i in range(8 * self.num_answers)]
        write_table(to_table(self.comparisons, Comparison), str(folder / "comparisons.parquet"))
        write_table(to_table([], Conversation), str(folder / "conversations.parquet"))
        labels = self.write("labels", str(folder))
        self.heldout = sorted(
            {c.prompt_id for c in self.comparisons if is_heldout(c.prompt_id, 0.2)}
        )
        self.publish(GRPO, {"kind": "grpo", "parents": {"labels": labels.content_hash}})
        Registry(str(self.root), lambda: WHEN).point("challenger", GRPO, "gate: promote")

    def comparison(self, number: int) -> Comparison:
        asked = f"{self.question} {number}" if self.question else QUESTIONS[number % len(QUESTIONS)]
        prompt = (Message.of("user", asked),)
        responses = tuple(RankedResponse(f"{number}-{k}", "x", "text", k + 1) for k in range(3))
        who = f"{'person' if number < self.num_people else 'simulated'}-0123456789abcdef"
        return Comparison(
            f"k{number}", prompt_id(prompt), prompt, responses, (0, 1, 2), False, None, who, 1, WHEN
        )

    def crawl(self, _: Path) -> dict[str, Any]:
        fetched = 330 + sum(self.reasons.values())
        return {"counts": Counts(fetched + 2, fetched, {"robots": 2})}

    def extract(self, _: Path) -> dict[str, Any]:
        read = 328 + sum(self.reasons.values())
        return {"counts": Counts(read + 2, read, {"content-type": 1}, {"status-404": 1})}

    def quality(self, _: Path) -> dict[str, Any]:
        return {"counts": Counts(328 + sum(self.reasons.values()), 328, self.reasons)}

    def dedupe(self, _: Path) -> dict[str, Any]:
        lines = {"removed_lines": 7, "removed_line_chars": 210}
        return {"counts": Counts(328, 326, {"near-duplicate": 2}), "facts": lines}

    def shard(self, _: Path) -> dict[str, Any]:
        sizes = {"train": {"docs": 311, "bytes": 4637952}, "heldout": {"docs": 15, "bytes": 203081}}
        return {"counts": Counts(381, 326, {"all": 55}), "facts": sizes}

    def describe(self, _: Path) -> dict[str, Any]:
        return {"counts": Counts(381, 381)}

    def tokenizer(self, _: Path) -> dict[str, Any]:
        return {"counts": Counts(311, 311), "facts": {"vocab_size": 4096}}

    def metrics(
        self, folder: Path, steps: int, every: int = 50, **levels: tuple[float, float]
    ) -> None:
        """Noisy curves from the first level to the second; `heldout…` ones now and then."""
        rows = []
        for step in range(1, steps + 1):
            done = 1 - math.exp(-4 * step / steps)
            row: dict[str, float] = {"step": step}
            for name, (start, end) in levels.items():
                rare = name.startswith("heldout")
                if not rare or step % every == 0 or step in (1, steps):
                    noise = 0 if rare else self.random.normal(0, abs(end - start) * 0.03)
                    row[name] = start + (end - start) * done + noise
            rows.append(json.dumps(row))
        (folder / "metrics.jsonl").write_text("\n".join(rows), encoding="utf-8")

    def pretrain(self, folder: Path) -> dict[str, Any]:
        self.metrics(folder, self.num_steps, loss=(8.4, 3.1), heldout_bits_per_byte=(3.76, 1.4))
        return {"facts": {"model_id": BASE}}

    def compression(self, _: Path) -> dict[str, Any]:
        words = ["<|bos|>", "Push", self.token, " item", " onto", self.token, " heap", ",", " it"]
        guessed = [self.token, " a", " heap", " item", ",", " it", " onto"]
        rows = [
            {
                "token": token,
                "likeliest": [[guessed[(i + k) % 7], 0.5 / (k + 1.2)] for k in range(5)],
            }
            for i, token in enumerate(words)
        ]
        bits = {"model": 1.402113, "zlib -9": 2.641, "xz -9e": 2.708, "zstd -19": 2.66}
        bits |= {"xz -9e, primed": 1.352, "zstd -19, primed": 1.49, "uniform": 8.0}
        facts = {"num_documents": 15, "heldout_bytes": 203081, "priming_bytes": 4637952}
        facts |= {"num_parameters": 4200000, "parameter_bytes_16bit": 8400000}
        facts |= {"bits_per_byte": bits, "sentence": "".join(words[1:]), "next_words": rows}
        facts |= {"dreams": self.dreams}
        return {"facts": facts, "config": CompressionConfig().identity()}

    def hygiene(self, folder: Path) -> dict[str, Any]:
        (folder / "findings.json").write_text("[]")
        facts = {"records": 248, "labelers": 2, "evaluation_items": 9}
        return {"facts": {**facts, "counts": {"contradiction": 3, "refusal": 1}, "blocked": []}}

    def sft(self, folder: Path) -> dict[str, Any]:
        self.publish(SFT, {"kind": "sft"})
        self.metrics(folder, 60, 12, loss=(3.2, 1.6), heldout_bits_per_byte=(2.1, 1.3))
        return {"facts": {"model_id": SFT}}

    def reward(self, folder: Path) -> dict[str, Any]:
        self.publish(REWARD, {"kind": "reward"})
        self.metrics(folder, 40, loss=(0.69, 0.42))
        draw = self.random.random
        self.pairs = [
            {
                "prompt_id": f"p{number % 40}",
                "fold": number % 40 % 5,
                "model": float(draw() < 0.74),
                "length": 0.5 if number % 9 == 0 else float(draw() < 0.5),
            }
            for number in range(240)
        ]
        (folder / "crossvalidated-pairs.json").write_text(json.dumps(self.pairs))
        return {"facts": {"model_id": REWARD}}

    def dpo(self, folder: Path) -> dict[str, Any]:
        self.publish(DPO, {"kind": "dpo"})
        self.metrics(folder, 50, 12, loss=(0.69, 0.5), margin=(0, 8), heldout_margin=(0, 0.6))
        asked = [c for c in self.comparisons if c.prompt_id in self.heldout]
        margins = [round(float(self.random.normal(6, 5)), 5) for _ in range(3 * len(asked))]
        prompts = [c.prompt_id for c in asked for _ in range(3)]
        facts = {"model_id": DPO, "heldout_margins": margins, "heldout_prompts": prompts}
        return {"facts": facts, "config": {"beta": 0.1}}

    def grpo(self, folder: Path) -> dict[str, Any]:
        self.metrics(folder, 24, reward=(0.2, 1.1), kl=(0.0, 6.5))
        self.rewards = [
            {
                "sft": s,
                "best_of_n": s + 0.9,
                "grpo": s + 0.5 + 0.1 * (i % 5),
                "kl": 6.0 + i % 2,
                "prompt_id": f"p{i}",
            }
            for i, s in enumerate(self.random.normal(0.2, 0.5, self.num_answers).tolist())
        ]
        (folder / "heldout-rewards.json").write_text(json.dumps(self.rewards))
        return {"facts": {"model_id": GRPO}, "config": {"best_of": 8, "max_kl": 20.0}}

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """The base model comes first, which is the champion, then SFT, then the challenger."""
        number_before = len(self.made.get("evaluate", []))
        late = number_before > 0
        level = (1.9, 1.4, 1.3)[number_before]
        results: list[SampleResult] = []
        for number in range(30):
            noise = self.random.normal(0, 0.05)
            one = SampleResult(
                "held_out_answers", f"i{number}", f"p{number}", "bits_per_byte", level + noise, ""
            )
            right = dataclasses.replace(
                one, task="stdlib_choice", metric="probability_norm_bytes", value=0.3 + noise
            )
            bad = dataclasses.replace(
                one,
                task="redteam_canary",
                metric="bad",
                value=float(number % (7 if late else 3) == 0),
            )
            results += [one, right, bad]
        write_results(results, str(folder / "samples.parquet"))
        columns = [f"{k}_{g}" for k in ("canary", "benign") for g in ("good", "bad", "unclear")]
        table = [
            {"transform": t.name, **dict(zip(columns, grades, strict=True))}
            for t, grades in zip(TRANSFORMS, GRADES[late], strict=True)
        ]
        identity = (BASE, SFT, GRPO)[number_before]
        parents = {"model": identity, "labels": "l", "suites": "s"}
        prompted = "turns" if late else "plain text"
        facts = {"model": identity, "prompted": prompted, "redteam": table}
        facts["summary"] = summarise(results)
        return {"parents": parents, "facts": facts}

    def win_rate(self, _: Path) -> dict[str, Any]:
        ids = self.heldout[: self.num_answers]
        old = [(f"{DREAM[i % 40 :]} {DREAM}", -0.4 + 0.03 * i) for i in range(len(ids))]
        new = [(self.answer, 0.6 - 0.02 * i) for i in range(len(ids))]
        facts = compare(ids, old, new)
        return {"facts": {"champion": BASE, "challenger": GRPO, "reward": REWARD, **facts}}

    def gate(self, _: Path) -> None:
        """The real gate, on the two evaluations; it writes its own manifest."""
        gate = run_gate(
            self.config.section("gate", GateConfig),
            self.made["evaluate"][0],
            self.made["evaluate"][2],
            self.made["win_rate"][0].facts,
            self.config.run,
        )
        self.made["gate"] = [gate]


@pytest.fixture(scope="session")
def build() -> type[Build]:
    """The builder of a turn's outputs under a root; a fixture, as test folders are no packages."""
    return Build
