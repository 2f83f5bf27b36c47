"""A language model in two files: this program, and parameters.bin beside it. Needs numpy alone.

    python run.py                                  # talk to it; Ctrl-D ends
    python run.py --prompt "Once upon a time" --temperature 0

It shows all there is to running a Llama: text becomes tokens (`Tokens.encode`), tokens become a
probability for each possible next token (`Llama.next_logits`), one is drawn (`draw`), and again.

parameters.bin: the 8 bytes "FLYWHEEL"; the header's length as a little-endian uint64; the sha256 of
the header; the header (JSON: shape, tokenizer, names and shapes of the tensors, the data's sha256);
then the tensors, in the header's order, row by row, as little-endian float32.
"""

import argparse
import codecs
import hashlib
import heapq
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # of float32
MAGIC = b"FLYWHEEL"
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's White_Space


class BadFileError(Exception):
    """The parameters file is not what it should be; the message is for a person."""


def read_parameters(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The header and the tensors, mapped into memory after their hash was compared.

    Raises BadFileError for a file that is missing, cut short, changed or of another kind."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(48)
            length = int.from_bytes(start[8:16], "little")
            if start[:8] != MAGIC or size < 48:
                raise BadFileError(f"{path} is no parameters file")
            if length > size - 48:
                raise BadFileError(f"{path} is cut short: {size} bytes end in its header")
            text = file.read(length)
        if hashlib.sha256(text).digest() != start[16:]:
            raise BadFileError(f"{path} is damaged: its header was changed")
        header = json.loads(text)
        shapes = {name: tuple(shape) for name, shape in header["tensors"]}
        wanted = 48 + length + 4 * sum(math.prod(shape) for shape in shapes.values())
        if size != wanted:
            what = "cut short" if size < wanted else "too long"
            raise BadFileError(f"{path} is {what}: {size} bytes where {wanted} belong")
        data = np.memmap(path, dtype="<f4", mode="r", offset=48 + length)
        digest = hashlib.sha256()
        for at in range(0, len(data), 1 << 22):
            digest.update(data[at : at + (1 << 22)].tobytes())
        if digest.hexdigest() != header["sha256"]:
            raise BadFileError(f"{path} is damaged: its numbers do not have their sha256")
    except OSError as error:
        raise BadFileError(f"cannot read {path}: {error.strerror}") from None
    tensors: dict[str, Array] = {}
    at = 0
    for name, shape in shapes.items():
        tensors[name] = data[at : at + math.prod(shape)].reshape(shape)
        at += math.prod(shape)
    return header, tensors


class Tokens:
    """Byte pair encoding. A text is cut into symbols, and the pair of neighbours that stands first
    in the list of merges becomes one symbol, again and again, until no pair is in the list.

    Byte-level (GPT-2): words first, by a regular expression; a word's symbols are its bytes.
    Byte fallback (SentencePiece): a blank goes before the text; symbols are characters, or the
    bytes of a character that is no token.
    """

    def __init__(self, header: dict[str, Any]) -> None:
        self.pieces = [bytes.fromhex(piece) for piece in header["pieces"]]  # the bytes of each id
        self.special: dict[str, int] = header["special"]
        self.byte_ids: list[int] = header["byte_ids"]
        self.merges = {(a, b): (rank, to) for rank, (a, b, to) in enumerate(header["merges"])}
        self.blank: str | None = header["blank"]  # byte fallback alone has one
        own = set(self.byte_ids)
        self.characters = {piece: i for i, piece in enumerate(self.pieces) if i not in own}
        # Letters and numbers as the tokenizer's own library has them, not as this Python has.
        letter, number = (_char_class(header[name]) for name in ("letters", "numbers"))
        self.words = re.compile(
            rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{letter}]+| ?[{number}]+| ?[^{SPACE}{letter}{number}]+"
            rf"|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+"
        )

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; "<|user|>" in it is these eight characters, no special token."""
        if self.blank is None:
            return [i for word in self.words.findall(text) for i in self._merge(self._bytes(word))]
        symbols: list[int] = []
        for character in " " * bool(text) + text.replace(self.blank, " "):
            known = self.characters.get(character.encode())
            symbols += self._bytes(character) if known is None else [known]
        return self._merge(symbols)

    def _bytes(self, text: str) -> list[int]:
        return [self.byte_ids[byte] for byte in text.encode()]

    def _merge(self, ids: list[int]) -> list[int]:
        """The earliest merge first; of several places, the leftmost. A heap of the pairs that can
        be merged, and for each symbol who stands beside it, make it n log n."""
        left, right = list(range(-1, len(ids) - 1)), [*range(1, len(ids)), -1]
        heap: list[tuple[int, int, int, int]] = []

        def consider(at: int) -> None:
            if at >= 0 and right[at] >= 0:
                pair = (ids[at], ids[right[at]])
                if pair in self.merges:
                    heapq.heappush(heap, (self.merges[pair][0], at, *pair))

        for at in range(len(ids)):
            consider(at)
        while heap:
            _, at, a, b = heapq.heappop(heap)
            other = right[at]
            if ids[at] != a or other < 0 or ids[other] != b:
                continue  # one of the two was merged meanwhile
            ids[at], ids[other] = self.merges[a, b][1], -1
            right[at] = right[other]
            if right[at] >= 0:
                left[right[at]] = at
            consider(left[at])
            consider(at)
        return [i for i in ids if i >= 0]


def _char_class(ranges: list[list[int]]) -> str:
    r"""[[65, 90]] → \u…-\u…, for inside [ ] of a regular expression"""
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges) or "\0"


class Llama:
    """The network: in each layer a token looks at the ones before it (attention), then thinks for
    itself (feed-forward); both add to what it is so far. `seen` are the tokens whose keys and
    values are kept, so that each is worked on once."""

    def __init__(self, header: dict[str, Any], weights: dict[str, Array]) -> None:
        self.weights, self.eps = weights, float(header["eps"])
        self.layers, self.kv_heads = int(header["layers"]), int(header["kv_heads"])
        self.head_dim, self.positions = int(header["head_dim"]), int(header["positions"])
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        self.frequencies = 1 / np.power(np.float32(header["theta"]), exponents)
        # [layer, key or value, head, position, number]; memory is taken as it is written
        places = (self.layers, 2, self.kv_heads, self.positions, self.head_dim)
        self.cache = np.empty(places, dtype=np.float32)
        self.seen: list[int] = []

    def next_logits(self, ids: list[int]) -> Array:
        """How likely each token is to follow `ids`, as logits [V]. What `ids` has in common with
        the call before is not computed again."""
        known = 0
        while known < min(len(self.seen), len(ids) - 1) and self.seen[known] == ids[known]:
            known += 1
        x_TD = self.weights["model.embed_tokens.weight"][ids[known:]]
        angles = np.arange(known, len(ids), dtype=np.float32)[:, None] * self.frequencies
        for layer in (f"model.layers.{i}" for i in range(self.layers)):
            h_TD = self._norm(x_TD, f"{layer}.input_layernorm")
            x_TD = x_TD + self._attention(layer, h_TD, angles, known)
            h_TD = self._norm(x_TD, f"{layer}.post_attention_layernorm")
            gate_TF = self._times(h_TD, f"{layer}.mlp.gate_proj")
            gate_TF = gate_TF / (1 + np.exp(-np.maximum(gate_TF, -80)))  # exp(89) is too much
            h_TF = gate_TF * self._times(h_TD, f"{layer}.mlp.up_proj")
            x_TD = x_TD + self._times(h_TF, f"{layer}.mlp.down_proj")
        self.seen = list(ids)
        tied = "lm_head.weight" not in self.weights  # the embedding is read backwards, then
        last_1D = self._norm(x_TD[-1:], "model.norm")
        return self._times(last_1D, "model.embed_tokens" if tied else "lm_head")[0]

    def _times(self, x: Array, name: str) -> Array:
        return x @ self.weights[f"{name}.weight"].T

    def _norm(self, x: Array, name: str) -> Array:
        """Root mean square layer normalisation (Zhang & Sennrich 2019)."""
        size = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return self.weights[f"{name}.weight"] * (x / size)

    def _attention(self, layer: str, h_TD: Array, angles: Array, known: int) -> Array:
        """Each of the T new tokens asks (q) all S up to itself (k), and takes from those that
        answer (v). Several query heads share a head of keys and values."""
        new, end, index = len(h_TD), known + len(h_TD), int(layer.rpartition(".")[2])
        q, k, v = (
            self._times(h_TD, f"{layer}.self_attn.{name}_proj")
            .reshape(new, -1, self.head_dim)
            .swapaxes(0, 1)
            for name in "qkv"
        )
        self.cache[index, 0, :, known:end] = _turned(k, angles)
        self.cache[index, 1, :, known:end] = v
        keys, values = self.cache[index, :, :, None, :end]  # [kv_heads, 1, S, head_dim]
        q = _turned(q, angles).reshape(self.kv_heads, -1, new, self.head_dim)
        scores = q @ keys.swapaxes(-1, -2) / np.float32(np.sqrt(self.head_dim))
        later = np.arange(end) > np.arange(known, end)[:, None]
        scores = np.where(later, np.float32(-np.inf), scores)  # nobody looks ahead
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ values
        mixed = mixed.reshape(-1, new, self.head_dim).swapaxes(0, 1).reshape(new, -1)
        return self._times(mixed, f"{layer}.self_attn.o_proj")


def _turned(x_HTD: Array, angles: Array) -> Array:
    """Where a token stands, as angles by which its numbers are turned, number i together with
    number i + half (Su et al. 2021)."""
    a, b = np.split(x_HTD, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def draw(logits_V: Array, temperature: float, random: np.random.Generator) -> int:
    """The next token: at temperature 0 the likeliest, else by chance."""
    if temperature == 0:
        return int(logits_V.argmax())
    scaled = (logits_V.astype(np.float64) - logits_V.max()) / temperature
    weights = np.exp(scaled)
    return int(random.choice(len(weights), p=weights / weights.sum()))


class Talk:
    """A conversation, or with a base model a text. It is kept as tokens, so that what was said is
    what is read again; when the model's positions are used up, the oldest turns are forgotten."""

    def __init__(self, header: dict[str, Any], weights: dict[str, Array], options: Any) -> None:
        self.tokens, self.llama = Tokens(header), Llama(header, weights)
        self.chat = bool(header["chat"])
        self.options, self.random = options, np.random.default_rng(options.seed)
        special = self.tokens.special
        self.stops = {special[name] for name in ("<|bos|>", "<|eos|>", "<|end|>")}
        self.system = self._turn("system", options.system) if options.system else []
        self.turns: list[list[int]] = []

    def _turn(self, role: str, text: str) -> list[int]:
        special = self.tokens.special
        return [special[f"<|{role}|>"], *self.tokens.encode(text), special["<|end|>"]]

    def reply(self, text: str) -> Iterator[str]:
        """The answer, or how the text goes on, in pieces as they come."""
        special = self.tokens.special
        if not self.chat:
            yield from self._continue([special["<|bos|>"], *self.tokens.encode(text)], [])
            return
        self.turns.append(self._turn("user", text))
        answer = [special["<|assistant|>"]]
        room = self.llama.positions - min(self.options.max_tokens, self.llama.positions // 2)
        start = [special["<|bos|>"], *self.system]
        while len(self.turns) > 1 and len(start) + sum(map(len, self.turns)) >= room:
            del self.turns[:2]
        ids = [*start, *(i for turn in self.turns for i in turn), *answer]
        yield from self._continue(ids, answer)
        self.turns.append([*answer, special["<|end|>"]])

    def _continue(self, ids: list[int], new: list[int]) -> Iterator[str]:
        """Adds the tokens that are drawn to `ids` and `new`. A character may be several tokens."""
        if len(ids) >= self.llama.positions:
            yield f"[{len(ids)} tokens are too many: this model has {self.llama.positions} places]"
            return
        text = codecs.getincrementaldecoder("utf-8")("replace")
        opening = self.tokens.blank is not None and ids[-1] in self.tokens.special.values()
        for _ in range(min(self.options.max_tokens, self.llama.positions - len(ids))):
            drawn = draw(self.llama.next_logits(ids), self.options.temperature, self.random)
            if drawn in self.stops:
                break
            ids.append(drawn)
            new.append(drawn)
            piece = self.tokens.pieces[drawn]
            yield text.decode(piece.removeprefix(b" ") if opening else piece)  # encode's own blank
            opening = False
        yield text.decode(b"", final=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompt", metavar="TEXT", help="answer this alone, then end")
    parser.add_argument("--system", metavar="TEXT", default="", help="instructions for a chat")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: always the likeliest")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same tokens")
    parser.add_argument("--max-tokens", type=int, default=256, help="of one answer")
    beside = Path(__file__).resolve().with_name("parameters.bin")
    parser.add_argument("--parameters", type=Path, default=beside, metavar="FILE", help="the other")
    options = parser.parse_args()
    if not 0 <= options.temperature < float("inf") or options.max_tokens < 1 or options.seed < 0:
        parser.error("--temperature and --seed are 0 or more, --max-tokens is 1 or more")
    try:
        talk = Talk(*read_parameters(options.parameters), options)
    except BadFileError as error:
        print(f"{error}; get it anew", file=sys.stderr)
        return 2
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        print(f"{options.parameters} is not for this program ({error!r})", file=sys.stderr)
        return 2
    try:
        if options.prompt is not None:
            _answer(talk, _clean(options.prompt))
        while options.prompt is None:
            text = _clean(input("> " if sys.stdin.isatty() else ""))
            if text.strip():
                _answer(talk, text)
    except EOFError:
        pass
    except KeyboardInterrupt:
        print()
        return 130
    return 0


def _answer(talk: Talk, text: str) -> None:
    print("" if talk.chat else text, end="", flush=True)
    for piece in talk.reply(text):
        print(piece, end="", flush=True)
    print(flush=True)


def _clean(text: str) -> str:
    """Bytes from the terminal that are no UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


if __name__ == "__main__":
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    sys.exit(main())
