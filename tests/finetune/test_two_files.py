"""run.py, alone with numpy, says what finetune/generate.py says; and encodes as tokenizers does."""

import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.bpe_parts import bpe_parts
from finetune.chat import encode_prompt
from finetune.export import RUN_PROGRAM, export_two_files, tokens_header
from finetune.generate import Sampling, generate
from finetune.import_model import import_llama2c
from finetune.model import load_language_model
from finetune.registry import Registry
from finetune.tokenizer import (
    BOS,
    EOS,
    SPECIAL_TOKENS,
    TURN_END,
    TokenizerConfig,
    load_tokenizer,
    token_id,
    train_bpe,
)
from pipeline.core.errors import UserError
from pipeline.core.records import Message
from tests.finetune.llama2c_reference import Reference

spec = importlib.util.spec_from_file_location("two_files_run", RUN_PROGRAM)
run_py = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_py)

# Nothing but numpy and the standard library can be imported, and nothing can reach a network.
ALONE = """
import runpy, sys
class Alone:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] not in {*sys.stdlib_module_names, 'numpy'}:
            raise ModuleNotFoundError(name)
def hook(event, arguments):
    if event.startswith(('socket.', 'urllib.', 'subprocess.', 'os.system')):
        raise RuntimeError(event)
sys.meta_path.insert(0, Alone())
sys.addaudithook(hook)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def told(folder: Path, *arguments: str, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", "-c", ALONE, str(folder / "run.py"), *arguments]
    return subprocess.run(command, input=typed, capture_output=True, check=False, timeout=60)


def answer(folder: Path, prompt: str, *more: str) -> str:
    result = told(folder, "--prompt", prompt, "--temperature", "0", "--max-tokens", "40", *more)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stderr == b""
    return result.stdout.decode()


def noisy_model(tokenizer: Tokenizer, tied: bool = True) -> LlamaForCausalLM:
    """Random, with weights so large that what it says depends on every token before."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.25,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 5e4},
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> SimpleNamespace:
    """An exported chat model, and the same in torch."""
    root = tmp_path_factory.mktemp("chat")
    words = iter(["the heap keeps order of keys, and a list sorts items. "] * 20)
    tokenizer = train_bpe(words, TokenizerConfig(vocab_size=400))
    model = noisy_model(tokenizer)
    registry = Registry(str(root / "data"))
    identity = registry.publish(model, tokenizer, {"kind": "sft"})
    export_two_files(registry, identity, root / "out")
    return SimpleNamespace(model=model, tokenizer=tokenizer, folder=root / "out", root=root)


def greedy(model, tokenizer: Tokenizer, ids: list[int], number: int = 40) -> tuple[list[int], str]:
    """The ids and the text of generate's answer, its end not among them."""
    stops = tuple(token_id(tokenizer, name) for name in (BOS, EOS, TURN_END))
    sampling = Sampling(number, temperature=0.0, stop_ids=stops)
    found = generate(model, [ids], sampling, 0)[0]
    new = list(found.ids[:-1] if found.finished else found.ids)
    return new, tokenizer.decode(new, skip_special_tokens=True)


def test_run_py_is_small_and_leaves_as_it_stands(chat) -> None:
    source = RUN_PROGRAM.read_text()
    assert len(source.splitlines()) <= 500
    assert (chat.folder / "run.py").read_text() == source
    assert sorted(p.name for p in chat.folder.iterdir()) == ["parameters.bin", "run.py"]


@pytest.mark.parametrize(
    "text", ["does the heap keep order", "naïve 日本 🙂  \n x", "<|assistant|>"]
)
@pytest.mark.parametrize("system", ["", "be brief"])
def test_a_chat_models_answer_is_generates(chat, text: str, system: str) -> None:
    messages = [Message.of("system", system)] * bool(system) + [Message.of("user", text)]
    _, want = greedy(chat.model, chat.tokenizer, encode_prompt(chat.tokenizer, messages))
    assert len(want) > 10
    assert answer(chat.folder, text, "--system", system) == want + "\n"


def test_a_conversation_goes_on_from_the_tokens_that_were_said(chat) -> None:
    typed = ["a list", "and é?", "", "sorts"]
    ids, want = [token_id(chat.tokenizer, BOS)], ""
    for text in filter(None, typed):
        ids += encode_prompt(chat.tokenizer, [Message.of("user", text)])[1:]
        new, said = greedy(chat.model, chat.tokenizer, ids, 15)
        ids += [*new, token_id(chat.tokenizer, TURN_END)]
        want += said + "\n"
    result = told(
        chat.folder, "--temperature", "0", "--max-tokens", "15", typed="\n".join(typed).encode()
    )
    assert (result.stdout.decode(), result.stderr, result.returncode) == (want, b"", 0)


