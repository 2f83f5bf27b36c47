"""Stage "compression": a language model is a compressor, so it is held against compressors.

All get the same held-out documents. The rivals run without containers (headers, checksums), as
the model has none. The primed rivals also have the whole training text, as the model had.
"""

import dataclasses
import lzma
import re
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from eval.model import LanguageModel
from finetune.losses import bits_per_byte
from finetune.registry import Registry
from finetune.tokenizer import document_tables, document_texts
from pipeline.core.config import RunConfig, Section
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.progress import Progress
from pipeline.core.records import with_version, write_table

VERSION = 2
DOCUMENTS = "documents.parquet"
MODEL, ZLIB, XZ, ZSTD = "model", "zlib -9", "xz -9e", "zstd -19"
XZ_PRIMED, ZSTD_PRIMED, UNIFORM = "xz -9e, primed", "zstd -19, primed", "uniform"
_SEPARATOR = "\n"
_SENTENCE = re.compile(r"[A-Z][^.!?\n]{30,110}[.!?](?=\s|$)")


class CompressionConfig(Section):
    """[compression]"""

    heldout_bytes: int = Field(300_000, ge=1, description="compress at most this much")
    priming_bytes: int = Field(32_000_000, ge=1, description="prime with at most this much")
    num_dreams: int = Field(6, ge=0, description="texts to let the base model write")
    dream_tokens: int = Field(120, ge=1, description="length of a dream")
    dream_temperature: float = Field(0.8, gt=0, description="of sampling")
    seed: int = Field(0, ge=0, description="of the dreams")


@dataclasses.dataclass(frozen=True)
class DocumentBits:
    """What each compressor that reads a document alone needs for it, in bits."""

    NAME: ClassVar[str] = "DocumentBits"
    VERSION: ClassVar[int] = 1
    CODERS: ClassVar[tuple[str, ...]] = (MODEL, ZLIB, XZ, ZSTD, ZSTD_PRIMED)
    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("num_bytes", pa.int64(), nullable=False),
            *[pa.field(coder, pa.float64(), nullable=False) for coder in CODERS],
        ]
    )


def run_compression(
    config: CompressionConfig,
    model_id: str,
    registry: Registry,
    shards: Manifest,
    run: RunConfig,
) -> Manifest:
    """Facts: `bits_per_byte` by compressor, the bytes that were compressed and primed with, the
    bytes of the parameters, next-word guesses for a held-out sentence, and dreams.

    The model reads each document alone after BOS; where a document is longer than its context,
    rows overlap by a quarter (LanguageModel.loglikelihood_rolling).
    """
    parents = {"model": model_id, "shard": shards}
    output = StageOutput.of(run.root, "compression", VERSION, config.identity(), parents)
    if done := output.finished():
        return done
    started = time.time()
    documents = heldout_documents(shards, config.heldout_bytes)
    training = training_bytes(shards, config.priming_bytes)
    model = LanguageModel.load(registry, model_id)
    texts = [text for _, text in documents]
    with ThreadPoolExecutor(1) as thread:  # xz leaves the interpreter's lock and a core
        primed = thread.submit(xz_primed_bits, [t.encode() for t in texts], training)
        columns = document_bits(model, texts, training)
        xz_primed = primed.result()
    _write(documents, columns, output.path(DOCUMENTS))
    num_bytes = sum(len(text.encode()) for text in texts)
    bits = {coder: sum(values) for coder, values in columns.items()}
    bits |= {XZ_PRIMED: xz_primed, UNIFORM: 8.0 * num_bytes}
    facts = {
        "model": model_id,
        "num_documents": len(texts),
        "heldout_bytes": num_bytes,
        "priming_bytes": len(training),
        "bits_per_byte": {coder: round(total / num_bytes, 6) for coder, total in bits.items()},
        "num_parameters": model.num_parameters,
        "parameter_bytes_fp32": 4 * model.num_parameters,
        "parameter_bytes_16bit": 2 * model.num_parameters,
        **_pictures(config, model, texts),
    }
    entry = describe_file(output.path(DOCUMENTS), DOCUMENTS, len(texts))
    return output.commit([entry], Counts(len(texts), len(texts)), started=started, facts=facts)


def heldout_documents(shards: Manifest, max_bytes: int) -> list[tuple[str, str]]:
    """(doc_id, text) of the held-out documents in the order of their ids, the last one cut where
    `max_bytes` are full. Raises UserError if there are none."""
    found: list[tuple[str, str]] = []
    for table in document_tables(shards, "heldout"):
        found += zip(
            table.column("doc_id").to_pylist(), table.column("text").to_pylist(), strict=True
        )
    kept: list[tuple[str, str]] = []
    room = max_bytes
    for identity, text in sorted(found):
        cut = text.encode()[:room].decode(errors="ignore")
        if cut:
            kept.append((identity, cut))
        room -= len(text.encode())
        if room <= 0:
            break
    if not kept:
        raise UserError(f"no held-out text in {shards.url}; crawl more, or hold more out")
    return kept


