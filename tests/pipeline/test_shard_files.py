"""The parts of shard, each against brute force."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pipeline.core.errors import UserError
from pipeline.core.identity import is_heldout
from pipeline.core.records import Document, read_records, schema_of, to_table, write_table
from pipeline.decontaminate import SCHEMA as OVERLAPS_SCHEMA
from pipeline.dedupe import SCHEMA as DEDUPE_SCHEMA
from pipeline.quality import SCHEMA as SIGNALS_SCHEMA
from pipeline.repeated_lines import without_lines
from pipeline.section_files import DamagedFile, read_range, write_sorted
from pipeline.shard_files import (
    GROUP_BYTES,
    GROUP_ROWS,
    JOINED,
    KEY,
    KEYS,
    WIDE,
    in_order,
    iter_rows,
    open_shard,
    read_joined,
    runs,
    write_joined,
)
from pipeline.shard_join import JoinTask, join_file, joined_name, keys_name
from pipeline.shard_write import Cut, WriteTask, cuts_of, write_shard
from pipeline.text import pii


def table_of(document, sizes: list[int]) -> pa.Table:
    texts = [f"{n:07d}".ljust(size, "x")[:size] for n, size in enumerate(sizes)]
    rows = [document(text, f"http://a.test/{n}") for n, text in enumerate(texts)]
    return to_table(rows, Document).cast(WIDE)


# ----------------------------------------------------------------------------- Parquet


def test_row_groups_are_small_and_do_not_depend_on_how_the_rows_come(document, tmp_path):
    rng = random.Random(1)
    sizes = [rng.choice((10, 200_000, 900_000)) for _ in range(60)] + [20_000_000] + [5] * 2100
    table = table_of(document, sizes)
    files = []
    for step in (1, 7, 1000, len(table)):
        files.append(tmp_path / f"{step}.parquet")
        with open_shard(str(files[-1])) as shard:
            for start in range(0, len(table), step):
                shard.add(table.slice(start, step))
    assert len({file.read_bytes() for file in files}) == 1
    found = pq.read_table(files[0])
    assert found.equals(table.cast(schema_of(Document)))
    assert found.schema.metadata == schema_of(Document).metadata
    metadata = pq.read_metadata(files[0])
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    start = 0
    for group in groups:
        part = sizes[start : start + group.num_rows]
        assert len(part) <= GROUP_ROWS
        assert sum(part) <= GROUP_BYTES or len(part) == 1
        start += group.num_rows
    assert max(group.num_rows for group in groups) == GROUP_ROWS


def test_there_is_a_page_index(document, tmp_path):
    with open_shard(str(tmp_path / "a.parquet")) as shard:
        shard.add(table_of(document, [100] * 1500))
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert metadata.num_row_groups == 2
    for number in range(2):
        for at in range(metadata.num_columns):
            column = metadata.row_group(number).column(at)
            assert column.compression == "ZSTD"
            assert column.has_offset_index
            wanted = column.path_in_schema.split(".")[0] not in ("text", "title", "signals")
            assert column.has_column_index == column.is_stats_set == wanted, column.path_in_schema


@pytest.mark.parametrize(("rows", "size"), [(40, 1), (2500, 700), (2500, 2500), (2500, 4000)])
def test_a_stream_of_rows_whatever_the_row_groups_are(document, tmp_path, rows, size):
    table = table_of(document, [10] * rows)
    url = str(tmp_path / "a.parquet")
    with open_shard(url) as shard:
        shard.add(table)
    parts = list(iter_rows(url, Document.NAME, Document.VERSION, ["url"], size))
    assert pa.concat_tables(parts)["url"].equals(table["url"])
    assert {len(part) for part in parts[:-1]} <= {size}


def test_runs():
    rng = random.Random(2)
    for _ in range(200):
        sizes = np.array([rng.randrange(9) for _ in range(rng.randrange(20))], np.int64)
        max_bytes, max_rows = rng.randrange(1, 20), rng.randrange(1, 6)
        cut: list[list[int]] = []
        for size in sizes.tolist():
            if cut and len(cut[-1]) < max_rows and sum(cut[-1]) + size <= max_bytes:
                cut[-1].append(size)
            else:
                cut.append([size])
        found = [sizes[start:end].tolist() for start, end in runs(sizes, max_bytes, max_rows)]
        assert found == cut


# ----------------------------------------------------------------------------- joined rows


def joined(document, keys: list[int], size: int = 1000) -> pa.Table:
    table = table_of(document, [size] * len(keys))
    return table.append_column(JOINED.field(KEY), pa.array(keys, pa.uint64()))


def test_joined_rows_by_a_range_of_keys(document, tmp_path):
    rng = random.Random(3)
    keys = [rng.choice([0, 2**64 - 1, rng.getrandbits(64), 5]) for _ in range(1500)]
    table = joined(document, keys)
    url = str(tmp_path / "a.rows")
    ordered = list(in_order([table.slice(0, 400), table.slice(400)]))
    whole = pa.concat_tables(ordered)
    rows = sorted(zip(keys, table["doc_id"].to_pylist(), strict=True))
    assert list(zip(whole[KEY].to_pylist(), whole["doc_id"].to_pylist(), strict=True)) == rows
    records = write_joined(url, ordered)
    assert records["key"].tolist() == sorted(keys)
    assert set(records["bytes_32"].tolist()) == {1000}
    bounds = [0, 5, 6, 2**63, 2**64 - 1, *rng.sample(keys, 8)]
    for low in bounds:
        for high in bounds:
            found = list(read_joined(url, low, high))
            ids = [one for part in found for one in part["doc_id"].to_pylist()]
            assert ids == [one for key, one in rows if low <= key <= high]
            assert all(part.schema.equals(JOINED) for part in found)


def test_a_damaged_file_of_joined_rows_is_never_trusted(document, tmp_path):
    url = tmp_path / "a.rows"
    table = joined(document, list(range(700)))
    write_joined(str(url), [table])
    whole = url.read_bytes()
    rng = random.Random(4)
    for _ in range(60):
        at = rng.randrange(len(whole))
        url.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        with pytest.raises(DamagedFile):
            list(read_joined(str(url), 0, 2**64 - 1))
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        url.write_bytes(whole[:length])
        with pytest.raises(DamagedFile):
            list(read_joined(str(url), 0, 2**64 - 1))
    url.unlink()
    with pytest.raises(DamagedFile, match="is missing"):
        list(read_joined(str(url), 0, 2**64 - 1))


# ----------------------------------------------------------------------------- cuts


def brute_cuts(rows: list[tuple[int, int]], max_rows: int, max_bytes: int) -> list[Cut]:
    """Of (key, bytes): as the docstring of cuts_of says."""
    groups: list[list[tuple[int, int]]] = []
    for key in sorted({key for key, _ in rows}):
        same = [row for row in rows if row[0] == key]
        last = groups[-1] if groups else []
        fits = len(last) + len(same) <= max_rows
        if last and fits and sum(size for _, size in last + same) <= max_bytes:
            last += same
        else:
            groups.append(same)
    return [
        Cut(f"train-{number:05d}.parquet", "train", group[0][0], group[-1][0])
        for number, group in enumerate(groups)
    ]


def test_cuts_have_a_target_size_however_many_keys_are_seen_at_once(tmp_path):
    rng = random.Random(5)
    for _ in range(40):
        rows = [(rng.getrandbits(64), rng.randrange(50)) for _ in range(rng.randrange(120))]
        rows += [*rng.sample(rows, min(len(rows), 5)), (2**64 - 1, 7), (0, 7)]
        number = rng.randrange(1, 5)
        for index in range(number):
            records = np.array(sorted(rows[index::number]), KEYS)
            write_sorted(str(tmp_path / keys_name("train", index)), records)
            assert len(read_range(str(tmp_path / keys_name("train", index)), KEYS)) == len(records)
        max_rows, max_bytes = rng.randrange(1, 30), rng.randrange(1, 600)
        expected = brute_cuts(rows, max_rows, max_bytes)
        for at_once in (1, 10, 1 << 23):
            found = cuts_of(str(tmp_path), "train", number, max_rows, max_bytes, len(rows), at_once)
            assert list(found) == expected


def test_no_keys_no_shards(tmp_path):
    assert list(cuts_of(str(tmp_path), "train", 0, 10, 10, 0)) == []
    write_sorted(str(tmp_path / keys_name("train", 0)), np.zeros(0, KEYS))
    assert list(cuts_of(str(tmp_path), "train", 1, 10, 10, 0)) == []


# ----------------------------------------------------------------------------- the join

SECRETS = ("", "Ask jo@mail.example.org.", "Call +44 20 7946 0958", "In 1999, 12 of 40.")


def made_up(document, rng: random.Random, number: int) -> tuple[list[Document], list[list[dict]]]:
    """Documents and their rows of signals, dedupe and overlaps, with all that can be there."""
    docs, sidecars = [], [[], [], []]
    for n in range(number):
        lines = [f"line {rng.randrange(99)} é漢\U0001f600" for _ in range(rng.randrange(6))]
        text = "\n".join([*lines, rng.choice(SECRETS)])
        reason = rng.choice([None, None, None, "status-404"])
        docs.append(document(text, f"http://h{n % 3}.test/{n}", f"{n} {rng.random()}", reason))
        identity = docs[-1].doc_id
        judged = [reason is None and rng.random() < 0.9 for _ in range(3)]
        reasons = [rng.choice([None, None, None, "some"]) if one else None for one in judged]
        names = ["zeta", "alpha", "words", "language_score", "redacted_email", "Ωmega"]
        chosen = rng.sample(names, rng.randrange(len(names)))
        found = [(name, rng.choice([0.0, 1.5, None])) for name in chosen]
        keys = [
            {"doc_id": identity, "judged": one, "drop_reason": why}
            for one, why in zip(judged, reasons, strict=True)
        ]
        language = {"language": rng.choice(["en", "de", ""]), "language_score": rng.random()}
        cluster = {"cluster": rng.choice([identity, "0" * 32]), "stands_for": None}
        alike = {"stands_in": None, "similarity": rng.choice([None, 0.9])}
        gone = {"removed_lines": sorted(rng.sample(range(9), rng.choice([0, 0, 3])))}
        sidecars[0].append(keys[0] | language | {"signals": found})
        sidecars[1].append(keys[1] | cluster | alike | gone)
        sidecars[2].append(keys[2] | {"ngrams": rng.randrange(9), "hits": []})
    return docs, sidecars


def expected_row(doc: Document, signal: dict, dupe: dict, overlap: dict | None, redact: bool):
    """What one row becomes: (text, language, signals, reason), in plain Python."""
    reason = doc.drop_reason or signal["drop_reason"] or dupe["drop_reason"]
    reason = reason or (overlap["drop_reason"] if overlap else None)
    text = doc.text if reason else without_lines(doc.text, dupe["removed_lines"])
    found = pii.redact(text) if redact else pii.Redacted(text, {})
    merged = dict(signal["signals"])
    if signal["judged"]:
        merged["language_score"] = signal["language_score"]
    if dupe["judged"]:
        merged["removed_lines"] = float(len(dupe["removed_lines"]))
    if dupe["similarity"] is not None:
        merged["duplicate_similarity"] = dupe["similarity"]
    if overlap and overlap["judged"]:
        merged["evaluation_ngrams"] = float(overlap["ngrams"])
    merged |= {f"redacted_{kind}": float(number) for kind, number in found.counts.items()}
    return found.text, signal["language"], sorted(merged.items()), reason


@pytest.fixture
def join(tmp_path):
    """join(documents, sidecars, **task): the task's result, its rows (by split) and its rejects."""

    def go(docs, sidecars, **values):
        urls = [str(tmp_path / f"{name}.parquet") for name in ("docs", "signals", "dedupe", "over")]
        write_table(to_table(docs, Document), urls[0])
        schemas = (SIGNALS_SCHEMA, DEDUPE_SCHEMA, OVERLAPS_SCHEMA)
        for url, rows, schema in zip(urls[1:], sidecars, schemas, strict=True):
            write_table(pa.Table.from_pylist(rows, schema=schema), url)
        if not values.pop("overlaps", True):
            urls[3] = None
        chosen = {"seed": 1, "heldout_fraction": 0.4, "group_pattern": "", "redact": True} | values
        task = JoinTask(0, *urls, str(tmp_path / "out"), **chosen)
        result = join_file(task)
        rows = {}
        for split in ("train", "heldout"):
            url = str(tmp_path / "out" / joined_name(split, 0))
            rows[split] = pa.concat_tables(
                [JOINED.empty_table(), *read_joined(url, 0, 2**64 - 1)]
            ).to_pylist()
        rejects = read_records(str(tmp_path / "out" / "rejects-00000.parquet"), Document)
        return result, rows, rejects

    return go


