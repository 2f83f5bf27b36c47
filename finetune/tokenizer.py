"""A byte-level BPE tokenizer trained on the corpus shards, with special tokens for turns.

Pad is not the end of a turn, so a model can learn to stop (trl#1623). 64 special tokens are
reserved: images and tool calls come later without moving any id.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from pydantic import Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.core import storage
from pipeline.core.config import RunConfig, Section
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.records import Document, read_table

VERSION = 1
NUM_SPECIAL = 64
BOS, EOS, PAD, TURN_END = "<|bos|>", "<|eos|>", "<|pad|>", "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
_NAMED = [BOS, EOS, PAD, TURN_END, *ROLES.values()]
SPECIAL_TOKENS = _NAMED + [f"<|reserved_{i}|>" for i in range(NUM_SPECIAL - len(_NAMED))]

# What finetune/chat.py does token by token, for who loads the checkpoint with transformers alone.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['content'] is string %}{% set text = message['content'] %}"
    "{% else %}{% set text = message['content'] | map(attribute='text') | join('') %}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ text }}<|end|>{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|>' + text + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class TokenizerConfig(Section):
    """[tokenizer]"""

    vocab_size: int = Field(
        4096, ge=NUM_SPECIAL + 256, le=65_536, description="tokens, the special ones included"
    )
    max_bytes: int = Field(200_000_000, ge=1, description="train on at most this much text")


def run_tokenizer(config: TokenizerConfig, shards: Manifest, run: RunConfig) -> Manifest:
    """Train on the train shards; the output is a Hugging Face tokenizer folder."""
    output = StageOutput.of(run.root, "tokenizer", VERSION, config.identity(), {"shard": shards})
    if done := output.finished():
        return done
    started = time.time()
    tokenizer = train_bpe(_limited(document_texts(shards, "train"), config.max_bytes), config)
    save_tokenizer(tokenizer, output.path("tokenizer.json"), output.path("tokenizer_config.json"))
    files = [describe_file(output.path(n), n) for n in ("tokenizer.json", "tokenizer_config.json")]
    num_docs = sum(1 for _ in document_texts(shards, "train"))
    facts = {"vocab_size": tokenizer.get_vocab_size()}
    return output.commit(files, Counts(num_docs, num_docs), started=started, facts=facts)


def train_bpe(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    """Byte-level BPE: any text encodes, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return plain(tokenizer)


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """Read "<|user|>" inside a text as those eight characters: only our code makes turns."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, tokenizer_url: str, config_url: str) -> None:
    storage.write_bytes(tokenizer_url, tokenizer.to_str().encode())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": TURN_END,
        "pad_token": PAD,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2**20,
    }
    storage.write_bytes(config_url, json.dumps(config, indent=1).encode())


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint or tokenizer folder. Raises UserError if it is not there."""
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        raise UserError(f"no tokenizer at {path}; is this a model folder?")
    return plain(Tokenizer.from_file(str(path)))


def as_hugging_face(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The same tokenizer as transformers' class, template included."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=TURN_END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
    )


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token. Raises UserError if the tokenizer is not one of ours."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise UserError(f"the tokenizer has no {token!r}; train one with `flywheel pretrain`")
    return found


def token_pieces(tokenizer: Tokenizer) -> dict[int, bytes]:
    """The bytes that each token stands for, of a byte-level BPE or one with byte fallback (which
    writes byte 10 as <0x0A>, and a space as ▁ or as itself). Special tokens stand for none."""
    added = tokenizer.get_added_tokens_decoder()
    how: str = tokenizer.decoder.__getstate__().decode()  # JSON
    byte_level, blank = '"ByteLevel"' in how, "▁" if "▁" in how else " "
    named = {name: bytes([byte]) for byte, name in enumerate(byte_level_names())}
    fallback = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(0x100)}
    pieces: dict[int, bytes] = {}
    for token, identity in tokenizer.get_vocab().items():
        if byte_level:
            pieces[identity] = b"".join(named.get(sign) or sign.encode() for sign in token)
        else:
            pieces[identity] = fallback.get(token) or token.replace(blank, " ").encode()
    return pieces | dict.fromkeys(added, b"")


def byte_level_names() -> list[str]:
    """How byte-level BPE writes each byte: a printable one as itself, the n-th other as
    chr(256 + n) (Radford et al. 2019, GPT-2's encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(0x100)]


def end_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What ends an answer: the end of the turn, of the document, or another one's beginning (so
    end the texts of llama2.c's models and GPT-2)."""
    return tuple(token_id(tokenizer, name) for name in (TURN_END, EOS, BOS))


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Each text as BOS + tokens + EOS."""
    bos, eos = token_id(tokenizer, BOS), token_id(tokenizer, EOS)
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [[bos, *encoding.ids, eos] for encoding in encodings]


def document_texts(shards: Manifest, split: str) -> Iterator[str]:
    """The texts of the shards of one split (`train` or `heldout`), in shard order."""
    for table in document_tables(shards, split):
        for text in table.column("text"):
            yield text.as_py()


def document_tables(shards: Manifest, split: str) -> Iterator[pa.Table]:
    for entry in shards.files:
        if entry.name.startswith(f"{split}-"):
            yield read_table(shards.file_url(entry.name), Document.NAME, Document.VERSION)


def _limited(texts: Iterator[str], max_bytes: float) -> Iterator[str]:
    left = max_bytes if max_bytes > 0 else math.inf
    for text in texts:
        if left <= 0:
            return
        left -= len(text.encode())
        yield text
