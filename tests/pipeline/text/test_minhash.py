import random

import numpy as np
import xxhash
from datasketch import MinHash

from pipeline.text.minhash import Signer
from pipeline.text.ngrams import jaccard


def random_sets(rng: random.Random, similarity: float, size: int) -> tuple[frozenset, frozenset]:
    shared = round(2 * size * similarity / (1 + similarity))
    names = [f"{rng.getrandbits(64):x}" for _ in range(2 * size - shared)]
    return frozenset(names[:size]), frozenset(names[size - shared :])


def test_the_estimate_is_the_jaccard_similarity_by_brute_force():
    rng = random.Random(1)
    signer = Signer(bands=32, rows=16)  # 512 lanes: standard error at most 0.022
    for similarity in (0.0, 0.2, 0.5, 0.8, 1.0):
        left, right = random_sets(rng, similarity, 300)
        estimate = np.mean(signer.sign(left) == signer.sign(right))
        assert abs(estimate - jaccard(left, right)) < 0.07


def test_the_lanes_are_datasketch_own():
    shingles = [f"shingle {number}" for number in range(10_000)]  # more than one batch
    theirs = MinHash(num_perm=112, seed=1, hashfunc=xxhash.xxh32_intdigest, scheme="affine32")
    theirs.update_batch([shingle.encode() for shingle in shingles])
    assert (Signer().sign(shingles) == theirs.hashvalues).all()


def test_signatures_do_not_move():
    """They stand in files: a change here is a new VERSION of dedupe."""
    keys = Signer().band_keys(Signer().sign(["a b c d e", "b c d e f"]))
    assert len(keys) == 14
    assert (keys[0], keys[13]) == (2346842841725225264, 3312780481994765392)


def test_the_s_curve_is_what_random_sets_do():
    rng = random.Random(2)
    signer = Signer()
    for similarity in (0.5, 0.7, 0.8, 0.9):
        found = 0
        for _ in range(300):
            left, right = random_sets(rng, similarity, 60)
            keys = zip(
                signer.band_keys(signer.sign(left)),
                signer.band_keys(signer.sign(right)),
                strict=True,
            )
            found += any(a == b for a, b in keys)
        assert abs(found / 300 - signer.match_probability(similarity)) < 0.09


def test_the_reference_values_of_the_s_curve():
    for similarity, probability in ((0.5, 0.05), (0.7, 0.56), (0.8, 0.92), (0.9, 1.0)):
        assert round(Signer().match_probability(similarity), 2) == probability
