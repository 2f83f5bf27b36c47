"""What the first judgement of all blocks says about each: the input of the second.

A short line is main content where its neighbours, its container and the blocks of its form are.
"""

from typing import Any

import numba
import numpy as np

_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)
_BESIDE, _LEVELS = 4, 5
_REACHES = np.array([4, 12])
_FAR = 999.0
CONTEXT_FEATURES = (
    *(f"before_{by}" for by in range(1, _BESIDE + 1)),
    *(f"after_{by}" for by in range(1, _BESIDE + 1)),
    "around_4", "around_12", "form", "page", "page_words", "page_most", "own",
    "share_before", "since_likely", "until_likely",
    *(f"level_{level}" for level in range(1, _LEVELS + 1)),
)  # fmt: skip


def context_of(likely: Any, words: Any, holder: Any, parent: Any, forms: Any, up: Any) -> Any:
    """(blocks, len(CONTEXT_FEATURES)) float32. `likely`: probability per block; `holder`: its
    element; `forms`: its form's number; `parent` and `up` (see `_larger`): per element."""
    result = np.zeros((len(likely), len(CONTEXT_FEATURES)), np.float32)
    if len(likely):
        likely, words = likely.astype(np.float32), words.astype(np.float32)
        _beside(likely, words, result)
        _within(likely, words, holder, parent, forms, int(forms.max()) + 1, up, result)
        _along(likely, words, result)
    return result


@_compiled
def _beside(likely: Any, words: Any, result: Any) -> Any:
    num = likely.shape[0]
    for b in range(num):
        for k in range(1, _BESIDE + 1):
            result[b, k - 1] = likely[b - k] if b >= k else -1.0
            result[b, k + _BESIDE - 1] = likely[b + k] if b + k < num else -1.0
        for column in range(_REACHES.shape[0]):
            reach = _REACHES[column]
            total, weight = np.float32(0.0), np.float32(1e-6)
            for other in range(max(0, b - reach), min(num, b + reach + 1)):
                if other != b:
                    total += likely[other] * words[other]
                    weight += words[other]
            result[b, 8 + column] = total / weight


@_compiled
def _within(
    likely: Any, words: Any, holder: Any, parent: Any, forms: Any, num_forms: Any, up: Any,
    result: Any,
) -> Any:  # fmt: skip
    num, elements = likely.shape[0], parent.shape[0]
    all_words = np.zeros(elements, np.float32)
    mass = np.zeros(elements, np.float32)
    form_words = np.zeros(num_forms, np.float32)
    form_mass = np.zeros(num_forms, np.float32)
    for b in range(num):
        weighted = likely[b] * words[b]
        all_words[holder[b]] += words[b]
        mass[holder[b]] += weighted
        form_words[forms[b]] += words[b]
        form_mass[forms[b]] += weighted
    for e in range(elements - 1, -1, -1):
        p = parent[e]
        if p >= 0:
            all_words[p] += all_words[e]
            mass[p] += mass[e]
    for b in range(num):
        weighted = likely[b] * words[b]
        rest = form_words[forms[b]] - words[b]
        result[b, 10] = (form_mass[forms[b]] - weighted) / rest if rest > 0 else -1.0
        e = holder[b]
        for level in range(_LEVELS):
            rest = all_words[e] - words[b]
            result[b, 18 + level] = (mass[e] - weighted) / rest if rest > 0 else -1.0
            e = up[e]


@_compiled
def _along(likely: Any, words: Any, result: Any) -> Any:
    num = likely.shape[0]
    total, weight, most = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for b in range(num):
        total += likely[b] * words[b]
        weight += words[b]
        most = max(most, likely[b])
    before = np.float32(0.0)
    last = -1
    for b in range(num):
        result[b, 11] = total / max(np.float32(1.0), weight)
        result[b, 12], result[b, 13], result[b, 14] = total, most, likely[b]
        result[b, 15] = before / max(np.float32(1e-6), total)
        result[b, 16] = b - last if last >= 0 else _FAR
        before += likely[b] * words[b]
        if likely[b] > 0.5:
            last = b
    following = -1
    for b in range(num - 1, -1, -1):
        result[b, 17] = following - b if following >= 0 else _FAR
        if likely[b] > 0.5:
            following = b
