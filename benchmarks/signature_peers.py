"""The peers of signatures.py, run by their own interpreter: NAME TEXTS SECONDS.

TEXTS is a JSON list. Prints {"docs", "seconds"} of processor time for as many documents as fit into
SECONDS, at least one.
"""

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_WORD = re.compile(r"\w+")


def shingles(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return [" ".join(words[at : at + 5]) for at in range(len(words) - 4)]


def datatrove(texts: list[str]) -> Callable[[int], object]:
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    step = MinhashDedupSignature(tempfile.gettempdir(), config=config)
    return lambda index: step.get_signature(step.get_shingles(texts[index]))


def datasketch(texts: list[str]) -> Callable[[int], object]:
    from datasketch import MinHash

    def one(index: int) -> object:
        minhash = MinHash(num_perm=112, seed=1, scheme="affine32")
        minhash.update_batch([shingle.encode() for shingle in shingles(texts[index])])
        return minhash.digest()

    return one


def rensa(texts: list[str], ready: bool = False) -> Callable[[int], object]:
    from rensa import RMinHash

    made = [shingles(text) for text in texts] if ready else []

    def one(index: int) -> object:
        minhash = RMinHash(num_perm=112, seed=1)
        minhash.update(made[index] if ready else shingles(texts[index]))
        return minhash.digest()

    return one


def rensa_ready(texts: list[str]) -> Callable[[int], object]:
    """Without shingling: its shingles lie ready."""
    return rensa(texts, ready=True)


PEERS = {
    "datatrove": datatrove,
    "datasketch": datasketch,
    "rensa": rensa,
    "rensa-ready": rensa_ready,
}

if __name__ == "__main__":
    name, source, limit = sys.argv[1:]
    texts = json.loads(Path(source).read_text())
    sign = PEERS[name](texts)
    for index in range(min(5, len(texts))):
        sign(index)  # what is made once
    number, started, spent = 0, time.process_time(), 0.0
    while spent < float(limit):
        sign(number % len(texts))
        number += 1
        spent = time.process_time() - started
    print(json.dumps({"docs": number, "seconds": spent}))