@pytest.mark.parametrize("seed", range(6))
def test_the_join_is_what_plain_python_makes_of_each_row(document, join, seed):
    rng = random.Random(seed)
    docs, sidecars = made_up(document, rng, rng.choice([1, 40, 1100]))
    overlaps, redact = seed % 2 == 0, seed != 3
    result, rows, rejects = join(docs, sidecars, overlaps=overlaps, redact=redact, seed=seed)
    expected, counts = {}, dict.fromkeys(("train", "heldout", "rejects"), 0)
    for doc, signal, dupe, overlap in zip(docs, *sidecars, strict=True):
        row = expected_row(doc, signal, dupe, overlap if overlaps else None, redact)
        split = "heldout" if is_heldout(dupe["cluster"], 0.4) else "train"
        split = "rejects" if row[3] else split
        expected[doc.doc_id] = (split, doc, row)
        counts[split] += 1
    assert {split: len(found) for split, found in rows.items()} | {
        "rejects": len(rejects)
    } == counts
    for split in ("train", "heldout"):
        for found in rows[split]:
            where, doc, row = expected[found["doc_id"]]
            assert where == split
            assert (found["text"], found["language"], found["signals"], found["drop_reason"]) == row
            assert found["url"] == doc.url
            assert found[KEY] == xxhash.xxh3_64_intdigest(f"{seed}\0{doc.doc_id}".encode())
        texts = [row["text"] for row in rows[split]]
        sizes = {"docs": len(texts), "chars": sum(map(len, texts))}
        assert result.facts[split] == sizes | {"bytes": sum(len(text.encode()) for text in texts)}
    order = [doc.doc_id for doc in docs if expected[doc.doc_id][0] == "rejects"]
    assert [doc.doc_id for doc in rejects] == order
    for found in rejects:
        row = expected[found.doc_id][2]
        signals = sorted(found.signals.items())
        assert (found.text, found.language, signals, found.drop_reason) == row
    if not redact:
        assert result.facts["redacted"] == {}


