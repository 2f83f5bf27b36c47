"""llama2.c's model.bin and tokenizer.bin: the logits, tokens and texts of its own program."""

import itertools
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
)

from finetune.export import export_two_files
from finetune.import_model import import_llama2c, llama2c_tokenizer
from finetune.registry import Registry
from finetune.sft import SftConfig, run_sft
from finetune.tokenizer import (
    BOS,
    EOS,
    load_tokenizer,
    token_id,
    token_pieces,
)
from pipeline.core.errors import UserError
from tests.finetune.llama2c_reference import Reference

STORY = """Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she said, "I'm sorry, mom. I didn't know what to do." Her mom said, "Don't worry, Lily. We can help you."""  # llama2.c, doc/stories260K.md


@pytest.fixture(scope="module")
def stories(shared_data) -> tuple[Path, Path]:
    folder = next(shared_data("models/stories260K").rglob("stories260K.bin")).parent
    return folder / "stories260K.bin", folder / "tok512.bin"


@pytest.fixture(scope="module")
def reference(stories) -> Reference:
    return Reference(*stories)


def test_stories_gives_the_logits_of_a_plain_forward_pass(stories, reference, tmp_path) -> None:
    registry = Registry(str(tmp_path))
    folder = registry.verified(import_llama2c(registry, *stories))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [1, *reference.encode("Once upon a time, there was a heap. It “kept” its naïve order.")]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :, :512].numpy()
    assert np.abs(logits - reference.forward(ids)).max() < 3e-5
    assert model.config.vocab_size == 512 + 62
    assert token_id(load_tokenizer(folder), BOS) == 1
    assert token_id(load_tokenizer(folder), EOS) == 2


def test_the_reference_tells_the_story_that_the_c_program_tells(reference) -> None:
    assert reference.text(reference.greedy([1], 256)[1:]).decode() == STORY


def hostile(draw: random.Random) -> str:
    alphabet = "ttthhe  aann \n\t<0xA>▁\0é–“”€™\u200a\u00a0日本🙂\u0301\ufffd<s>|'\"LiyO"
    return "".join(draw.choices(alphabet, k=draw.randint(0, 40)))


def test_its_tokenizer_encodes_as_run_c_does(stories, reference, shared_data) -> None:
    tokenizer = llama2c_tokenizer(stories[1], 512)
    prose = next(shared_data("models/gpt2-tokenizer").rglob("address.txt")).read_text()
    german = next(shared_data("models/gpt2-tokenizer").rglob("german.txt")).read_text()
    draw = random.Random(0)
    texts = [*STORY.splitlines(), *prose.splitlines(), *german.splitlines(), "", " ", "  \n a"]
    texts += [hostile(draw) for _ in range(400)]
    texts += [
        "".join(draw.choices(words, k=20))
        for words in ("aba", " t", "the ", "l i", "ooo.")
        for _ in range(40)
    ]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == reference.encode(text), repr(text)
        assert tokenizer.decode(ids) == text, repr(text)
        assert reference.text(ids).decode() == text


@settings(max_examples=200)
@given(st.text(max_size=30))
def test_any_text_survives_byte_fallback(text: str) -> None:
    ids = FALLBACK.encode(text, add_special_tokens=False).ids
    assert FALLBACK.decode(ids) == text
    pieces = token_pieces(FALLBACK)
    assert b"".join(pieces[i] for i in ids) == (" " * bool(text) + text).encode()


def write_tokens(path: Path, tokens: list[tuple[bytes, float]]) -> Path:
    body = b"".join(struct.pack("<fi", score, len(text)) + text for text, score in tokens)
    path.write_bytes(struct.pack("<i", max(len(text) for text, _ in tokens)) + body)
    return path


