"""Shards streamed by row group: every token once an epoch, and a cursor that goes on anywhere."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from finetune.data import Cursor, ShardRows
from finetune.packing import IGNORE
from finetune.tokenizer import PAD, document_texts, encode_documents, token_id
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.records import Document, to_table, write_table


@pytest.fixture
def grouped(shards: Manifest, run) -> Manifest:
    """The same documents in row groups of seven, in two files."""
    output = StageOutput.of(run.root, "shard", 1, {"grouped": True}, {})
    table = pq.read_table(shards.file_url("train-00000.parquet"))
    files = []
    for number, part in enumerate((table.slice(0, 25), table.slice(25))):
        name = f"train-{number:05}.parquet"
        url = output.path(name)
        Path(url).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(part, url, row_group_size=7)
        files.append(describe_file(url, name, part.num_rows))
    return output.commit(files, Counts(60, 60), started=0.0)


def _source(manifest: Manifest, tokenizer, **more) -> ShardRows:
    shape = {"row_length": 32, "batch_rows": 4, "micro_batch_rows": 2, "seed": 1} | more
    return ShardRows(manifest, tokenizer, **shape)


def _ids(source: ShardRows, steps: int) -> list[list[int]]:
    found = []
    for step in range(steps):
        update = source.step_of(step, None).updates[0]
        found += [row for batch in update.micro_batches for row in batch.ids_BT.tolist()]
    return found


def test_each_epoch_has_every_documents_every_token_once(grouped, tokenizer) -> None:
    source = _source(grouped, tokenizer)
    texts = list(document_texts(grouped, "train"))
    documents = sorted(map(tuple, encode_documents(tokenizer, texts)))
    whole = sum(map(len, documents))
    rows = source.rows(Cursor())
    stream: list[int] = []
    while len(stream) < 2 * whole:
        stream += [token for piece in next(rows)[0] for token in piece]
    epochs = []
    for epoch in range(2):
        part = stream[epoch * whole : (epoch + 1) * whole]
        starts = [i for i, token in enumerate(part) if token == documents[0][0]] + [whole]
        epochs.append([tuple(part[a:b]) for a, b in zip(starts, starts[1:], strict=False)])
        assert sorted(epochs[-1]) == documents
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("cut", [1, 2, 5, 11])
def test_a_cursor_goes_on_at_the_very_same_token(grouped, tokenizer, cut: int) -> None:
    whole = _ids(_source(grouped, tokenizer), 30)  # over an epoch's end
    first = _source(grouped, tokenizer)
    begun = _ids(first, cut)
    state = first.state()
    assert set(state) == {field.name for field in dataclasses.fields(Cursor)}
    resumed = _source(grouped, tokenizer)
    resumed.restore(state)
    assert begun + _ids(resumed, 30 - cut) == whole
    assert resumed.epochs > 1


def test_a_document_longer_than_many_rows_is_cut_and_gone_on_with(run, tokenizer, shards) -> None:
    table = pq.read_table(shards.file_url("train-00000.parquet"))
    document = dict(table.slice(0, 1).to_pylist()[0], text="value order " * 400, signals={})
    output = StageOutput.of(run.root, "shard", 1, {"long": True}, {})
    write_table(to_table([Document(**document)], Document), output.path("train-00000.parquet"))
    files = [describe_file(output.path("train-00000.parquet"), "train-00000.parquet", 1)]
    manifest = output.commit(files, Counts(1, 1), started=0.0)
    source = _source(manifest, tokenizer)
    whole = _ids(_source(manifest, tokenizer), 20)
    begun = _ids(source, 1)
    other = _source(manifest, tokenizer)
    other.restore(source.state())
    assert source.state()["token"] == 4 * 32  # in mid-document
    assert begun + _ids(other, 19) == whole


def test_a_step_counts_what_it_supervises(grouped, tokenizer) -> None:
    step = _source(grouped, tokenizer).step_of(0, None)
    batches = step.updates[0].micro_batches
    assert [len(batch.ids_BT) for batch in batches] == [2, 2]
    assert step.updates[0].count == sum(int((b.labels_BT != IGNORE).sum()) for b in batches)
    assert step.num_tokens == 4 * 32
    assert step.num_attended == sum(n * n for b in batches for row in b.lengths for n in row)
    assert not any((batch.ids_BT == token_id(tokenizer, PAD)).any() for batch in batches)


def test_a_corpus_without_training_documents_is_named(run, tokenizer) -> None:
    output = StageOutput.of(run.root, "shard", 1, {"empty": True}, {})
    manifest = output.commit([], Counts(0, 0), started=0.0)
    with pytest.raises(UserError, match="holds no training documents"):
        _source(manifest, tokenizer)


def test_packing_wastes_nothing_and_the_order_is_the_seeds(grouped, tokenizer) -> None:
    same = [_ids(_source(grouped, tokenizer), 3) for _ in range(2)]
    assert same[0] == same[1]
    assert _ids(_source(grouped, tokenizer, seed=2), 3) != same[0]
    assert np.asarray(same[0]).shape == (12, 32)