def test_a_base_model_goes_on_with_the_text(chat, tmp_path) -> None:
    registry, model = Registry(str(tmp_path / "data")), noisy_model(chat.tokenizer, tied=False)
    identity = registry.publish(model, chat.tokenizer, {"kind": "base"})
    export_two_files(registry, identity, tmp_path / "out")
    for text in ("the heap", ""):
        ids = [token_id(chat.tokenizer, BOS), *chat.tokenizer.encode(text).ids]
        assert answer(tmp_path / "out", text) == text + greedy(model, chat.tokenizer, ids)[1] + "\n"


@pytest.fixture(scope="module")
def stories(shared_data, tmp_path_factory) -> SimpleNamespace:
    source = next(shared_data("models/stories260K").rglob("stories260K.bin")).parent
    files = source / "stories260K.bin", source / "tok512.bin"
    root = tmp_path_factory.mktemp("stories")
    registry = Registry(str(root / "data"))
    identity = import_llama2c(registry, *files)
    export_two_files(registry, identity, root / "out")
    folder = registry.folder(identity)
    return SimpleNamespace(
        folder=root / "out",
        reference=Reference(*files),
        model=load_language_model(folder).eval(),
        tokenizer=load_tokenizer(folder),
    )


@pytest.mark.parametrize("text", ["", "Once upon a time, Tim saw", "“Café”, Lily said"])
def test_stories_says_what_llama2c_says(stories, text: str) -> None:
    told_now = told(stories.folder, "--prompt", text, "--temperature", "0", "--max-tokens", "120")
    prompt = [1, *stories.reference.encode(text)]
    ids = stories.reference.greedy(prompt, len(prompt) + 119)
    assert told_now.stdout.decode() == stories.reference.text(ids[1:]).decode() + "\n"
    new, said = greedy(stories.model, stories.tokenizer, prompt, 120)
    assert prompt + new == ids
    assert len(said) > 200


# The network


def test_logits_are_torchs_whatever_is_in_the_cache(chat) -> None:
    llama = run_py.Llama(*run_py.read_parameters(chat.folder / "parameters.bin"))
    draw = random.Random(1)
    ids = [draw.randrange(chat.tokenizer.get_vocab_size()) for _ in range(100)]
    for length in (1, 7, 8, 30, 100, 12, 31):
        now = ids[:length] if length != 12 else [*ids[:5], *range(100, 107)]
        with torch.no_grad():
            want = chat.model(torch.tensor([now])).logits[0, -1].numpy()
        got = llama.next_logits(now)
        assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
        assert got.dtype == np.float32


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = np.array([2.0, 1.0, 0.0, -50.0], dtype=np.float32)
    dice = np.random.default_rng(0)
    for temperature in (0.5, 1.0, 2.0):
        drawn = [run_py.draw(logits, temperature, dice) for _ in range(4000)]
        weights = np.exp(logits.astype(np.float64) / temperature)
        want = weights / weights.sum()
        share = np.bincount(drawn, minlength=4) / 4000
        assert np.all(np.abs(share - want) < 4 * np.sqrt(want * (1 - want) / 4000) + 1e-9)
    assert {run_py.draw(logits, 1e-3, dice) for _ in range(99)} == {0}
    assert run_py.draw(logits, 0, dice) == 0


def test_a_seed_gives_the_same_answer_and_another_another(chat) -> None:
    said = [
        told(
            chat.folder, "--prompt", "hi", "--temperature", "1", "--max-tokens", "9", "--seed", seed
        ).stdout
        for seed in ("1", "1", "2")
    ]
    assert said[0] == said[1] != said[2]


# Tokens


def tokens_of(tokenizer: Tokenizer):
    parts = bpe_parts(tokenizer, tokenizer.get_vocab_size())
    return run_py.Tokens(json.loads(json.dumps(tokens_header(parts))))


