import json
import random
import uuid

import pyarrow.parquet as pq
import pytest

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file, read_manifest
from pipeline.core.records import Document, to_table
from pipeline.core.shard_reader import ShardReader
from pipeline.shard_files import GROUP_ROWS, WIDE, open_shard

TRAIN = (2300, 1000, 1, 0, 40)  # rows of each shard; row groups of a thousand


@pytest.fixture(scope="session")
def shards(document):
    """shards(root, rows of each train shard): the manifest, and the ids of the train rows."""

    def make(root: str, sizes=TRAIN) -> tuple[Manifest, list[str]]:
        output = StageOutput.of(root, "shard", 3, {"sizes": list(sizes)}, {})
        ids, entries = [], []
        for number, (split, size) in enumerate([*(("train", n) for n in sizes), ("heldout", 3)]):
            rows = [
                document(f"text {number} {n}", f"http://a.test/{number}/{n}") for n in range(size)
            ]
            name = f"{split}-{number:05d}.parquet"
            with open_shard(output.path(name)) as shard:
                shard.add(to_table(rows, Document).cast(WIDE))
            entries.append(describe_file(output.path(name), name, size))
            ids += [doc.doc_id for doc in rows] if split == "train" else []
        total = sum(sizes) + 3
        counts = Counts(total, total)
        return output.commit(entries, counts, started=0.0, record=Document.NAME), ids

    return make


@pytest.fixture(scope="module")
def corpus(shards, tmp_path_factory) -> tuple[Manifest, list[str]]:
    return shards(str(tmp_path_factory.mktemp("shards")))


def ids_of(reader: ShardReader, position=None) -> list[str]:
    return [identity for _, identity, _ in reader.texts(position)]


def test_all_rows_in_their_order(corpus):
    manifest, ids = corpus
    reader = ShardReader.of(manifest)
    assert (reader.num_rows, reader.first, reader.end) == (len(ids), 0, len(ids))
    rows = list(reader.texts())
    assert [row for row, _, _ in rows] == list(range(len(ids)))
    assert [identity for _, identity, _ in rows] == ids
    assert rows[2300][2] == "text 1 0"
    assert len(list(ShardReader.of(manifest, "heldout").texts())) == 3
    assert ids_of(ShardReader.of(manifest, "rejects")) == []


def test_from_any_row_on_comes_the_tail(shards, tmp_path):
    sizes = (9, 0, 4, 1)
    manifest, ids = shards(str(tmp_path), sizes)
    reader = ShardReader.of(manifest)
    for row in range(len(ids) + 1):
        position = json.loads(json.dumps(reader.position(row)))
        assert ids_of(reader, position) == ids[row:]


def test_from_rows_about_the_bounds_of_row_groups_and_files(corpus):
    manifest, ids = corpus
    reader = ShardReader.of(manifest, columns=("url", "doc_id"))
    chosen = [
        *random.Random(0).sample(range(len(ids)), 12),
        999,
        1000,
        1001,
        2299,
        2300,
        3300,
        3301,
    ]
    for row in chosen:
        parts = list(reader.batches(reader.position(row)))
        assert parts[0].start == row
        assert [one for part in parts for one in part.table["doc_id"].to_pylist()] == ids[row:]
        assert all(a.end == b.start for a, b in zip(parts, parts[1:], strict=False))
        assert all(len(part.table) <= GROUP_ROWS for part in parts)
        assert parts[0].table.column_names == ["url", "doc_id"]


def test_workers_share_the_rows(corpus):
    manifest, ids = corpus
    for world in (1, 2, 3, 7, len(ids) + 1):
        ranks = range(world) if world < 8 else (0, 1, world - 1)
        readers = [ShardReader.of(manifest, rank=rank, world_size=world) for rank in ranks]
        shares = [ids_of(reader) for reader in readers]
        if world < 8:
            assert [one for share in shares for one in share] == ids
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
        else:
            assert max(map(len, shares)) <= 1
    reader = ShardReader.of(manifest, rank=1, world_size=3)
    middle = reader.first + 700
    assert ids_of(reader, reader.position(middle)) == ids[middle : reader.end]
    with pytest.raises(UserError, match="as many workers as before"):
        list(reader.texts({**reader.position(middle), "row": reader.first - 1}))


