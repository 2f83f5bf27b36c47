"""Stage "tokens": the shards' documents as token ids, packed end to end in flat files.

Per shard: `tokens-train-00000.bin`, little-endian ids of 16 bits (32 where the vocabulary needs
them), and `starts-train-00000.npy`, where each document begins. Read by core/token_reader.py.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Generator, Iterator, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.core import storage
from pipeline.core.config import RunConfig, Section, operational
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.records import Document, open_table
from pipeline.core.remote import Runtime
from pipeline.core.shard_tasks import ShardResult, map_shards
from pipeline.core.token_reader import SPLITS, STAGE, starts_name, tokens_name

VERSION = 1
_ENDS = ("<|endoftext|>", "<|eos|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
# Encoded at once: the library needs some 150 bytes a token for a while.
_BATCH_BYTES, _BATCH_DOCS = 1 << 20, 256


class TokensConfig(Section):
    """[tokens]"""

    tokenizer: str = operational(
        "", description="a tokenizer.json, path or URL; empty: no tokens are made"
    )
    begin_of_text: str = Field("", description="the token before each document; empty: none")
    end_of_text: str = Field(
        "", description=f"the token behind each document; empty: the first it has of {_ENDS}"
    )


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.json by its place and digest, and the ids laid around each document."""

    url: str
    sha256: str
    begin_id: int | None
    end_id: int
    dtype: str


@dataclasses.dataclass(frozen=True)
class TokenTask:
    shard_url: str
    shard_name: str
    folder: str
    tokenizer: TokenizerFile


