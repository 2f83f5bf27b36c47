import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from pipeline.core import storage
from pipeline.core.config import Config, RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import (
    MANIFEST,
    Counts,
    Manifest,
    StageOutput,
    describe_file,
    read_manifest,
)
from pipeline.core.records import Document, to_table
from pipeline.core.remote import InlineRuntime, open_runtime
from pipeline.core.shard_reader import ShardReader
from pipeline.core.token_reader import TokenReader
from pipeline.shard_files import WIDE, open_shard
from pipeline.tokenize_shards import TokensConfig, run_tokens

HOSTILE = [
    "<|endoftext|>",
    "before<|endoftext|>after <|endoftext|>",
    "",
    " ",
    "\n\n\x00\t",
    "naïve 漢字 \U0001f469‍\U0001f4bb e\u0301 \ufffd\ufeff",
    "<|eos|><|bos|></s>[SEP]<|user|>",
    "x" * 70_000,
]


@pytest.fixture(scope="module")
def gpt2(shared_data, tmp_path_factory) -> Path:
    """The library's form of its vocabulary and merges."""
    folder = next(shared_data("models/gpt2-tokenizer").rglob("gpt2_merges.txt")).parent
    parts = [str(folder / name) for name in ("gpt2_vocab.json", "gpt2_merges.txt")]
    tokenizer = Tokenizer(models.BPE.from_file(*parts))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    path = tmp_path_factory.mktemp("gpt2") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def real_texts(shared_data) -> list[str]:
    folder = next(shared_data("models/gpt2-tokenizer").rglob("gpt2_merges.txt")).parent
    files = [folder / name for name in ("corpus.en", "german.txt", "address.txt")]
    whole = [file.read_text(encoding="utf-8") for file in files]
    return [*whole, *(line for text in whole for line in text.split("\n")[:200])]


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A word for each of 70,000 numbers, and their ends; its own settings would cut and pad."""
    words = {f"w{n}": n for n in range(70_000)} | {"?": 70_000}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|begin|>"])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    end = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[end]
    )
    path = tmp_path_factory.mktemp("wide") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def shards(document):
    """shards(root, texts of each train shard, texts held out): the manifest."""

    def make(root: str, train, heldout=("held out",)) -> Manifest:
        parts = [*(("train", n, texts) for n, texts in enumerate(train)), ("heldout", 0, heldout)]
        made_of = [list(texts) for _, _, texts in parts]
        output = StageOutput.of(root, "shard", 3, {"texts": made_of}, {})
        entries = []
        for split, number, texts in parts:
            rows = [document(text, f"http://a.test/{n}") for n, text in enumerate(texts)]
            name = f"{split}-{number:05d}.parquet"
            with open_shard(output.path(name)) as shard:
                shard.add(to_table(rows, Document).cast(WIDE))
            entries.append(describe_file(output.path(name), name, len(rows)))
        counts = Counts(sum(map(len, made_of)), sum(map(len, made_of)))
        return output.commit(entries, counts, started=0.0, record=Document.NAME)

    return make


def tokens_of(tokenizer: Path, shards: Manifest, run: RunConfig, **config) -> Manifest:
    chosen = TokensConfig(tokenizer=str(tokenizer), **config)
    manifest = run_tokens(chosen, shards, run, InlineRuntime())
    assert manifest is not None
    return manifest


def plain(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def test_gpt2_is_what_the_library_makes_of_each_document(gpt2, real_texts, shards, run):
    texts = [HOSTILE, real_texts, []]
    source = shards(run.root, texts, ["held", "out"])
    manifest = tokens_of(gpt2, source, run)
    assert manifest.facts["dtype"] == "uint16"
    assert manifest.facts["vocab_size"] == 50257
    assert (manifest.facts["end_of_text"], manifest.facts["begin_of_text"]) == (50256, None)
    tokenizer = plain(gpt2)
    expected = [
        [*tokenizer.encode(text, add_special_tokens=False).ids, 50256]
        for text in [*texts[0], *texts[1]]
    ]
    for ids, text in zip(expected, [*texts[0], *texts[1]], strict=True):
        assert ids.count(50256) == 1
        assert tokenizer.decode(ids[:-1], skip_special_tokens=False) == text
    reader = TokenReader.of(manifest)
    assert (reader.num_rows, reader.num_tokens) == (len(expected), sum(map(len, expected)))
    assert manifest.facts["tokens"] == {
        "train": reader.num_tokens,
        "heldout": TokenReader.of(manifest, "heldout").num_tokens,
    }
    for row, ids in enumerate(expected):
        assert reader.document(row).tolist() == ids
    assert manifest.counts == Counts(len(expected) + 2, len(expected) + 2)
    # The rows are the shards' rows, and the bytes are what the name says.
    documents = list(ShardReader.of(source).texts())
    assert [text for _, _, text in documents] == [*texts[0], *texts[1]]
    data = np.fromfile(manifest.file_url("tokens-train-00000.bin"), "<u2")
    assert data.tolist() == [one for ids in expected[:8] for one in ids]
    starts = np.load(manifest.file_url("starts-train-00000.npy"))
    assert starts.dtype == np.dtype("<u8")
    assert starts.tolist() == np.cumsum([0, *map(len, expected[:8])]).tolist()


def test_a_vocabulary_of_more_than_two_bytes(wide, shards, run):
    texts = ["w0 w65535 w65536 w69999 w1 w2 w3 w4 w5 w6 nothing", "<|endoftext|> w7", ""]
    manifest = tokens_of(wide, shards(run.root, [texts]), run, begin_of_text="<|begin|>")
    assert manifest.facts["dtype"] == "uint32"
    begin, end = manifest.facts["begin_of_text"], manifest.facts["end_of_text"]
    assert (begin, end) == (70_002, 70_001)
    reader = TokenReader.of(manifest)
    ids = [0, 65535, 65536, 69999, 1, 2, 3, 4, 5, 6, 70_000]  # neither cut nor padded
    assert reader.document(0).tolist() == [begin, *ids, end]
    assert reader.document(1).tolist() == [begin, 70_000, 7, end]
    assert reader.document(2).tolist() == [begin, end]
    assert storage.size(manifest.file_url("tokens-train-00000.bin")) == 4 * reader.num_tokens


def test_from_any_token_and_any_row(wide, shards, run):
    texts = [["w1 w2 w3", "", "w4"], [], ["w5"], ["w6 w7"]]
    manifest = tokens_of(wide, shards(run.root, texts), run)
    reader = TokenReader.of(read_manifest(manifest.url))
    end = manifest.facts["end_of_text"]
    whole = [1, 2, 3, end, end, 4, end, 5, end, 6, 7, end]
    rows = [0, 0, 0, 0, 1, 2, 2, 3, 3, 4, 4, 4]
    assert reader.num_tokens == len(whole)
    assert [reader.row_of(token) for token in range(len(whole))] == rows
    assert [reader.start_of(row) for row in range(6)] == [0, 4, 5, 7, 9, 12]
    for start in range(len(whole) + 1):
        for stop in range(start, len(whole) + 1):
            assert reader.read(start, stop).tolist() == whole[start:stop]
        for length in (1, 5, 100):
            blocks = list(reader.blocks(length, start))
            assert [at for at, _ in blocks] == list(range(start, len(whole), length))
            assert [one for _, ids in blocks for one in ids.tolist()] == whole[start:]
    for start, stop in ((-1, 2), (3, 2), (0, 13)):
        with pytest.raises(IndexError):
            reader.read(start, stop)
    for call, place in ((reader.start_of, 6), (reader.row_of, 12), (reader.row_of, -1)):
        with pytest.raises(IndexError):
            call(place)


def test_an_empty_corpus(gpt2, shards, run):
    manifest = tokens_of(gpt2, shards(run.root, [[]], []), run)
    for split in ("train", "heldout"):
        reader = TokenReader.of(manifest, split)
        assert (reader.num_rows, reader.num_tokens) == (0, 0)
        assert reader.read(0, 0).tolist() == list(reader.blocks(8)) == []
        assert reader.start_of(0) == 0


def test_no_tokenizer_no_tokens(shards, run):
    assert run_tokens(TokensConfig(), shards(run.root, [["a"]]), run, InlineRuntime()) is None
    config = Config({"tokens": {"tokeniser": "x"}}, "test.toml")
    with pytest.raises(UserError, match=r"tokens\.tokeniser"):
        config.section("tokens", TokensConfig)


def test_a_rerun_is_a_no_op_wherever_the_tokenizer_lies(wide, shards, run, tmp_path):
    source = shards(run.root, [["w1"]])
    manifest = tokens_of(wide, source, run)
    assert tokens_of(wide, source, run) == manifest
    copy = tmp_path / "elsewhere.json"
    copy.write_bytes(wide.read_bytes())
    assert tokens_of(copy, source, run) == manifest
    copy.write_text(json.dumps(json.loads(wide.read_text()), indent=3))
    assert tokens_of(copy, source, run).key != manifest.key


def test_what_is_no_tokenizer_is_named(gpt2, wide, shards, run, tmp_path):
    source = shards(run.root, [["w1."]])
    with pytest.raises(UserError, match=r"tokens\.tokenizer = '.*none\.json' cannot be read"):
        tokens_of(tmp_path / "none.json", source, run)
    with pytest.raises(UserError, match="cannot be read"):
        tokens_of(tmp_path, source, run)
    for data in (b"", b"{}", b"\xff\x00", gpt2.read_bytes()[:9000]):
        (tmp_path / "bad.json").write_bytes(data)
        with pytest.raises(UserError, match=r"is no tokenizer\.json"):
            tokens_of(tmp_path / "bad.json", source, run)
    torn = json.loads(wide.read_text())
    torn["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    (tmp_path / "bad.json").write_text(json.dumps(torn))
    with pytest.raises(UserError, match=r"is no tokenizer\.json"):
        tokens_of(tmp_path / "bad.json", source, run)
    with pytest.raises(UserError, match=r"tokens\.end_of_text: .* has none of <end>"):
        tokens_of(gpt2, source, run, end_of_text="<end>")
    with pytest.raises(UserError, match=r"tokens\.begin_of_text = '<begin>' is no token"):
        tokens_of(gpt2, source, run, begin_of_text="<begin>")
    with pytest.raises(UserError, match=r"end-of-text token \(13\) out of plain text"):
        tokens_of(gpt2, source, run, end_of_text=".")


def test_what_is_not_there_to_read_is_refused(wide, shards, run):
    source = shards(run.root, [["w1"]])
    manifest = tokens_of(wide, source, run)
    with pytest.raises(UserError, match="give one of tokens"):
        TokenReader.of(source)
    with pytest.raises(UserError, match="no split"):
        TokenReader.of(manifest, "rejects")
    path = storage.local_path(manifest.file_url("tokens-train-00000.bin"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="missing or changed"):
        TokenReader.of(manifest)


def test_tokens_at_a_url_have_to_be_copied_to_be_mapped(wide, shards, run):
    source = shards("memory://tokens-of-a-test", [["w1 w2"]])
    away = run.model_copy(update={"root": "memory://tokens-of-a-test"})
    there, here = tokens_of(wide, source, away), tokens_of(wide, source, run)
    assert there.content == here.content
    with pytest.raises(UserError, match="copy it to a local disk"):
        TokenReader.of(there)


# ----------------------------------------------------------------------------- workers, kills

SLOW = """
import time
from pipeline.core.config import RunConfig
from pipeline.core.manifest import read_manifest
from pipeline.core.remote import InlineRuntime
from pipeline.tokenize_shards import TokensConfig, run_tokens