BYTES = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
BYTES += [(b"<0x%02X>" % byte, 0.0) for byte in range(256)]
SMALL = [
    *BYTES,
    *(
        (t.encode(), -float(i))
        for i, t in enumerate(["aa", "ab", " a", "aba", "aaa", " ", "a", "b", "é"])
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _fallback(tmp_path_factory):
    global FALLBACK
    path = write_tokens(tmp_path_factory.mktemp("tokens") / "t.bin", SMALL)
    FALLBACK = llama2c_tokenizer(path, len(SMALL))


def small_checkpoint(path: Path, header: tuple[int, ...] | None = None) -> bytes:
    """Random weights of the tokens above: 8 wide, 2 layers."""
    header = header or (8, 12, 2, 2, 1, -len(SMALL), 16)
    d, f, n, h, kv, v, t = header
    kv = d // h * kv
    sizes = [-v * d, n * d, n * d * d, n * kv * d, n * kv * d, n * d * d, n * d]
    random_numbers = np.random.default_rng(0)
    body = [random_numbers.normal(size=s).astype("<f4") for s in [*sizes, *[n * d * f] * 3, d]]
    angles = np.arange(t)[:, None] / 10000 ** (np.arange(0, d // h, 2) / (d // h))
    body += [np.cos(angles).astype("<f4"), np.sin(angles).astype("<f4")]
    body += [random_numbers.normal(size=-v * d).astype("<f4")]
    path.write_bytes(struct.pack("<7i", *header) + b"".join(b.tobytes() for b in body))
    return path.read_bytes()


def test_pairs_of_equal_score_are_merged_from_the_left_as_run_c_does(tmp_path: Path) -> None:
    small_checkpoint(tmp_path / "m.bin")
    tokens = write_tokens(tmp_path / "t.bin", SMALL)
    ours, theirs = llama2c_tokenizer(tokens, len(SMALL)), Reference(tmp_path / "m.bin", tokens)
    for length in range(11):
        for text in map("".join, itertools.product("ab", repeat=length)):
            assert ours.encode(text).ids == theirs.encode(text), text


def test_an_untied_checkpoint_with_shared_heads_gives_its_logits(tmp_path: Path) -> None:
    checkpoint, tokens = tmp_path / "m.bin", write_tokens(tmp_path / "t.bin", SMALL)
    small_checkpoint(checkpoint)
    registry = Registry(str(tmp_path / "data"))
    folder = registry.verified(import_llama2c(registry, checkpoint, tokens))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [1, 262, 261, 4, 30]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :, : len(SMALL)].numpy()
    want = Reference(checkpoint, tokens).forward(ids)
    assert np.abs(logits - want).max() < 2e-5 * np.abs(want).max()


def header(*numbers: int):
    return lambda data: struct.pack("<7i", *numbers) + data[28:]


V = len(SMALL)
BAD_CHECKPOINTS = {
    "empty": (lambda data: b"", "no header"),
    "half a header": (lambda data: data[:20], "no header"),
    "half": (lambda data: data[: len(data) // 2], "bytes of weights where its header asks"),
    "one number less": (lambda data: data[:-4], "bytes of weights where its header asks"),
    "one byte more": (lambda data: data + b"\0", "bytes of weights where its header asks"),
    "negative width": (header(-8, 12, 2, 2, 1, -V, 16), "no llama2.c model"),
    "no layers": (header(8, 12, 0, 2, 1, -V, 16), "no llama2.c model"),
    "no tokens": (header(8, 12, 2, 2, 1, 0, 16), "no llama2.c model"),
    "no heads": (header(8, 12, 2, 0, 1, -V, 16), "no llama2.c model"),
    "heads that do not divide": (header(8, 12, 2, 3, 1, -V, 16), "no llama2.c model"),
    "odd heads": (header(10, 12, 2, 2, 1, -V, 16), "no llama2.c model"),
    "huge": (header(*[2**31 - 4] * 2, 2**31 - 1, 2, 2, -(2**31), 2**31 - 1), "header asks for"),
    "version 1": (lambda data: b"24ka" + struct.pack("<i", 1) + data, "version 1"),
    "text": (lambda data: b"Once upon a time there was a little girl", "no llama2.c model|asks"),
    "NaN": (
        lambda data: data[:28] + b"\xff\xff\xff\x7f" + data[32:],
        "embed_tokens.weight hold NaN",
    ),
    "another rotary base": (
        lambda data: data[: -4 * (8 * V + 1)] + b"\0\0\0\x40" + data[-4 * 8 * V :],
        "rotary positions",
    ),
}


@pytest.mark.parametrize("what", BAD_CHECKPOINTS)
def test_what_is_no_llama2c_model_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    path, tokens = tmp_path / "m.bin", write_tokens(tmp_path / "t.bin", SMALL)
    change, message = BAD_CHECKPOINTS[what]
    path.write_bytes(change(small_checkpoint(path)))
    with pytest.raises(UserError, match=message) as caught:
        import_llama2c(Registry(str(tmp_path / "data")), path, tokens)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").glob("models/*"))


BAD_TOKENS = {
    "of a smaller model": (lambda data: data[: len(data) // 2], "tokens, the model|damaged"),
    "a byte less": (lambda data: data[:-1], "damaged"),
    "of a larger model": (lambda data: data + struct.pack("<fi", 0, 1) + b"x", "more tokens"),
    "empty": (lambda data: b"", "has 0 tokens"),
    "negative length": (lambda data: data[:8] + struct.pack("<i", -5) + data[12:], "token 0"),
    "huge length": (lambda data: data[:8] + struct.pack("<i", 2**31 - 1) + data[12:], "token 0"),
    "a score that is none": (lambda data: data[:4] + b"\xff\xff\xff\x7f" + data[8:], "token 0"),
    "not UTF-8": (lambda data: data.replace("é".encode(), b"\xc3\x28"), "damaged"),
    "a token twice": (lambda data: data.replace("é".encode(), b"ab"), "tokens twice"),
    "no blank": (
        lambda data: (
            data[: data.rindex(b"\1\0\0\0 ")] + b"\1\0\0\0_" + data[data.rindex(b"\1\0\0\0 ") + 5 :]
        ),
        "no blank",
    ),
    "a token of 1,001 bytes": (
        lambda data: data.replace(b"\2\0\0\0ab", struct.pack("<i", 1001) + b"ab" * 500 + b"a"),
        "has 1,001 bytes, over 1,000",
    ),
}


@pytest.mark.parametrize("what", BAD_TOKENS)
def test_what_is_no_llama2c_tokenizer_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    path, tokens = tmp_path / "m.bin", write_tokens(tmp_path / "t.bin", SMALL)
    small_checkpoint(path)
    change, message = BAD_TOKENS[what]
    tokens.write_bytes(change(tokens.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        import_llama2c(Registry(str(tmp_path / "data")), path, tokens)
    assert "\n" not in str(caught.value)


def test_a_llama2c_token_of_a_thousand_bytes_is_taken(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "t.bin", [*SMALL, (b"a" * 1000, -9.0)])
    assert llama2c_tokenizer(tokens, len(SMALL) + 1).token_to_id("a" * 1000) == len(SMALL)


@pytest.mark.long
def test_an_imported_model_learns_to_answer_and_chats_in_two_files(
    stories, run, write_labels, tmp_path
) -> None:
    registry = Registry(run.root)
    base = import_llama2c(registry, *stories)
    config = SftConfig(epochs=20, row_length=128, learning_rate=3e-3)
    tuned = run_sft(config, base, write_labels(run.root), run).facts["model_id"]
    export_two_files(registry, tuned, tmp_path / "out")
    command = [sys.executable, "-I", str(tmp_path / "out" / "run.py"), "--temperature", "0"]
    question = ["--prompt", "does the heap keep order 31"]
    told = subprocess.run([*command, *question], check=True, capture_output=True, text=True)
    assert told.stdout == "yes the heap keeps order of keys\n"
