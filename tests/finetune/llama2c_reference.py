"""llama2.c's program in plain numpy, one token at a time, read straight off the .bin: what the
imports, the exports and run.py are held against. It shares no code with them."""

import struct
from pathlib import Path

import numpy as np


class Reference:
    def __init__(self, checkpoint: Path, tokenizer: Path) -> None:
        data = checkpoint.read_bytes()
        d, f, self.layers, self.heads, self.kv_heads, v, self.positions = struct.unpack_from(
            "<7i", data
        )
        size, shared, v = d // self.heads, v > 0, abs(v)
        self.size, kv = size, size * self.kv_heads
        numbers, at = np.frombuffer(data, "<f4", offset=28), 0

        def take(*shape: int) -> np.ndarray:
            nonlocal at
            at += (n := int(np.prod(shape)))
            return numbers[at - n : at].reshape(shape)

        n = self.layers
        self.embedding = take(v, d)
        self.norm_1, self.wq, self.wk, self.wv = take(n, d), take(n, d, d), take(n, kv, d), take(n, kv, d)  # fmt: skip
        self.wo, self.norm_2, self.w1 = take(n, d, d), take(n, d), take(n, f, d)
        self.w2, self.w3, self.norm = take(n, d, f), take(n, f, d), take(d)
        at += self.positions * size  # the tables
        self.classifier = self.embedding if shared else take(v, d)
        assert at == len(numbers)
        self.vocabulary, self.scores = _tokens(tokenizer.read_bytes(), v)
        self.ids = {text: i for i, text in enumerate(self.vocabulary)}

    def forward(self, ids: list[int]) -> np.ndarray:
        """Logits [T, V]."""
        cache = self._empty(len(ids))
        return np.stack([self._step(token, at, cache) for at, token in enumerate(ids)])

    def _empty(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        keys = np.empty((self.layers, length, self.kv_heads, self.size // 2), dtype=np.complex64)
        return keys, np.empty((self.layers, length, self.kv_heads, self.size), dtype=np.float32)

    def _step(self, token: int, at: int, cache: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        x, size = self.embedding[token].copy(), self.size
        frequency = 1 / 10000 ** (np.arange(0, size, 2, dtype=np.float32) / size)
        turn = np.exp(1j * at * frequency).astype(np.complex64)
        for i in range(self.layers):
            h = _rms(x, self.norm_1[i])
            q, k = ((w[i] @ h).reshape(-1, size // 2, 2) for w in (self.wq, self.wk))
            q, k = ((p[..., 0] + 1j * p[..., 1]) * turn for p in (q, k))
            keys, values = cache[0][i, : at + 1], cache[1][i, : at + 1]
            keys[at], values[at] = k, (self.wv[i] @ h).reshape(-1, size)
            out = []
            for head in range(self.heads):
                group = head // (self.heads // self.kv_heads)
                scores = (q[head] * np.conj(keys[:, group])).real.sum(axis=1)
                p = np.exp((scores - scores.max()) / np.sqrt(np.float32(size)))
                out.append((p / p.sum()) @ values[:, group])
            x = x + self.wo[i] @ np.concatenate(out)
            h = _rms(x, self.norm_2[i])
            gate = self.w1[i] @ h
            x = x + self.w2[i] @ (gate / (1 + np.exp(-gate)) * (self.w3[i] @ h))
        return self.classifier @ _rms(x, self.norm)

    def greedy(self, ids: list[int], steps: int) -> list[int]:
        """Up to `steps` tokens in all are read, as run.c's -n counts; BOS ends."""
        ids, cache = list(ids), self._empty(steps)
        for at in range(steps):
            logits = self._step(ids[at], at, cache)
            if at == len(ids) - 1:
                if (drawn := int(logits.argmax())) == 1:
                    break
                ids.append(drawn)
        return ids

    def encode(self, text: str) -> list[int]:
        """run.c's, by brute force: every pair is tried, the best is merged, from the start again."""
        ids = [self.ids[b" "]] if text else []
        for character in text:
            raw = character.encode()
            ids += [self.ids[raw]] if raw in self.ids else [byte + 3 for byte in raw]
        while True:
            best, where = -1e10, None
            for i in range(len(ids) - 1):
                both = self.ids.get(self.vocabulary[ids[i]] + self.vocabulary[ids[i + 1]])
                if both is not None and self.scores[both] > best:
                    best, where = self.scores[both], (i, both)
            if where is None:
                return ids
            ids[where[0] : where[0] + 2] = [where[1]]

    def text(self, ids: list[int]) -> bytes:
        """What run.c prints of ids that follow BOS, unprintable bytes too."""
        pieces = [self.vocabulary[i] for i in ids]
        pieces = [bytes([int(p[3:5], 16)]) if _is_byte(p) else p for p in pieces]
        return b"".join(pieces).removeprefix(b" ")


def _is_byte(piece: bytes) -> bool:
    return len(piece) == 6 and piece.startswith(b"<0x") and piece.endswith(b">")


def _rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight * (x / np.sqrt((x * x).mean() + np.float32(1e-5)))


def _tokens(data: bytes, number: int) -> tuple[list[bytes], list[float]]:
    at, texts, scores = 4, [], []
    for _ in range(number):
        score, length = struct.unpack_from("<fi", data, at)
        texts.append(data[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    return texts, scores
