"""`flywheel train-quality`: a quality classifier from labelled texts, and how good it is.

Logistic regression by AdaGrad over hashed words and pairs (pipeline/quality_classifier.py);
its AUC is cross-validated, beside that of the heuristic rules on the same texts.
"""

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.quality_classifier import Features, QualityClassifier, features, sigmoid
from pipeline.quality_rules import QualityConfig, decide
from pipeline.text.quality_signals import measure

_ASK = 'give {"text": …, "label": 0 or 1} rows as JSON Lines or Parquet'


@dataclasses.dataclass(frozen=True)
class Labelled:
    """`labels` are 1 for good texts, 0 for others."""

    texts: list[str]
    labels: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Recipe:
    bits: int = 18
    epochs: int = 10
    learning_rate: float = 0.1
    l2: float = 1e-5
    seed: int = 1


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Areas under the ROC curve: 0.5 is chance. `classifier` is cross-validated; `heuristics` is of
    the rules' decision to keep; `best_signal` of the best single signal, chosen on these texts."""

    examples: int
    classifier: float
    heuristics: float
    best_signal: float
    best_signal_name: str


def read_labelled(urls: Sequence[str]) -> Labelled:
    """Raises UserError for a missing file, another form, or labels of one kind only."""
    texts: list[str] = []
    labels: list[int] = []
    for url in urls:
        for number, (text, label) in enumerate(_rows(url), 1):
            if not isinstance(text, str) or str(label) not in ("0", "1", "True", "False"):
                raise UserError(f"{url}, row {number}: no text with label 0 or 1; {_ASK}")
            texts.append(text)
            labels.append(int(str(label) in ("1", "True")))
    if len(set(labels)) < 2:
        raise UserError(f"{', '.join(urls)}: all labels are alike; {_ASK}, some of each")
    return Labelled(texts, np.array(labels))


def _rows(url: str) -> Iterator[tuple[object, object]]:
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise UserError(f"{url} cannot be read ({error.strerror}); {_ASK}") from None
    try:
        if url.endswith(".parquet"):
            rows = pq.read_table(io.BytesIO(data)).to_pylist()
        else:
            rows = [json.loads(line) for line in data.decode().splitlines() if line.strip()]
        for row in rows:
            yield row["text"], row["label"]
    except KeyError as error:
        raise UserError(f"{url} has a row without {error}; {_ASK}") from None
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{url} cannot be read ({error}); {_ASK}") from None


def train(labelled: Labelled, recipe: Recipe) -> QualityClassifier:
    """The same examples in the same order and the same recipe give the same bytes."""
    vectors = [features(text, recipe.bits) for text in labelled.texts]
    return _fit(vectors, labelled.labels, recipe)


def _fit(
    vectors: Sequence[Features], labels: npt.NDArray[np.int64], recipe: Recipe
) -> QualityClassifier:
    weights = np.zeros(1 << recipe.bits, np.float64)
    squares = np.full(1 << recipe.bits, 1e-8)
    bias, bias_square = 0.0, 1e-8
    rng = np.random.default_rng(recipe.seed)
    for _epoch in range(recipe.epochs):
        for index in rng.permutation(len(labels)):
            places, values = vectors[index]
            error = sigmoid(float(weights[places] @ values) + bias) - int(labels[index])
            slope = error * values + recipe.l2 * weights[places]
            squares[places] += slope * slope
            weights[places] -= recipe.learning_rate * slope / np.sqrt(squares[places])
            bias_square += error * error
            bias -= recipe.learning_rate * error / bias_square**0.5
    return QualityClassifier(weights.astype(np.float32), round(bias, 6))


def evaluate(labelled: Labelled, recipe: Recipe, folds: int = 10) -> Evaluation:
    """By cross-validation: each text is scored by a classifier that has not seen it."""
    vectors = [features(text, recipe.bits) for text in labelled.texts]
    scores = np.zeros(len(vectors))
    # Each kind of label dealt out in turn, so that every fold has both.
    order = np.random.default_rng(recipe.seed).permutation(len(vectors))
    fold_of = np.empty(len(vectors), np.int64)
    for label in (0, 1):
        chosen = order[labelled.labels[order] == label]
        fold_of[chosen] = np.arange(len(chosen)) % folds
    for fold in range(folds):
        known = np.flatnonzero(fold_of != fold)
        model = _fit([vectors[index] for index in known], labelled.labels[known], recipe)
        for index in np.flatnonzero(fold_of == fold):
            places, values = vectors[index]
            scores[index] = float(model.weights[places] @ values) + model.bias
    signals = [measure(text) for text in labelled.texts]
    config = QualityConfig.model_validate({"languages": []})
    kept = np.array([decide("", 0.0, entry, config) is None for entry in signals], np.float64)
    singles = {
        name: auc(np.array([entry[name] for entry in signals]), labelled.labels)
        for name in signals[0]
    }
    best = max(singles, key=lambda name: abs(singles[name] - 0.5))
    return Evaluation(
        len(vectors),
        auc(scores, labelled.labels),
        auc(kept, labelled.labels),
        max(singles[best], 1 - singles[best]),
        best,
    )


def auc(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """How often a good text scores above another one; a tie is half (Mann-Whitney)."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    good = labels == 1
    number = int(good.sum())
    above = middle[ranks[good]].sum() - number * (number + 1) / 2
    return float(above / (number * (len(labels) - number)))
