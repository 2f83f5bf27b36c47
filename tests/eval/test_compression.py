"""The rivals' figures against the libraries, priming against texts whose answer is known."""

import lzma
import random
import zlib
from pathlib import Path

import pytest
import zstandard

from eval.compression import (
    MODEL,
    UNIFORM,
    XZ,
    XZ_PRIMED,
    ZLIB,
    ZSTD,
    ZSTD_PRIMED,
    CompressionConfig,
    heldout_documents,
    heldout_sentence,
    run_compression,
    training_bytes,
    xz_primed_bits,
    xz_size,
    zlib_size,
    zstd_coder,
)
from eval.model import LanguageModel
from eval.report import compression_rows
from pipeline.core.errors import UserError
from pipeline.core.manifest import read_manifest

CONFIG = CompressionConfig(num_dreams=2, dream_tokens=8)
WORDS = ["os", "path", "file", "folder", "create", "the", "a", "returns", "None", "list"]


def prose(seed: int, num_words: int) -> str:
    chooser = random.Random(seed)
    return " ".join(chooser.choice(WORDS) for _ in range(num_words)) + "."


def noise(seed: int, number: int) -> bytes:
    return random.Random(seed).randbytes(number)


@pytest.mark.parametrize("data", [b"", b"a", prose(1, 500).encode(), noise(1, 999)])
def test_rivals_are_the_libraries_without_their_containers(data: bytes) -> None:
    assert zlib_size(data) == len(zlib.compress(data, 9)) - 6  # header and Adler-32
    container = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME, check=lzma.CHECK_NONE)
    assert 0 <= len(container) - xz_size(data) <= 64
    frame = zstandard.ZstdCompressor(level=19, write_content_size=False).compress(data)
    assert len(frame) - 4 - 2 <= zstd_coder()(data) <= len(frame) - 4  # the magic number


@pytest.mark.parametrize(
    "length",
    [
        9_000_000,  # more than level 19's window
        pytest.param(40_000_000, marks=pytest.mark.long),  # more than its index
    ],
)
def test_a_dictionary_reaches_back_to_the_first_byte_of_the_training_text(length: int) -> None:
    training = noise(2, length)
    size = zstd_coder(training)
    for start in (0, length // 2, length - 10_000):
        assert size(training[start : start + 10_000]) < 60
    assert size(noise(3, 10_000)) > 9_990


def test_priming_by_difference_counts_only_what_is_new() -> None:
    training, document = noise(4, 150_000).hex().encode(), noise(5, 2_500).hex().encode()
    assert xz_primed_bits([training[:5_000]], training) / 8 < 60
    once = xz_primed_bits([document], training) / 8
    assert 2_500 < once < 2_900, "hexadecimal digits carry half a byte each"
    twice = xz_primed_bits([document, document], training) / 8
    assert twice - once < 60, "it also sees the other held-out documents, as its docstring says"


def test_held_out_documents_come_by_id_and_are_cut_on_a_character(shards) -> None:
    manifest = shards(["t"], ["aaaa", "", "ééé", "zzzz"])
    assert [text for _, text in heldout_documents(manifest, 100)] == ["aaaa", "ééé", "zzzz"]
    assert heldout_documents(manifest, 7) == [("heldout-000", "aaaa"), ("heldout-002", "é")]
    assert heldout_documents(manifest, 4) == [("heldout-000", "aaaa")]


@pytest.mark.parametrize("heldout", [[], ["", ""]])
def test_no_held_out_text_is_said(shards, heldout: list[str]) -> None:
    with pytest.raises(UserError, match="no held-out text"):
        heldout_documents(shards(["t"], heldout), 100)


def test_the_training_text_is_limited(shards) -> None:
    manifest = shards(["one", "two"], ["x"])
    assert training_bytes(manifest, 100) == b"one\ntwo\n"
    assert training_bytes(manifest, 5) == b"one\nt"


def test_the_sentence_shown() -> None:
    assert heldout_sentence(
        ["short.", "It is said. The quick brown fox jumps over a lazy dog."]
    ) == ("The quick brown fox jumps over a lazy dog.")
    assert heldout_sentence(["no sentence"]) == "no sentence"


def test_the_stage_measures_all_and_runs_once(shards, publish, registry, run_config) -> None:
    heldout = [prose(seed, 200) for seed in range(20, 24)]
    manifest = shards([prose(seed, 200) for seed in range(20)], heldout)
    identity = publish("base")
    done = run_compression(CONFIG, identity, registry, manifest, run_config)
    bits, num_bytes = done.facts["bits_per_byte"], sum(map(len, heldout))
    assert done.facts["heldout_bytes"] == num_bytes
    assert bits[UNIFORM] == 8
    assert bits[ZLIB] == pytest.approx(
        8 * sum(len(zlib.compress(t.encode(), 9)) - 6 for t in heldout) / num_bytes, abs=1e-6
    )
    assert bits[ZSTD_PRIMED] < bits[ZSTD]
    assert bits[XZ_PRIMED] < bits[XZ]
    model = LanguageModel.load(registry, identity)
    nats = sum(score.nats for score in model.loglikelihood_rolling(heldout))
    assert bits[MODEL] == pytest.approx(nats / 0.6931471805599453 / num_bytes, abs=1e-5)
    assert done.facts["parameter_bytes_fp32"] == 4 * model.num_parameters
    assert len(done.facts["dreams"]) == 2
    assert "".join(step["token"] for step in done.facts["next_words"]).endswith(
        done.facts["sentence"]
    )

    written = Path(done.file_url("documents.parquet")).stat().st_mtime_ns
    again = run_compression(CONFIG, identity, registry, manifest, run_config)
    assert again == done
    assert Path(done.file_url("documents.parquet")).stat().st_mtime_ns == written
    Path(done.url, "manifest.json").unlink()  # killed before the end: the same result again
    assert run_compression(CONFIG, identity, registry, manifest, run_config).content == done.content

    rows = compression_rows(read_manifest(done.url).facts).rows
    assert [float(row[1]) for row in rows] == sorted(float(row[1]) for row in rows)
    assert {row[0] for row in rows} == set(bits)
