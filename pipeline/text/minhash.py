"""MinHash signatures and their band keys (Broder 1997; Leskovec et al., Mining of Massive
Datasets, chapter 3), by datasketch's `affine32` scheme over xxh32 of the shingles.
"""

import dataclasses
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xxhash

if TYPE_CHECKING:
    from datasketch import MinHash

_BATCH = 4096  # bounds the (batch, lanes) temporary: a megabyte and a half at 112 lanes


@dataclasses.dataclass(frozen=True)
class Signer:
    """`bands` x `rows` lanes; equal fields sign equally, on any machine."""

    bands: int = 14
    rows: int = 8
    seed: int = 1

    @property
    def num_lanes(self) -> int:
        return self.bands * self.rows

    @cached_property
    def _permutations(self) -> npt.NDArray[np.uint32]:
        return np.asarray(self._minhash().permutations, np.uint32)

    def sign(self, shingles: Iterable[str]) -> npt.NDArray[np.uint32]:
        """The least hash in each lane: (bands * rows,). No shingles: all lanes at their maximum.

        The share of equal lanes of two signatures estimates their sets' Jaccard similarity.
        """
        minhash = self._minhash(self._permutations)
        encoded = [shingle.encode() for shingle in shingles]
        for start in range(0, len(encoded), _BATCH):
            minhash.update_batch(encoded[start : start + _BATCH])
        return minhash.hashvalues

    def _minhash(self, permutations: npt.NDArray[np.uint32] | None = None) -> "MinHash":
        # It imports scipy: 0.7 s that a stage's config should not cost.
        from datasketch import MinHash

        return MinHash(
            num_perm=self.num_lanes,
            seed=self.seed,
            hashfunc=xxhash.xxh32_intdigest,
            permutations=permutations,
            scheme="affine32",
        )

    def band_keys(self, signature: npt.NDArray[np.uint32]) -> list[int]:
        """One 64-bit key a band: two texts are candidates if any key in the same band is equal."""
        lanes = signature.astype("<u4").reshape(self.bands, self.rows)
        return [xxhash.xxh3_64_intdigest(lanes[band].tobytes(), band) for band in range(self.bands)]

    def match_probability(self, similarity: float) -> float:
        """The S-curve: how likely two sets of this Jaccard similarity become candidates."""
        return 1 - (1 - similarity**self.rows) ** self.bands