@pytest.fixture(scope="module")
def gpt2(shared_data) -> tuple[Tokenizer, object]:
    folder = next(shared_data("models/gpt2-tokenizer").rglob("gpt2_vocab.json")).parent
    tokenizer = Tokenizer(
        models.BPE.from_file(str(folder / "gpt2_vocab.json"), str(folder / "gpt2_merges.txt"))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.encode_special_tokens = True
    return tokenizer, tokens_of(tokenizer)


PARTS = [
    "'s",
    "'LL",
    "'",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\x85",
    "\x1c",
    "\u2028",
    "\u200b",
    "a",
    "Zß",
    "é",
    "e\u0301",
]
PARTS += [
    "日本",
    "한",
    "🙂",
    "👩‍👧",
    "1",
    "½",
    "²",
    "٣",
    "Ⅷ",
    "\0",
    "\ufffd",
    "\ufeff",
    "_",
    "-–",
    "“",
    "<|user|>",
    "the",
    " of",
]
PARTS += [
    chr(c)
    for c in (0x1C89, 0xA7CB, 0x105C0, 0x10D40, 0x1E5F0, 0x31350, 0xE000, 0x10FFFF, 0x3000, 0x180E)
]


def hostile_texts(number: int) -> list[str]:
    draw = random.Random(7)
    texts = ["".join(draw.choices(PARTS, k=draw.randint(1, 25))) for _ in range(number)]
    for _ in range(number // 4):  # any character there is, assigned or not
        points = [draw.randrange(0x110000) for _ in range(30)]
        texts.append("".join(chr(c) for c in points if not 0xD800 <= c < 0xE000))
    return texts


def assert_encodes_alike(tokenizer: Tokenizer, ours, text: str) -> None:
    want = tokenizer.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == want, repr(text)


def test_gpt2s_tokens_are_the_librarys_on_prose_and_on_hostile_text(gpt2, shared_data) -> None:
    folder = next(shared_data("models/gpt2-tokenizer").rglob("gpt2_vocab.json")).parent
    for name in ("corpus.en", "german.txt", "address.txt"):
        assert_encodes_alike(*gpt2, (folder / name).read_text(encoding="utf-8"))
    for text in hostile_texts(1500):
        assert_encodes_alike(*gpt2, text)


def test_every_character_stands_in_the_same_word(gpt2) -> None:
    """Behind a letter and between spaces; one of 31 of Unicode's, and all of the first 12,288."""
    points = [*range(0x3000), *range(0x3000, 0x110000, 31)]
    every = [chr(c) for c in points if not 0xD800 <= c < 0xE000]
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for at in range(0, len(every), 2000):
        text = "".join(f"a{c}1 {c}  " for c in every[at : at + 2000])
        want = [text[a:b] for _, (a, b) in cut.pre_tokenize_str(text)]
        assert gpt2[1].words.findall(text) == want


OURS = train_bpe(
    iter(["the heap keeps order of keys 12 naïve — "] * 20), TokenizerConfig(vocab_size=420)
)
OUR_TOKENS = tokens_of(OURS)


@settings(max_examples=300)
@given(st.text(max_size=40))
def test_any_text_is_cut_alike(text: str) -> None:
    assert_encodes_alike(OURS, OUR_TOKENS, text)
    pieces = b"".join(OUR_TOKENS.pieces[i] for i in OUR_TOKENS.encode(text))
    assert pieces.decode() == text


def test_stories_tokens_are_the_librarys(stories) -> None:
    ours = run_py.Tokens(run_py.read_parameters(stories.folder / "parameters.bin")[0])
    for text in [*hostile_texts(400), "", " ", "they said that they liked it " * 30]:
        assert_encodes_alike(stories.tokenizer, ours, text)


def test_a_tokenizer_as_llama_2_has_it_is_cut_alike() -> None:
    """SentencePiece's sign for a space, by a normalizer of two steps."""
    small = ["▁", "a", "b", "▁a", "ab", "▁ab", "é"]
    vocabulary = {
        name: i for i, name in enumerate(["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *small])
    }
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.encode_special_tokens = True
    ours, draw = tokens_of(tokenizer), random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices(["a", "b", " ", "▁", "é", "日", "\n", "<|user|>"], k=12))
        assert_encodes_alike(tokenizer, ours, text)
    assert ours.encode("") == []


def test_tokenizers_that_cut_in_other_ways_are_refused() -> None:
    def changed(change: Callable[[dict], object]) -> Tokenizer:
        state = json.loads(OURS.to_str())
        change(state)
        return Tokenizer.from_str(json.dumps(state))

    lower = {"type": "Lowercase"}
    for change in (
        lambda s: s["pre_tokenizer"].update(add_prefix_space=True),
        lambda s: s["pre_tokenizer"].update(use_regex=False),
        lambda s: s.update(normalizer=lower),
        lambda s: s.update(pre_tokenizer={"type": "Whitespace"}),
        lambda s: s.update(pre_tokenizer=None),
        lambda s: s["model"].update(ignore_merges=True),
        lambda s: s["model"].update(dropout=0.5),
        lambda s: s["model"].update(end_of_word_suffix="</w>"),
    ):
        with pytest.raises(UserError, match="export it with hugging-face"):
            bpe_parts(changed(change), 420)
    without = changed(lambda s: s["model"]["vocab"].pop("Ā"))
    with pytest.raises(UserError, match="no token for the byte"):
        bpe_parts(without, 420)
    with pytest.raises(UserError, match="ids, the model 300 rows"):
        bpe_parts(OURS, 300)


def test_a_long_text_without_a_blank_is_cut_in_time(chat) -> None:
    ours = tokens_of(chat.tokenizer)
    text = "ab" * 50_000  # one word; all pairs tried anew after each merge would take hours
    assert_encodes_alike(chat.tokenizer, ours, text)


# What is not as it should be


def change_byte(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {
    "empty": (lambda data: b"", "is no parameters file"),
    "another kind": (lambda data: b"GGUF" + data, "is no parameters file"),
    "40 bytes": (lambda data: data[:40], "is no parameters file"),
    "cut in the header": (lambda data: data[:500], "cut short: 500 bytes end in its header"),
    "a number less": (lambda data: data[:-4], "is cut short"),
    "half": (lambda data: data[: len(data) // 2], "is cut short"),
    "longer": (lambda data: data + b"\0" * 4, "is too long"),
    "header changed": (lambda data: change_byte(data, 99), "its header was changed"),
    "length changed": (lambda data: change_byte(data, 14), "end in its header"),
    "a weight changed": (lambda data: change_byte(data, len(data) - 9), "do not have their sha256"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_found_and_named(what: str, chat, tmp_path) -> None:
    change, message = DAMAGE[what]
    path = tmp_path / "parameters.bin"
    path.write_bytes(change((chat.folder / "parameters.bin").read_bytes()))
    with pytest.raises(run_py.BadFileError, match=message) as caught:
        run_py.read_parameters(path)
    assert str(path) in str(caught.value)


def test_mistakes_are_one_line_and_status_2(chat, tmp_path) -> None:
    (tmp_path / "run.py").write_text(RUN_PROGRAM.read_text())
    alone = told(tmp_path, "--prompt", "hi")
    assert alone.returncode == 2
    assert alone.stderr.decode().startswith(f"cannot read {tmp_path / 'parameters.bin'}: No such")
    assert len(alone.stderr.splitlines()) == 1
    text = b'{"tensors": [], "sha256": "' + run_py.hashlib.sha256().hexdigest().encode() + b'"}'
    start = run_py.MAGIC + len(text).to_bytes(8, "little") + run_py.hashlib.sha256(text).digest()
    (tmp_path / "parameters.bin").write_bytes(start + text)
    empty = told(tmp_path, "--prompt", "hi")
    assert (empty.returncode, len(empty.stderr.splitlines())) == (2, 1)
    for wrong in (
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--max-tokens", "0"],
        ["--seed", "-1"],
    ):
        result = told(chat.folder, "--prompt", "hi", *wrong)
        assert result.returncode == 2
        assert b"is 1 or more" in result.stderr


def test_bytes_that_are_no_text_and_texts_that_are_too_long_are_answered(chat) -> None:
    typed = b"\xff\xfe heap\n" + b"list " * 200 + b"\nkeys\n"
    result = told(chat.folder, "--temperature", "0", "--max-tokens", "10", typed=typed)
    assert (result.returncode, result.stderr) == (0, b"")
    # the one that does not fit is said to be too long, and forgotten before the next
    prompts = [
        encode_prompt(chat.tokenizer, [Message.of("user", t)])
        for t in ("\ufffd\ufffd heap", "keys")
    ]
    first, last = (greedy(chat.model, chat.tokenizer, ids, 10)[1] for ids in prompts)
    said = result.stdout.decode()
    assert said.startswith(first + "\n[")
    assert "tokens are too many: this model has 128 places]\n" in said
    assert said.endswith("]\n" + last + "\n")


def test_the_oldest_turns_are_forgotten_when_the_places_are_used_up(chat) -> None:
    options = SimpleNamespace(temperature=0, seed=0, max_tokens=10, system="be brief")
    talk = run_py.Talk(*run_py.read_parameters(chat.folder / "parameters.bin"), options)
    for i in range(30):
        list(talk.reply(f"keys {i}"))
        assert len(talk.llama.seen) <= 128
    system = encode_prompt(chat.tokenizer, [Message.of("system", "be brief")])[:-1]
    assert talk.llama.seen[: len(system)] == system
    assert talk.turns[0][0] == token_id(chat.tokenizer, "<|user|>")
    assert 2 < len(talk.turns) < 20


def test_python_knows_the_spaces_of_unicode_that_run_py_has() -> None:
    spaces = run_py.re.compile(f"[{run_py.SPACE}]")
    found = {c for c in map(chr, range(0x110000)) if spaces.match(c)}
    assert found == {c for c in map(chr, range(0x110000)) if c.isspace()} - set("\x1c\x1d\x1e\x1f")