def test_an_empty_file(join):
    result, rows, rejects = join([], [[], [], []])
    assert (rows, rejects) == ({"train": [], "heldout": []}, [])
    assert result.facts["train"] == {"docs": 0, "chars": 0, "bytes": 0}


def test_a_sidecar_without_a_needed_column_is_named(document, join, tmp_path):
    docs, sidecars = made_up(document, random.Random(1), 3)
    join(docs, sidecars)
    url = str(tmp_path / "signals.parquet")
    metadata = pq.read_schema(url).metadata
    write_table(pq.read_table(url).drop_columns("language").replace_schema_metadata(metadata), url)
    urls = [str(tmp_path / f"{name}.parquet") for name in ("docs", "signals", "dedupe")]
    task = JoinTask(0, *urls, None, str(tmp_path / "again"), 1, 0.1, "", True)
    with pytest.raises(UserError, match=r"signals\.parquet has no column 'language'"):
        join_file(task)
    with pytest.raises(ValueError, match="zip"):
        write_table(pq.read_table(urls[2]).slice(0, 0), urls[2])
        write_table(pa.Table.from_pylist(sidecars[0], schema=SIGNALS_SCHEMA), url)
        join_file(task)


# ----------------------------------------------------------------------------- memory


@pytest.fixture
def pool():
    """Arrow's own count of what it holds, from here on; all columns lie there."""
    before = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(before)
    pa.set_memory_pool(counting)
    yield counting
    pa.set_memory_pool(before)