class Slow(InlineRuntime):
    def map(self, function, items):
        for result in super().map(function, items):
            time.sleep(0.3)
            yield result

run_tokens(TokensConfig(tokenizer={tokenizer!r}), read_manifest({shards!r}),
           RunConfig(root={root!r}, workers=1), Slow())
"""


def test_same_bytes_at_two_workers_and_after_a_kill(wide, shards, run, tmp_path, kill_when):
    source = shards(run.root, [[f"w{n} w{n + m}" for m in range(50)] for n in range(6)])
    whole = tokens_of(wide, source, run)
    two = RunConfig(root=str(tmp_path / "two"), backend="local", workers=2)
    with open_runtime(two) as runtime:
        config = TokensConfig(tokenizer=str(wide))
        assert run_tokens(config, source, two, runtime).content == whole.content

    root = tmp_path / "killed"
    script = SLOW.format(tokenizer=str(wide), shards=source.url, root=str(root))
    kill_when(["-c", script], lambda: any(root.glob("tokens/*/encode-*.done.json")))
    assert not (root / "tokens" / whole.key / MANIFEST).exists()
    done = {path: path.stat().st_mtime_ns for path in root.glob("tokens/*/*.done.json")}
    manifest = tokens_of(wide, source, RunConfig(root=str(root), workers=1))
    assert manifest.content == whole.content
    for entry in whole.files:
        ours = storage.read_bytes(manifest.file_url(entry.name))
        assert ours == storage.read_bytes(whole.file_url(entry.name))
    assert {path: path.stat().st_mtime_ns for path in done} == done  # not done again