def run_tokens(
    config: TokensConfig, shards: Manifest, run: RunConfig, runtime: Runtime
) -> Manifest | None:
    """Tokens of both splits, file by file in the shards' order; None if no tokenizer is given.

    The name of a special token in a text is text. `facts`: dtype, vocab_size, the ids of
    begin_of_text (None: none is laid) and end_of_text, and the tokens of each split. Raises
    UserError for a file that is no tokenizer, or has not the tokens asked for.
    """
    if not config.tokenizer:
        return None
    data = read_tokenizer(config.tokenizer)
    tokenizer = _tokenizer_of(data, config.tokenizer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    file = _described(config, data, vocabulary)
    parents = {"shard": shards, "tokenizer": file.sha256}
    output = StageOutput.of(run.root, STAGE, VERSION, config.identity(), parents)
    if done := output.finished():
        return done
    started = time.time()
    tasks = {
        entry.name: TokenTask(shards.file_url(entry.name), entry.name, output.url, file)
        for entry in shards.files
        if entry.name.partition("-")[0] in SPLITS
    }
    with output.lock():
        results = map_shards(runtime, output, "encode", encode_shard, tasks)
        entries = [entry for result in results for entry in result.files]
        return output.commit(
            entries,
            Counts.total([result.counts for result in results]),
            started=started,
            facts={
                "dtype": file.dtype,
                "vocab_size": max(vocabulary.values()) + 1,
                "begin_of_text": file.begin_id,
                "end_of_text": file.end_id,
                "tokens": {split: _num_tokens(results, split) for split in SPLITS},
            },
        )


def _num_tokens(results: Sequence[ShardResult], split: str) -> int:
    prefix = tokens_name(f"{split}-").removesuffix(".bin")
    entries = (entry for result in results for entry in result.files)
    return sum(entry.num_rows for entry in entries if entry.name.startswith(prefix))


# ----------------------------------------------------------------------------- the tokenizer


def read_tokenizer(url: str) -> bytes:
    """Raises UserError if it cannot be read."""
    try:
        return storage.read_bytes(url)
    except OSError as error:
        raise UserError(
            f"tokens.tokenizer = {url!r} cannot be read ({error.strerror or error}); name the"
            " tokenizer.json of a model, or of the stage tokenizer"
        ) from None


def _tokenizer_of(data: bytes, url: str) -> Any:
    """The library's Tokenizer: whole texts, and no text that becomes a special token."""
    try:
        from tokenizers import Tokenizer  # of the train extra: only this stage of the ground's
    except ModuleNotFoundError:
        raise UserError('tokens need: pip install "flywheel-llm[train]"') from None
    try:
        tokenizer = Tokenizer.from_buffer(data)
        tokenizer.encode("Some text, é 日本.\n")  # the library finds only now what is not whole
    except Exception as error:  # noqa: BLE001 - the library raises this very class
        raise UserError(f"tokens.tokenizer = {url!r} is no tokenizer.json ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _described(config: TokensConfig, data: bytes, vocabulary: dict[str, int]) -> TokenizerFile:
    wanted = (config.end_of_text,) if config.end_of_text else _ENDS
    end = next((token for token in wanted if token in vocabulary), None)
    if end is None:
        raise UserError(
            f"tokens.end_of_text: {config.tokenizer} has none of {', '.join(wanted)}; name the"
            " token that it ends a document with"
        )
    if config.begin_of_text and config.begin_of_text not in vocabulary:
        raise UserError(
            f"tokens.begin_of_text = {config.begin_of_text!r} is no token of {config.tokenizer};"
            " leave it empty for none"
        )
    begin = vocabulary[config.begin_of_text] if config.begin_of_text else None
    dtype = "uint16" if max(vocabulary.values()) < 1 << 16 else "uint32"
    digest = hashlib.sha256(data).hexdigest()
    return TokenizerFile(config.tokenizer, digest, begin, vocabulary[end], dtype)


@functools.lru_cache(maxsize=1)
def _load(url: str, digest: str) -> Any:
    data = read_tokenizer(url)
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"{url} has changed while the tokens were made; run it again")
    return _tokenizer_of(data, url)


# ----------------------------------------------------------------------------- one shard


def encode_shard(task: TokenTask) -> ShardResult:
    """One shard's two files. Holds one row group and 8 bytes a document."""
    stem = task.shard_name.removesuffix(".parquet")
    url = storage.join(task.folder, tokens_name(stem))
    lengths = [np.zeros(1, np.int64)]
    with storage.atomic_file(url) as path, path.open("wb") as file:
        for ids, texts in _batches(task.shard_url):
            lengths.append(_write(file, ids, texts, task.tokenizer))
    starts = np.cumsum(np.concatenate(lengths)).astype("<u8")
    num_docs, num_tokens = len(starts) - 1, int(starts[-1])
    starts_url = storage.join(task.folder, starts_name(stem))
    with storage.atomic_file(starts_url) as path, path.open("wb") as file:
        np.lib.format.write_array(file, starts, version=(1, 0))
    entries = (
        describe_file(url, tokens_name(stem), num_tokens),
        describe_file(starts_url, starts_name(stem), num_docs),
    )
    return ShardResult(entries, Counts(num_docs, num_docs))


def _batches(url: str) -> Iterator[tuple[list[str], list[str]]]:
    """(doc_ids, texts) of a shard's rows in order, about _BATCH_BYTES at a time."""
    columns = ["doc_id", "text"]
    with open_table(url, Document.NAME, Document.VERSION, columns) as file:
        for group in file.iter_batches(_BATCH_DOCS, columns=columns, use_threads=False):
            ids, texts = group["doc_id"].to_pylist(), group["text"].to_pylist()
            start = size = 0
            for at, text in enumerate(texts):
                if at > start and size + len(text) > _BATCH_BYTES:
                    yield ids[start:at], texts[start:at]
                    start, size = at, 0
                size += len(text)
            yield ids[start:], texts[start:]


def _write(
    file: IO[bytes], doc_ids: Sequence[str], texts: Sequence[str], by: TokenizerFile
) -> npt.NDArray[np.int64]:
    """Append the documents; how many tokens each has, those around it included."""
    before = [] if by.begin_id is None else [by.begin_id]
    dtype = np.dtype(by.dtype).newbyteorder("<")
    with _one_thread():
        encodings = _load(by.url, by.sha256).encode_batch_fast(texts, add_special_tokens=False)
    lengths = np.zeros(len(texts), np.int64)
    for index, encoding in enumerate(encodings):
        whole = np.array([*before, *encoding.ids, by.end_id], dtype)
        if (whole[len(before) : -1] == by.end_id).any():
            raise UserError(
                f"{by.url} makes its end-of-text token ({by.end_id}) out of plain text in document"
                f" {doc_ids[index]}; name another one in tokens.end_of_text"
            )
        file.write(whole.tobytes())
        lengths[index] = len(whole)
    return lengths


@contextlib.contextmanager
def _one_thread() -> Generator[None]:
    """Workers are as many as the run says: in each, the library would start threads for all."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