def kept_rows(docs: list[Document]) -> list[list[dict]]:
    """The sidecars of documents that nothing is wrong with."""
    keys = [{"doc_id": doc.doc_id, "judged": True, "drop_reason": None} for doc in docs]
    signal = {"language": "en", "language_score": 1.0, "signals": [("words", 9.0)]}
    none = {"stands_for": None, "stands_in": None, "similarity": None, "removed_lines": []}
    return [
        [key | signal for key in keys],
        [key | none | {"cluster": key["doc_id"]} for key in keys],
        [key | {"ngrams": 0, "hits": []} for key in keys],
    ]


@pytest.mark.parametrize("rejected", [False, True])
def test_memory_is_a_small_multiple_of_the_text(document, pool, tmp_path, rejected):
    """A file of 60 MB in one row group, whose rejects pass by, and a shard of all its rows."""
    rng = random.Random(7)
    words = [str(rng.random()) for _ in range(5000)]
    texts = (f"{n} " + " ".join(rng.choices(words, k=1050)) for n in range(3000))
    docs = [document(text, f"http://a.test/{n}") for n, text in enumerate(texts)]
    size = sum(len(doc.text) for doc in docs)
    assert 55e6 < size < 65e6
    sidecars = kept_rows(docs)
    for row in sidecars[0]:
        row["drop_reason"] = "some" if rejected else None
    urls = [str(tmp_path / f"{name}.parquet") for name in ("docs", "signals", "dedupe")]
    write_table(to_table(docs, Document), urls[0])
    del docs
    for url, rows, schema in zip(urls[1:], sidecars, (SIGNALS_SCHEMA, DEDUPE_SCHEMA), strict=False):
        write_table(pa.Table.from_pylist(rows, schema=schema), url)
    task = JoinTask(0, *urls, None, str(tmp_path / "out"), 1, 0.0, "", False)
    counting = pa.proxy_memory_pool(pool)
    pa.set_memory_pool(counting)
    join_file(task)
    # To read takes 57 MB whatever the file has: pages, and 8 MB of text in each step.
    assert counting.max_memory() < (80e6 if rejected else 2.3 * size)
    if rejected:
        return
    counting = pa.proxy_memory_pool(pool)
    pa.set_memory_pool(counting)
    cut = Cut("train-00000.parquet", "train", 0, 2**64 - 1)
    write_shard(WriteTask(cut, 1, task.folder))
    assert counting.max_memory() < 2.3 * size
