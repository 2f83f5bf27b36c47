"""The store of what origins say is a cache: damage costs what was in it, never a traceback."""

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.origin_store import OriginStore

URLS = [f"http://h{i}/robots.txt" for i in range(30)]
FACTS = "[1700000000.0, [], 0]"


def filled(path: Path) -> bytes:
    chance = random.Random(7)
    store = OriginStore(path, "me")
    for url in URLS:
        store.put(url, FACTS, chance.randbytes(60))
    store.sync()
    store.close()
    return path.read_bytes()


def answers(path: Path) -> list[bool]:
    """Whether each is known still; the store can be written to, whatever was damaged."""
    store = OriginStore(path, "me")
    found = [store.get(url) for url in URLS]
    assert all(row is None or (row[0] == FACTS and len(row[1]) == 60) for row in found)
    store.put(URLS[3], "new", b"x")
    assert store.get(URLS[3]) == ("new", b"x")
    store.sync()
    store.close()
    return [row is not None for row in found]


def test_one_high_bit_in_a_text_costs_one_row(tmp_path: Path) -> None:
    path = tmp_path / "origins.sqlite"
    damaged = bytearray(filled(path))
    damaged[damaged.find(b"[17") + 1] ^= 0x80
    path.write_bytes(damaged)
    assert answers(path).count(False) == 1


@pytest.mark.parametrize(
    "spoil", ["packed = 5", "packed = NULL", "packed = 'x'", "facts = x'00'", "sum = 'x'"]
)
def test_a_value_of_another_type_costs_its_row(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "origins.sqlite"
    filled(path)
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE said SET {spoil} WHERE url = ?", (URLS[4],))
    db.close()
    assert answers(path).count(False) == 1


def test_any_bit(tmp_path: Path) -> None:
    path, chance = tmp_path / "origins.sqlite", random.Random(1)
    whole = filled(path)
    used = [at for at in range(len(whole)) if any(whole[max(0, at - 8) : at + 8])]
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[chance.choice(used)] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        path.with_name("origins.sqlite-journal").unlink(missing_ok=True)
        answers(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: b"",
        lambda whole: b"junk" * 999,
        lambda whole: whole[:4096],
        lambda whole: whole[:-100],
        lambda whole: whole[:4096] + bytes(4096) + whole[8192:],
    ],
)
def test_a_file_of_another_size(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "origins.sqlite"
    path.write_bytes(spoil(filled(path)))
    answers(path)
    store = OriginStore(path, "me")
    assert store.get(URLS[3]) == ("new", b"x")  # it is whole again
    store.close()


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    path = tmp_path / "origins.sqlite"
    (path / "x").mkdir(parents=True)
    with pytest.raises(UserError, match=r"origins.sqlite is a folder where a file belongs"):
        OriginStore(path, "me")
