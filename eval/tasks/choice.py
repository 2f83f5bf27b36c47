"""Multiple choice without letters: the model prefers the choice it finds likelier per byte.

The normalisation is in the metrics' names, since lm-eval's `acc` and `acc_norm` differ by it.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from eval.model import LanguageModel
from eval.results import SampleResult
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json
from pipeline.core.records import Message

TASK = "stdlib_choice"
ACCURACY, PROBABILITY = "accuracy_norm_bytes", "probability_norm_bytes"
STDLIB_CHOICE = Path(__file__).parent.parent / "data" / "stdlib_choice.jsonl"


@dataclasses.dataclass(frozen=True)
class ChoiceItem:
    """`answer` is the index of the right choice."""

    item_id: str
    question: str
    choices: tuple[str, ...]
    answer: int


def load_choice_items(path: Path = STDLIB_CHOICE) -> list[ChoiceItem]:
    """One JSON object a line. Raises UserError naming the line that is not an item."""
    items: list[ChoiceItem] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            choices = tuple(map(str, row["choices"]))
            item = ChoiceItem(str(row["id"]), str(row["question"]), choices, int(row["answer"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number} is not a multiple-choice item: {error!r}") from None
        if not (0 <= item.answer < len(choices) and all(choices)):
            raise UserError(f"{path}:{number}: answer {item.answer} of {len(choices)} choices")
        items.append(item)
    return items


def choice_results(model: LanguageModel, items: Sequence[ChoiceItem]) -> list[SampleResult]:
    """Two metrics an item: accuracy (a tie of m choices with the right one is 1/m), and the
    probability of the right choice, softmax over nats per byte: smooth, so it pairs well."""
    pairs = [((Message.of("user", item.question),), c) for item in items for c in item.choices]
    scores = iter(model.loglikelihood(pairs))
    results: list[SampleResult] = []
    for item in items:
        per_byte = [-next(scores).nats / len(choice.encode()) for choice in item.choices]
        best = max(per_byte)
        winners = [i for i, value in enumerate(per_byte) if value == best]
        accuracy = (item.answer in winners) / len(winners)
        detail = canonical_json({"log_likelihood_per_byte": per_byte, "answer": item.answer})
        probability = right_probability(per_byte, item.answer)
        for metric, value in ((ACCURACY, accuracy), (PROBABILITY, probability)):
            results.append(SampleResult(TASK, item.item_id, item.item_id, metric, value, detail))
    return results


def right_probability(log_likelihoods: Sequence[float], answer: int) -> float:
    """Softmax, at the right choice."""
    best = max(log_likelihoods)
    weights = [math.exp(value - best) for value in log_likelihoods]
    return weights[answer] / sum(weights)