def training_bytes(shards: Manifest, max_bytes: int) -> bytes:
    """The training documents in shard order, a line end after each."""
    parts: list[bytes] = []
    room = max_bytes
    for text in document_texts(shards, "train"):
        part = (text + _SEPARATOR).encode()[:room]
        parts.append(part)
        room -= len(part)
        if room == 0:
            break
    return b"".join(parts)


def document_bits(
    model: LanguageModel, texts: Sequence[str], training: bytes
) -> dict[str, list[float]]:
    """Bits per document by DocumentBits.CODERS, each document alone."""
    to_bits = 1 / bits_per_byte(1.0, 1)  # nats in one bit
    data = [text.encode() for text in texts]
    rivals: dict[str, Callable[[bytes], int]] = {
        ZLIB: zlib_size,
        XZ: xz_size,
        ZSTD: zstd_coder(),
        ZSTD_PRIMED: zstd_coder(training),
    }
    with Progress("compression", len(DocumentBits.CODERS), "compressors") as progress:
        scores = model.loglikelihood_rolling(texts)
        columns = {MODEL: [score.nats / to_bits for score in scores]}
        progress.advance(1, MODEL)
        for coder, size in rivals.items():
            columns[coder] = [8.0 * size(item) for item in data]
            progress.advance(1, coder)
    return columns


def zlib_size(data: bytes) -> int:
    """Bytes of a raw deflate stream at level 9."""
    return len(zlib.compress(data, 9, wbits=-15))


def xz_size(data: bytes) -> int:
    """Bytes of a raw LZMA2 stream at preset 9e, its window as long as the data."""
    preset = 9 | lzma.PRESET_EXTREME
    window = min(max(len(data), 4096), 2**30)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": window}]
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def xz_primed_bits(documents: Sequence[bytes], training: bytes) -> float:
    """size(training text + all documents) - size(training text), for xz takes no dictionary.

    This favours xz: at each document it has also seen the other held-out ones before it.
    """
    together = training + b"".join(document + _SEPARATOR.encode() for document in documents)
    with ThreadPoolExecutor(2) as threads:
        whole, alone = threads.map(xz_size, (together, training))
    return 8.0 * (whole - alone)


def zstd_coder(training: bytes = b"") -> Callable[[bytes], int]:
    """Bytes of a frame at level 19 without magic, size, checksum and dictionary id; with the
    training text as a raw dictionary, all of it searchable. Memory: some 16 bytes a byte of it."""
    try:
        import zstandard  # in the report extra: only this stage needs it
    except ModuleNotFoundError:
        raise UserError('zstd needs: pip install "flywheel-llm[train]"') from None
    options: dict[str, Any] = {
        "write_content_size": 0,
        "write_checksum": 0,
        "write_dict_id": 0,
        "format": zstandard.FORMAT_ZSTD1_MAGICLESS,
    }
    parameters = zstandard.ZstdCompressionParameters
    if not training:

        def size(data: bytes) -> int:
            fitted = parameters.from_level(19, source_size=len(data), **options)
            return len(zstandard.ZstdCompressor(compression_params=fitted).compress(data))

        return size
    # Level 19 by itself has room for 2^23 positions and forgets the first of a longer dictionary.
    chain_log = min(max(24, (2 * len(training)).bit_length()), 30)
    wide = parameters.from_level(
        19, dict_size=len(training), chain_log=chain_log, hash_log=chain_log - 2, **options
    )
    dictionary = zstandard.ZstdCompressionDict(training, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    dictionary.precompute_compress(compression_params=wide)
    primed = zstandard.ZstdCompressor(compression_params=wide, dict_data=dictionary)
    return lambda data: len(primed.compress(data))


def heldout_sentence(texts: Sequence[str]) -> str:
    """The first sentence of middling length, else the beginning of the first text."""
    for text in texts:
        if match := _SENTENCE.search(text):
            return match[0]
    return texts[0][:100]


def next_words(model: LanguageModel, sentence: str, k: int = 5) -> list[dict[str, Any]]:
    """Per token of the sentence (the first is BOS): the `k` likeliest to follow it."""
    return [
        {"token": guess.token, "likeliest": [[text, round(p, 6)] for text, p in guess.likeliest]}
        for guess in model.next_tokens(sentence, k)
    ]


def _pictures(
    config: CompressionConfig, model: LanguageModel, texts: Sequence[str]
) -> dict[str, Any]:
    sentence = heldout_sentence(texts)
    dreams: list[str] = []
    if config.num_dreams:
        dreams = model.sample_documents(
            config.num_dreams, config.dream_tokens, config.dream_temperature, config.seed
        )
    return {"sentence": sentence, "next_words": next_words(model, sentence), "dreams": dreams}


def _write(documents: Sequence[tuple[str, str]], columns: dict[str, list[float]], url: str) -> None:
    data = {
        "doc_id": [identity for identity, _ in documents],
        "num_bytes": [len(text.encode()) for _, text in documents],
        **columns,
    }
    schema = with_version(DocumentBits.SCHEMA, DocumentBits.NAME, DocumentBits.VERSION)
    write_table(pa.table(data, schema=schema), url)
