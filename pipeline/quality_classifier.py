"""A small quality classifier: hashed words and word pairs, logistic regression. Inference in numpy.

A text's vector is log(1 + times) for each of its hashed features, of length 1. pipeline/
train_quality.py makes one from labelled examples.
"""

import dataclasses
import json
import math

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import UserError
from pipeline.text.word_hashes import VERSION as HASHES_VERSION
from pipeline.text.word_hashes import ngram_hashes, word_hashes

VERSION = 1
_MAGIC = b"flywheel quality classifier\n"
Features = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class QualityClassifier:
    """`weights` (2^bits,) float32."""

    weights: npt.NDArray[np.float32]
    bias: float

    @property
    def bits(self) -> int:
        return len(self.weights).bit_length() - 1

    def score(self, text: str) -> float:
        """The probability of the good label, in [0, 1]."""
        places, values = features(text, self.bits)
        return sigmoid(float(self.weights[places] @ values) + self.bias)

    def to_bytes(self) -> bytes:
        head = {
            "version": VERSION,
            "hashes": HASHES_VERSION,
            "bits": self.bits,
            "bias": self.bias,
        }
        line = json.dumps(head, sort_keys=True).encode()
        return _MAGIC + line + b"\n" + self.weights.astype("<f4").tobytes()

    @staticmethod
    def from_bytes(data: bytes, source: str) -> "QualityClassifier":
        """Raises UserError for what is no classifier of this version, or not whole."""
        try:
            return _parsed(data)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"quality.classifier: {source} is no quality classifier ({error}); make one with"
                " flywheel train-quality"
            ) from None


def _parsed(data: bytes) -> QualityClassifier:
    if not data.startswith(_MAGIC):
        raise ValueError("it begins otherwise")
    line, body = data[len(_MAGIC) :].split(b"\n", 1)
    head = json.loads(line)
    if (head["version"], head["hashes"]) != (VERSION, HASHES_VERSION):
        raise ValueError(f"version {head['version']} of words {head['hashes']}")
    weights = np.frombuffer(body, "<f4").astype(np.float32)
    if len(weights) != 1 << head["bits"] or not np.isfinite(weights).all():
        raise ValueError("cut short or damaged")
    return QualityClassifier(weights, float(head["bias"]))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > 0 else math.exp(value) / (1 + math.exp(value))


def features(text: str, bits: int) -> Features:
    """(places, values): different places in [0, 2^bits), values of Euclidean length 1."""
    words = word_hashes(text)
    hashes = np.concatenate([ngram_hashes(words, 1), ngram_hashes(words, 2)])
    places, counts = np.unique(hashes >> np.uint64(64 - bits), return_counts=True)
    values = np.log1p(counts).astype(np.float32)
    length = float(np.sqrt((values * values).sum())) or 1.0
    return places.astype(np.int64), values / np.float32(length)
