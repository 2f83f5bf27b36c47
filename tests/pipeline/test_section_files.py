from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.section_files import (
    DamagedFile,
    open_sections,
    read_range,
    section_keys,
    write_sections,
    write_sorted,
)

RECORD = np.dtype([("key", "<u8"), ("row", "<u4")])


def records(keys) -> np.ndarray:
    found = np.zeros(len(keys), RECORD)
    found["key"] = np.sort(np.array(keys, np.uint64))
    found["row"] = np.arange(len(keys))
    return found


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("sections") / "a.sorted")


KEYS = st.integers(0, 2**64 - 1) | st.integers(0, 9)


@given(st.lists(KEYS, max_size=40), KEYS, KEYS | st.just(2**64), st.integers(1, 60))
def test_a_range_is_what_a_filter_finds(url, keys, low, high, repeats):
    whole = records(keys * repeats)  # up to 2,400 records: five sections, runs longer than one
    write_sorted(url, whole)
    chosen = [row for row in whole.tolist() if low <= row[0] < high]
    assert read_range(url, RECORD, low, high).tolist() == chosen
    assert read_range(url, RECORD).tolist() == whole.tolist()
    assert len(section_keys(url, RECORD)) == -(-len(whole) // 512)


def test_every_changed_byte_and_every_cut_is_found(url, tmp_path):
    write_sorted(url, records(range(2000)))
    data = Path(url).read_bytes()
    broken = tmp_path / "b.sorted"
    rng = np.random.default_rng(1)
    for at in [*rng.integers(0, len(data), 300).tolist(), len(data) - 1]:
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        broken.write_bytes(changed)
        with pytest.raises(DamagedFile) as caught:
            read_range(str(broken), RECORD)
        assert caught.value.url == str(broken)
    for size in [0, 5, 23, 24, 100, *rng.integers(0, len(data), 100).tolist()]:
        broken.write_bytes(data[:size])
        with pytest.raises(DamagedFile):
            read_range(str(broken), RECORD)


def test_only_the_sections_of_the_range_are_read(url, tmp_path):
    write_sorted(url, records(range(2000)))
    data = bytearray(Path(url).read_bytes())
    data[700 * RECORD.itemsize] ^= 1  # in the second section
    broken = tmp_path / "c.sorted"
    broken.write_bytes(data)
    assert len(read_range(str(broken), RECORD, 1100, 2000)) == 900
    with pytest.raises(DamagedFile, match="damaged in section 1"):
        read_range(str(broken), RECORD, 600, 601)


def test_another_kind_and_no_file(url):
    write_sorted(url, records([1]))
    with pytest.raises(DamagedFile, match="does not hold"):
        read_range(url, np.dtype([("key", "<u8")]))
    with pytest.raises(DamagedFile, match="is missing"):
        read_range(url + "x", RECORD)


def test_sections_of_any_length(url):
    parts = [(3, b""), (5, b"abc"), (9, bytes(100_000))]
    write_sections(url, "parts", parts)
    with open_sections(url, "parts") as found:
        assert [(int(k), found.read(i, i + 1)) for i, k in enumerate(found.keys)] == parts
        assert found.read(0, 3) == b"abc" + bytes(100_000)
    write_sections(url, "parts", [])
    with open_sections(url, "parts") as found:
        assert found.count == 0
