"""Rejection sampling: the best of n answers under the reward model, as demonstrations for SFT
(Touvron et al. 2023, section 3.2.3). The cheapest road to most of what RL gains.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from tokenizers import Tokenizer

from finetune.engines import Engine, TorchEngine
from finetune.generate import Completion, Sampling
from finetune.kv_cache import context_length
from finetune.labels import asked_prompts
from finetune.loop import LoopConfig, precision_of
from finetune.model import load_language_model, place
from finetune.registry import Registry
from finetune.rollouts import Judge, Question, model_judge, questions_of, with_room
from finetune.stage import say_left_out
from finetune.tokenizer import TURN_END, load_tokenizer, token_id
from pipeline.core import storage
from pipeline.core.config import RunConfig, Section, operational
from pipeline.core.errors import UserError
from pipeline.core.identity import HELDOUT_FRACTION, is_heldout, split_id
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file, is_planning
from pipeline.core.progress import Progress
from pipeline.core.records import Conversation, Message, read_records, to_table, write_table

VERSION = 2
_ROWS_AT_ONCE = 128
_PART = re.compile(r"best-\d{9}\.json")  # of the prompts from this one on: what a kill leaves done

log = logging.getLogger(__name__)


class RejectionConfig(Section):
    """[rejection]"""

    samples: int = Field(8, ge=2, description="answers to each prompt; the best one stays")
    max_new_tokens: int = Field(64, ge=1, description="of an answer; a cut-off one never stays")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    seed: int = Field(0, description="of sampling")
    device: str = operational("auto", description="auto: a GPU if there is one")


def run_rejection(
    config: RejectionConfig, sft_id: str, reward_id: str, labels: Manifest, run: RunConfig
) -> Manifest:
    """A label snapshot for `run_sft`: the best answers to the training prompts, and the people's
    own demonstrations of the held-out ones, to be measured by."""
    parents = {"labels": labels, "reward": reward_id, "sft": sft_id}
    output = StageOutput.of(run.root, "rejection", VERSION, config.identity(), parents)
    if done := output.finished():
        _sweep(output)
        return done
    started = time.time()
    registry = Registry(run.root)
    tokenizer = load_tokenizer(registry.verified(sft_id))
    precision = precision_of(LoopConfig.model_validate({"device": config.device}))
    with output.lock():
        judge = model_judge(registry, reward_id, tokenizer, 0.0, precision.device)
        model = place(load_language_model(registry.verified(sft_id)), precision.device).eval()
        ranked = asked_prompts(labels, heldout=False)
        asked = questions_of(tokenizer, labels, heldout=False, with_reference=False)
        questions, dropped = with_room(asked, context := context_length(model.config))
        fitting = [r for r, q in zip(ranked, asked, strict=True) if len(q.ids) < context]
        folder = storage.local_path(output.url)
        engine = TorchEngine(model, precision)
        with precision.autocast():
            best = best_of_n(engine, questions, judge, tokenizer, config, folder)
        people = read_records(labels.file_url("conversations.parquet"), Conversation)
        newest = max((c.created_at for c in people), default=None)
        if newest is None:
            raise UserError(f"{labels.url} has no demonstration to measure by; write some answers")
        made = [
            Conversation(
                conversation_id=f"best-{entry.prompt_id}",
                prompt_id=entry.prompt_id,
                messages=(*entry.prompt, Message.of("assistant", text)),
                source="rejection-sampling",
                origin="model",
                labeler="",
                instruction_version=0,
                created_at=newest,
            )
            for entry, text in zip(fitting, best, strict=True)
            if text is not None
        ]
        if not made:
            raise UserError(
                f"no sampled answer came to an end in rejection.max_new_tokens ="
                f" {config.max_new_tokens}; raise it, or finetune the model longer"
            )
        kept = [c for c in people if is_heldout(split_id(c.messages), HELDOUT_FRACTION)]
        name = "conversations.parquet"
        write_table(to_table([*made, *kept], Conversation), output.path(name))
    entry = describe_file(output.path(name), name, len(made) + len(kept))
    lost = len(fitting) - len(made)
    counts = Counts(len(ranked), len(made), dropped | ({"none-finished": lost} if lost else {}))
    say_left_out("rejection", counts)
    manifest = output.commit([entry], counts, started=started)
    _sweep(output)
    return manifest


def _sweep(output: StageOutput) -> None:
    if storage.is_local(output.url) and not is_planning():
        for path in storage.local_path(output.url).glob("best-*.json"):
            if _PART.fullmatch(path.name):
                path.unlink()


def best_of_n(
    engine: Engine,
    questions: Sequence[Question],
    judge: Judge,
    tokenizer: Tokenizer,
    config: RejectionConfig,
    folder: Path,
) -> list[str | None]:
    """The text of the finished answer that the judge likes most, or None where none came to its
    end with a text; a tie goes to the first one sampled. What is done is kept in `folder`, and a
    rerun goes on from it."""
    stops = (token_id(tokenizer, TURN_END),)
    sampling = Sampling(config.max_new_tokens, config.temperature, stop_ids=stops)
    at_once = max(1, _ROWS_AT_ONCE // config.samples)
    best: list[str | None] = []
    with Progress("rejection", len(questions), "prompts") as progress:
        for at in range(0, len(questions), at_once):
            some, part = questions[at : at + at_once], folder / f"best-{at:09}.json"
            if (found := _read_part(part, some)) is not None:
                best += found
                progress.skip(len(some))
                continue
            several = [q for q in some for _ in range(config.samples)]
            seed = config.seed * 1_000_003 + at
            completions = engine.generate([q.ids for q in several], sampling, seed)
            rewards = judge.rewards(several, completions).tolist()
            found = list[str | None]()
            for start in range(0, len(several), config.samples):
                group = range(start, start + config.samples)
                texts = {i: _text(tokenizer, completions[i]) for i in group}
                ended = [i for i in group if completions[i].finished and texts[i].strip()]
                top = max(ended, key=lambda i: rewards[i], default=None)
                found.append(None if top is None else texts[top])
            content = {"best": found, "sha256": _digest(some, found)}
            storage.write_bytes(str(part), json.dumps(content).encode())
            best += found
            progress.advance(len(some))
    return best


def _read_part(path: Path, questions: Sequence[Question]) -> list[str | None] | None:
    """What an earlier run found for these prompts, or None; what is damaged is said, and found
    anew."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        if content["sha256"] == _digest(questions, content["best"]):
            return content["best"]
        why = "it is not what was written for these prompts"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = repr(error)[:200]
    log.warning("%s is damaged (%s); its prompts are answered anew", path, why)
    return None


def _digest(questions: Sequence[Question], best: Sequence[str | None]) -> str:
    content = [[question.prompt_id for question in questions], best]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _text(tokenizer: Tokenizer, completion: Completion) -> str:
    return tokenizer.decode(list(completion.ids[:-1]), skip_special_tokens=True)