def test_only_the_row_groups_that_are_wanted_are_read(shards, tmp_path):
    """The others' bytes are gone, and no one minds."""
    manifest, ids = shards(str(tmp_path), (3500,))
    path = storage.local_path(manifest.file_url("train-00000.parquet"))
    metadata = pq.read_metadata(path)
    assert metadata.num_row_groups == 4
    first = metadata.row_group(2).column(0)
    start = first.dictionary_page_offset or first.data_page_offset
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * (start - 4) + data[start:])
    reader = ShardReader.of(manifest)
    assert ids_of(reader, reader.position(2345)) == ids[2345:]
    with pytest.raises(UserError, match=r"train-00000.parquet is not a whole Parquet file"):
        ids_of(reader)
    with pytest.raises(UserError, match="missing or changed"):
        ids_of(ShardReader.of(manifest, checked=True), reader.position(2345))


def test_from_a_url(shards):
    root = f"memory://{uuid.uuid4().hex}"
    manifest, ids = shards(root)
    reader = ShardReader.of(read_manifest(manifest.url))
    for row in (0, 17, 2299, 2300, 3340, len(ids)):
        assert ids_of(reader, reader.position(row)) == ids[row:]
    readers = [ShardReader.of(manifest, rank=rank, world_size=3) for rank in range(3)]
    assert [one for part in readers for one in ids_of(part)] == ids


def test_what_cannot_be_read_is_refused(corpus, shards, tmp_path):
    manifest, _ = corpus
    reader = ShardReader.of(manifest)
    other = ShardReader.of(shards(str(tmp_path), (5,))[0])
    for position in (other.position(2), {}, ShardReader.of(manifest, "heldout").position(1)):
        with pytest.raises(UserError, match="is not one in the train rows"):
            list(reader.batches(position))
    for row in (-1, reader.num_rows + 1, "3", None, 1.0):
        with pytest.raises(UserError, match="is not among the rows"):
            list(reader.batches({**reader.position(0), "row": row}))
    with pytest.raises(UserError, match="no split"):
        ShardReader.of(manifest, "test")
    with pytest.raises(UserError, match="no column 'token'"):
        ShardReader.of(manifest, columns=["token"])
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(UserError, match="there is no worker"):
            ShardReader.of(manifest, rank=rank, world_size=world)
    docs = StageOutput.of(str(tmp_path), "extract", 1, {}, {})
    with pytest.raises(UserError, match="give one of shard"):
        ShardReader.of(docs.commit([], Counts(0, 0), started=0.0, record=Document.NAME))


def test_files_that_are_not_as_the_manifest_says(shards, tmp_path):
    manifest, _ = shards(str(tmp_path), (20, 10))
    reader = ShardReader.of(manifest)
    path = storage.local_path(manifest.file_url("train-00001.parquet"))
    whole = path.read_bytes()
    path.write_bytes(storage.read_bytes(manifest.file_url("train-00000.parquet")))
    with pytest.raises(UserError, match="has 20 rows, its manifest says 10"):
        list(reader.batches())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="missing or changed"):
        ShardReader.of(manifest)
    with pytest.raises(UserError, match="not a whole Parquet file"):
        list(reader.batches())
    path.unlink()
    with pytest.raises(UserError, match="no file at"):
        list(reader.batches())


def test_no_flipped_bit_of_the_data_is_read_as_if_it_were_right(shards, tmp_path):
    manifest, _ = shards(str(tmp_path), (700,))
    path = storage.local_path(manifest.file_url("train-00000.parquet"))
    columns = tuple(Document.SCHEMA.names)
    whole = path.read_bytes()
    right = list(ShardReader.of(manifest, columns=columns).batches())
    [group] = [pq.read_metadata(path).row_group(0)]
    chunks = [group.column(number) for number in range(group.num_columns)]
    rng, refused = random.Random(4), 0
    for _ in range(150):
        chunk = rng.choice([one for one in chunks if one.total_compressed_size > 200])
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        at = rng.randrange(start, start + chunk.total_compressed_size)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            found = list(ShardReader.of(manifest, columns=columns).batches())
        except UserError:
            refused += 1
        else:  # a bit in a page's header that says nothing of its rows
            assert [part.table for part in found] == [part.table for part in right]
    assert refused > 100
