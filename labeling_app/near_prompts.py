"""Prompts that are almost the same as one that is there, by datasketch's LSH over MinHash lanes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import case, select
from sqlalchemy.orm import Session

from labeling_app.prompt_files import TOPIC
from labeling_app.schema import Prompt, Task
from labeling_app.store import Store
from labeling_app.tasks import messages_of
from pipeline.core.records import Message
from pipeline.text.signatures import Signer

Lanes = npt.NDArray[np.uint32]  # (prompts, lanes)

THRESHOLD = 0.8  # Jaccard similarity of word pairs, as estimated by equal lanes
# Prompts are short: word pairs, and 64 lanes. Equal fields sign equally, in every release.
_SIGNER = Signer(bands=8, rows=8, seed=1, shingle_words=2)
NUM_LANES = _SIGNER.num_lanes
# Bands of 4 lanes: of pairs at 0.8 Jaccard 99.98% share one; `holds` compares those that do.
_BANDS, _BAND = 16, 4
_BATCH = 2000


class NearPrompts:
    """Those prompts of a project which can be similar to one that is coming, for they share a band
    with it. Prompts to write for and prompts to compare are kept
    apart, for a prompt may be both."""

    def __init__(self, store: Store, project: int, coming: Iterable[Lanes]) -> None:
        from datasketch import MinHashLSH  # 0.7 s, for imports alone

        self._lsh: dict[bool, Any] = {
            compares: MinHashLSH(num_perm=NUM_LANES, params=(_BANDS, _BAND))
            for compares in (False, True)
        }
        self._lanes: list[Lanes] = []
        self._project, self._last = project, 0
        self._wanted = _BandKeys(coming)
        with store.read() as session:
            self.catch_up(session)

    def catch_up(self, session: Session) -> None:
        """With what came into the store since the last time."""
        for rows, lanes in _stored(session, self._project, self._last):
            for row, own, near in zip(rows, lanes, self._wanted.shared_with(lanes), strict=True):
                if near:
                    self._add(own, row.kind == "compare")
                self._last = row.id

    def _add(self, lanes: Lanes, compares: bool) -> None:
        self._lsh[compares].insert(len(self._lanes), _minhash(lanes), check_duplication=False)
        self._lanes.append(lanes)

    def holds(self, lanes: Lanes, compares: bool) -> bool:
        """Whether one of at least THRESHOLD is there, by the share of equal lanes."""
        return any(
            float(np.mean(self._lanes[found] == lanes)) >= THRESHOLD
            for found in self._lsh[compares].query(_minhash(lanes))
        )


def sign(prompts: Sequence[tuple[Message, ...]]) -> Lanes:
    """(prompts, lanes), of what is compared: not what many prompts share by design."""
    if not prompts:
        return np.empty((0, NUM_LANES), np.uint32)
    texts = ("\n".join(turn.text for turn in prompt if turn.role != "system") for prompt in prompts)
    return _SIGNER.sign([text.removeprefix(TOPIC) for text in texts]).lanes


class _BandKeys:
    """A number for each band of some prompts' lanes: equal bands have equal ones."""

    def __init__(self, lanes: Iterable[Lanes]) -> None:
        keys = [_band_keys(some) for some in lanes] or [np.empty((0, _BANDS), np.uint32)]
        self._sorted = [np.unique(band) for band in np.concatenate(keys).T]

    def shared_with(self, lanes: Lanes) -> npt.NDArray[np.bool_]:
        """(prompts,): whether a band of each may be one of theirs."""
        found = np.zeros(len(lanes), np.bool_)
        for known, keys in zip(self._sorted, _band_keys(lanes).T, strict=True):
            if len(known):
                places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
                found |= known[places] == keys
        return found


def _band_keys(lanes: Lanes) -> npt.NDArray[np.uint32]:
    """(prompts, bands)"""
    bands = lanes.reshape(len(lanes), _BANDS, _BAND).astype(np.uint64)
    keys = np.zeros((len(lanes), _BANDS), np.uint64)
    for lane in range(_BAND):
        keys = (keys ^ bands[:, :, lane]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return (keys >> np.uint64(32)).astype(np.uint32)


def _stored(session: Session, project: int, after: int) -> Iterator[tuple[Sequence[Any], Lanes]]:
    """The project's tasks of later ids, in order, some at a time, with their prompts' lanes."""
    unsigned = case((Prompt.signature == b"", Prompt.messages)).label("messages")
    query = (
        select(Task.id, Task.kind, Prompt.signature, unsigned)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .where(Task.project_id == project, Task.id > after)
        .order_by(Task.id)
    )
    found = session.execute(query.execution_options(yield_per=_BATCH))
    for rows in found.partitions():
        signed = iter(sign([messages_of(row.messages) for row in rows if not row.signature]))
        lanes = [
            np.frombuffer(row.signature, "<u4") if row.signature else next(signed) for row in rows
        ]
        yield rows, np.stack(lanes)


def _minhash(lanes: Lanes) -> Any:
    from datasketch import LeanMinHash

    return LeanMinHash(seed=1, hashvalues=lanes.astype(np.uint64), scheme="affine32")
