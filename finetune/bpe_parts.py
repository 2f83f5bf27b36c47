"""A tokenizer taken apart, for formats that write its tokens and merges in ways of their own.

Two kinds are known: byte-level BPE with GPT-2's words (ours), and BPE with byte fallback and a
blank put before the text (SentencePiece's, Llama 1 and 2's, llama2.c's).
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from finetune.tokenizer import byte_level_names, token_pieces
from pipeline.core.errors import UserError

_PLANES = 0x40000  # letters and numbers stand in the first four of Unicode's planes


@dataclasses.dataclass(frozen=True)
class BpeParts:
    """By id: the token's name, and the bytes it stands for (special tokens: their names').

    `merges` are ids (left, right, both together), the earliest first. `byte_ids[b]` is byte b's
    token. `blank` is how a space is written in names, None for byte-level. `unused` ids have no
    token.
    """

    names: tuple[str, ...]
    pieces: tuple[bytes, ...]
    special: Mapping[str, int]
    merges: tuple[tuple[int, int, int], ...]
    byte_ids: tuple[int, ...]
    blank: str | None
    unknown: int | None
    unused: tuple[int, ...]

    def scores(self) -> list[float]:
        """For programs that merge the pair whose token scores highest: the earlier a token's first
        merge, the higher. Tokens that no merge makes have 0, and are never asked for it."""
        scores = [0.0] * len(self.names)
        for rank, (_, _, index) in reversed([*enumerate(self.merges, start=1)]):
            scores[index] = -float(rank)
        return scores


def bpe_parts(tokenizer: Tokenizer, num_ids: int) -> BpeParts:
    """The parts, with "[PAD{i}]" for ids of the model's that have no token. Raises UserError for a
    tokenizer of neither kind."""
    state = json.loads(tokenizer.to_str())
    model, blank = state["model"], _blank(state)
    special = {token["content"]: int(token["id"]) for token in state["added_tokens"]}
    ids: dict[str, int] = {**model["vocab"], **special}
    if max(ids.values()) >= num_ids:
        raise UserError(f"the tokenizer has {max(ids.values()) + 1} ids, the model {num_ids} rows")
    byte_names = byte_level_names() if blank is None else [f"<0x{b:02X}>" for b in range(256)]
    if missing := [name for name in byte_names if name not in ids]:
        raise UserError(f"the tokenizer has no token for the byte {missing[0]!r}; it drops text")
    unused = tuple(sorted(set(range(num_ids)) - set(ids.values())))
    names = [f"[PAD{i}]" for i in range(num_ids)]
    for name, index in ids.items():
        names[index] = name
    byte_ids = tuple(ids[name] for name in byte_names)
    found = token_pieces(tokenizer)
    pieces = tuple(found.get(i) or name.encode() for i, name in enumerate(names))
    merges = tuple((ids[a], ids[b], ids[a + b]) for a, b in model["merges"])
    unknown = ids.get(model["unk_token"] or "")
    return BpeParts(tuple(names), pieces, special, merges, byte_ids, blank, unknown, unused)


def _blank(state: dict[str, Any]) -> str | None:
    """Raises UserError for what would encode in a way that is not known here."""
    model, words, normalizer = state["model"], state["pre_tokenizer"], state["normalizer"]
    plain = model["type"] == "BPE" and not model.get("dropout") and not model.get("ignore_merges")
    plain = plain and not model["continuing_subword_prefix"] and not model["end_of_word_suffix"]
    if plain and normalizer is None and words is not None:
        by_regex = words.get("use_regex") and not words["add_prefix_space"]
        if words["type"] == "ByteLevel" and by_regex:
            return None
    if plain and words is None and normalizer is not None and model["byte_fallback"]:
        steps = normalizer.get("normalizers", [normalizer])
        blank = steps[0].get("prepend")
        replaced = [{"type": "Replace", "pattern": {"String": " "}, "content": blank}]
        if blank is not None and steps[1:] == ([] if blank == " " else replaced):
            return blank
    raise UserError(
        "this form wants a byte-level BPE with GPT-2's words, or one with byte fallback; the"
        " model's tokenizer is neither: export it with hugging-face"
    )


@functools.cache
def letters_and_numbers() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    r"""Ranges of code points that are \p{L}, and \p{N}, to the tokenizers library: its Unicode is
    not this Python's."""
    text = "".join(chr(c) for c in range(_PLANES) if not 0xD800 <= c < 0xE000)
    found: list[list[tuple[int, int]]] = []
    for kind in (r"\p{L}+", r"\p{N}+"):
        runs = pre_tokenizers.Split(Regex(kind), "removed", invert=True).pre_tokenize_str(text)
        found.append([(ord(run[0]), ord(run[-1])) for run, _ in runs])
    return found[0], found[1]
