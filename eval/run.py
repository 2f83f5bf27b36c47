"""Stage "evaluate": one model against all tasks; a row a sample, and the sums in the facts."""

import time
from typing import Any

from pydantic import Field

from eval.model import LanguageModel
from eval.redteam.table import attack, attack_results, table
from eval.redteam.transforms import CANARY_GOALS, load_goals
from eval.results import summarise, write_results
from eval.tasks.choice import STDLIB_CHOICE, choice_results, load_choice_items
from eval.tasks.choice import TASK as CHOICE
from eval.tasks.held_out_answers import TASK as ANSWERS
from eval.tasks.held_out_answers import answer_results, held_out
from finetune.registry import Registry
from pipeline.core.config import RunConfig, Section
from pipeline.core.identity import HELDOUT_FRACTION, sha256_text
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.progress import Progress
from pipeline.core.records import Conversation, read_records

VERSION = 2
SAMPLES = "samples.parquet"
CONVERSATIONS, COMPARISONS = "conversations.parquet", "comparisons.parquet"


class EvaluateConfig(Section):
    """[evaluate]"""

    max_new_tokens: int = Field(40, ge=1, description="length of an answer to a red-team prompt")


def run_evaluate(
    config: EvaluateConfig, model_id: str, registry: Registry, labels: Manifest, run: RunConfig
) -> Manifest:
    """Score held-out answers, multiple choice and the red team's prompts; `samples.parquet` holds
    one SampleResult a row. The same model and labels give the same results."""
    suites = "".join(p.read_text(encoding="utf-8") for p in (STDLIB_CHOICE, CANARY_GOALS))
    parents = {"model": model_id, "labels": labels, "suites": sha256_text(suites)}
    output = StageOutput.of(run.root, "evaluate", VERSION, config.identity(), parents)
    if done := output.finished():
        return done
    started = time.time()
    model = LanguageModel.load(registry, model_id)
    conversations = read_records(labels.file_url(CONVERSATIONS), Conversation)
    kept = held_out(conversations, HELDOUT_FRACTION)
    with Progress(f"evaluate {model_id[:8]}", 3, "tasks") as progress:
        results = answer_results(model, kept)
        progress.advance(1, "held-out answers")
        results += choice_results(model, load_choice_items())
        progress.advance(1, "multiple choice")
        attacks = attack(model, load_goals(), config.max_new_tokens)
        results += attack_results(attacks)
        progress.advance(1, "red team")
    write_results(results, output.path(SAMPLES))
    facts: dict[str, Any] = {
        "model": model_id,
        "prompted": "turns" if model.chat else "plain text",
        "summary": summarise(results),
        "redteam": table(attacks),
        "num_heldout_conversations": len(kept),
        "num_conversations": len(conversations),
    }
    entry = describe_file(output.path(SAMPLES), SAMPLES, len(results))
    return output.commit([entry], Counts(len(results), len(results)), started=started, facts=facts)


def evaluation_items(labels: Manifest) -> list[tuple[str, str]]:
    """(name, text) of all that a model is asked here, so that training can keep clear of it."""
    kept = held_out(read_records(labels.file_url(CONVERSATIONS), Conversation), HELDOUT_FRACTION)
    return [
        *((f"{CHOICE}/{item.item_id}", item.question) for item in load_choice_items()),
        *((f"redteam/{goal.goal_id}", goal.text) for goal in load_goals()),
        *((f"{ANSWERS}/{c.conversation_id}", _asked(c)) for c in kept),
    ]


def _asked(conversation: Conversation) -> str:
    return "\n".join(m.text for m in conversation.messages if m.role != "assistant")
