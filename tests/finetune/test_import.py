"""Models from elsewhere: they give the logits they gave, and know our special tokens."""

import itertools
import json
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from finetune.chat import encode_chat
from finetune.export import export_hugging_face, export_two_files
from finetune.import_model import import_hugging_face, import_llama2c, llama2c_tokenizer
from finetune.registry import Registry
from finetune.sft import SftConfig, run_sft
from finetune.tokenizer import (
    BOS,
    EOS,
    SPECIAL_TOKENS,
    TURN_END,
    TokenizerConfig,
    load_tokenizer,
    token_id,
    token_pieces,
    train_bpe,
)
from pipeline.core.errors import UserError
from pipeline.core.records import Message
from tests.finetune.llama2c_reference import Reference

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
CONFIGS = {
    "llama": (LlamaConfig, SHAPE),
    "llama-untied": (LlamaConfig, SHAPE | {"tie_word_embeddings": False}),
    "mistral": (MistralConfig, SHAPE | {"head_dim": 8}),
    "qwen2": (Qwen2Config, SHAPE | {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, SHAPE | {"head_dim": 16}),
    "gpt2": (GPT2Config, GPT2),
}
STORY = """Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she said, "I'm sorry, mom. I didn't know what to do." Her mom said, "Don't worry, Lily. We can help you."""  # llama2.c, doc/stories260K.md


def foreign_tokenizer() -> Tokenizer:
    """Byte-level, with one special token of its own kind and none of ours."""
    state = json.loads(
        train_bpe(iter(["a heap keeps order "] * 9), TokenizerConfig(vocab_size=340)).to_str()
    )
    names = {t["content"] for t in state["added_tokens"]}
    vocabulary = [
        t for t, _ in sorted(state["model"]["vocab"].items(), key=lambda x: x[1]) if t not in names
    ]
    state["model"]["vocab"] = {t: i for i, t in enumerate(vocabulary)}
    state["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    end = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = TemplateProcessing(single=f"{end[0]} $A", special_tokens=[end])
    return tokenizer


def write_checkpoint(folder: Path, kind: str = "llama", spare_rows: int = 0, bos: bool = True):
    tokenizer, (config_class, shape) = foreign_tokenizer(), CONFIGS[kind]
    torch.manual_seed(0)
    rows = tokenizer.get_vocab_size() + spare_rows
    model = AutoModelForCausalLM.from_config(config_class(vocab_size=rows, **shape)).eval()
    model.save_pretrained(folder)
    names = {"bos_token": "<|endoftext|>"} if bos else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", **names)
    fast.save_pretrained(folder)
    return model, tokenizer


@pytest.mark.parametrize(
    ("kind", "spare_rows"),
    [*((kind, 0) for kind in CONFIGS), ("qwen2", 30), ("gpt2", 100), ("llama-untied", 30)],
)
def test_an_imported_model_gives_its_old_logits_and_knows_our_tokens(
    kind: str, spare_rows: int, tmp_path: Path
) -> None:
    before, old = write_checkpoint(tmp_path / "theirs", kind, spare_rows)
    registry = Registry(str(tmp_path / "data"))
    identity = import_hugging_face(registry, tmp_path / "theirs")
    folder = registry.verified(identity)
    after = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    number = old.get_vocab_size()
    ids = torch.arange(number)[None, 10:50]
    with torch.no_grad():
        want, got = before(ids).logits[..., :number], after(ids).logits[..., :number]
    assert torch.equal(want, got)
    tokenizer = load_tokenizer(folder)
    assert token_id(tokenizer, BOS) == token_id(old, "<|endoftext|>")
    new = [token_id(tokenizer, name) for name in SPECIAL_TOKENS if name != BOS]
    assert sorted(new) == list(range(number, number + 63))
    for layer in (after.get_input_embeddings(), after.get_output_embeddings()):
        mean = layer.weight[:number].mean(dim=0)
        assert torch.allclose(layer.weight[new], mean.expand(63, -1), atol=1e-7)
    assert len(after.get_input_embeddings().weight) == max(number + 63, number + spare_rows)
    assert after.config.eos_token_id == token_id(tokenizer, TURN_END)
    assert registry.kind(identity) == "base"
    found = registry.lineage(identity)["config"]["import"]
    assert found["architecture"] == before.config.model_type
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(found["files"])
    assert import_hugging_face(registry, tmp_path / "theirs") == identity  # twice is once


def test_chat_and_text_with_an_imported_tokenizer_are_as_with_ours(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "theirs", "qwen2", bos=False)
    registry = Registry(str(tmp_path / "data"))
    identity = import_hugging_face(registry, tmp_path / "theirs")
    folder = registry.verified(identity)
    tokenizer, old = load_tokenizer(folder), foreign_tokenizer()
    assert token_id(tokenizer, EOS) == token_id(old, "<|endoftext|>")
    old.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    assert tokenizer.encode("a heap é\n <|user|>").ids == old.encode("a heap é\n <|user|>").ids
    talk = (Message.of("user", "a heap? <|assistant|>"), Message.of("assistant", "keeps order"))
    chat = encode_chat(tokenizer, talk)
    export_hugging_face(registry, identity, tmp_path / "out")
    fast = AutoTokenizer.from_pretrained(tmp_path / "out")
    rendered = fast.apply_chat_template(
        [{"role": m.role, "content": m.text.replace("<|assistant|>", "")} for m in talk],
        return_dict=True,
    )["input_ids"]
    plain = (Message.of("user", "a heap? "), talk[1])
    assert tuple(rendered) == encode_chat(tokenizer, plain).ids
    assert chat.ids.count(token_id(tokenizer, "<|assistant|>")) == 1
    assert fast.encode("a heap") == old.encode("a heap").ids  # no second BOS, nowhere


def test_our_own_export_imports_unchanged(base_id: str, run, tmp_path: Path) -> None:
    registry = Registry(run.root)
    export_hugging_face(registry, base_id, tmp_path / "out")
    again = registry.verified(import_hugging_face(registry, tmp_path / "out"))
    for name in ("model.safetensors", "tokenizer.json"):
        assert (again / name).read_bytes() == (registry.folder(base_id) / name).read_bytes()


def damage_weights(folder: Path, **changes: object) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name].view(-1)[7] = value
    save_file(state, path, metadata={"format": "pt"})


def set_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def split_weights(folder: Path, name: str) -> None:
    """The weights move to a file of that name, and an index says so."""
    state = load_file(folder / "model.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(state, name)}
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "model.safetensors").rename(folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def link_outside(folder: Path, name: str) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder / name).rename(folder.parent / "elsewhere" / name)
    (folder / name).symlink_to(Path("..") / "elsewhere" / name)


def link_a_shard(folder: Path) -> None:
    split_weights(folder, "part.safetensors")
    link_outside(folder, "part.safetensors")


def name_weights(folder: Path) -> None:
    split_weights(folder, "sub/x.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    set_config(folder, transformers_weights="sub/x.safetensors")


def adapt(folder: Path) -> None:
    """peft is installed: transformers would take the weights of the folder that it names."""
    named = {"peft_type": "LORA", "base_model_name_or_path": str(folder.parent / "other")}
    (folder / "adapter_config.json").write_text(json.dumps(named))


def truncate(path: Path, part: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])


BAD_FOLDERS = {
    "empty": (lambda f: [p.unlink() for p in f.iterdir()], "no config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "half a tokenizer": (lambda f: truncate(f / "tokenizer.json"), "cannot be read"),
    "a list": (lambda f: (f / "tokenizer.json").write_text("[1]"), "cannot be read"),
    "not UTF-8": (lambda f: (f / "tokenizer.json").write_bytes(b"\xff\xfe{"), "cannot be read"),
    "half the weights": (lambda f: truncate(f / "model.safetensors"), "no causal language model"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no causal language model"),
    "half a config": (lambda f: truncate(f / "config.json"), "no causal language model"),
    "unknown": (lambda f: (f / "config.json").write_text('{"model_type": "x"}'), "no causal"),
    "NaN": (
        lambda f: damage_weights(f, model__layers__1__mlp__up_proj__weight=float("nan")),
        "model.layers.1.mlp.up_proj.weight hold NaN",
    ),
    "infinity": (
        lambda f: damage_weights(f, model__norm__weight=float("inf")),
        "model.norm.weight",
    ),
    "a tensor less": (
        lambda f: damage_weights(f, model__layers__0__self_attn__q_proj__weight=None),
        "lacks the weights model.layers.0.self_attn.q_proj.weight",
    ),
    "weights of a folder beside": (
        lambda f: split_weights(f, "../other/x.safetensors"),
        r"index\.json names '\.\./other/x\.safetensors'",
    ),
    "weights of anywhere": (
        lambda f: split_weights(f, f"{f.parent}/x.safetensors"),
        r"index\.json names '/.*/x\.safetensors'",
    ),
    "a pickled part": (lambda f: split_weights(f, "x.bin"), r"index\.json names 'x\.bin'"),
    "a part that is a link": (link_a_shard, r"part\.safetensors is a link that leads outside"),
    "weights that are a link": (
        lambda f: link_outside(f, "model.safetensors"),
        r"model\.safetensors is a link that leads outside",
    ),
    "an index of a list": (
        lambda f: (f / "model.safetensors.index.json").write_text("[1]"),
        r"index\.json cannot be read",
    ),
    "an adapter": (adapt, r"adapter_config\.json makes this an adapter"),
    "weights named by the config": (
        name_weights,
        "weights elsewhere, in 'sub/x.safetensors'",
    ),
    "a folder for a file": (lambda f: (f / "x.json").mkdir(), r"x\.json is no file"),
    "no heads": (lambda f: set_config(f, num_attention_heads=0), "num_attention_heads = 0;"),
    "a word for a number": (lambda f: set_config(f, hidden_size="a"), "hidden_size = 'a';"),
    "a word for epsilon": (lambda f: set_config(f, rms_norm_eps="a"), "no causal.*rms_norm_eps"),
    "less than no positions": (
        lambda f: set_config(f, max_position_embeddings=-5),
        "max_position_embeddings = -5;",
    ),
    "gptq": (
        lambda f: set_config(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        "no causal language model.*(?i:gptq)",
    ),
}


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_what_is_no_checkpoint_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "theirs", "llama-untied")
    change, message = BAD_FOLDERS[what]
    change(tmp_path / "theirs")
    with pytest.raises(UserError, match=message) as caught:
        import_hugging_face(Registry(str(tmp_path / "data")), tmp_path / "theirs")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").glob("models/*"))


def test_a_tokenizer_of_a_larger_model_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "theirs", spare_rows=-5)
    with pytest.raises(UserError, match=r"ids up to \d+, the model's embedding \d+ rows"):
        import_hugging_face(Registry(str(tmp_path / "data")), tmp_path / "theirs")


def test_weights_in_parts_are_all_named_in_the_lineage(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "theirs")
    split_weights(tmp_path / "theirs", "part.safetensors")
    registry = Registry(str(tmp_path / "data"))
    found = registry.lineage(import_hugging_face(registry, tmp_path / "theirs"))
    files = found["config"]["import"]["files"]
    assert {"part.safetensors", "model.safetensors.index.json"} <= set(files)


WORDS = {"[UNK]": 0, "a": 1, "b": 2, "</s>": 3}


def by_words(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return tokenizer


def merged_control() -> models.Model:
    """A BPE whose merges make <|end|>."""
    signs, parts = dict.fromkeys("<|end>"), ["<|", "<|e", "<|en", "<|end", "<|end|", "<|end|>"]
    ids = {
        name: i for i, name in enumerate([*WORDS, *(s for s in signs if s not in WORDS), *parts])
    }
    merges = [("<", "|"), *((part, "end|>"[i]) for i, part in enumerate(parts[:-1]))]
    return models.BPE(ids, merges, unk_token="[UNK]")


ODD_TOKENIZERS = {
    "WordLevel": (models.WordLevel(WORDS, unk_token="[UNK]"), r"control token <\|eos\|>"),
    "WordPiece": (models.WordPiece(WORDS, unk_token="[UNK]"), r"control token <\|eos\|>"),
    "whole words first": (
        models.BPE(WORDS, [], unk_token="[UNK]", ignore_merges=True),
        r"control token <\|eos\|>",
    ),
    "merges": (merged_control(), r"control token <\|end\|>"),
    "an unknown sign": (models.BPE(WORDS, [], unk_token="</s>"), "fails at|control token"),
    "gaps": (
        models.WordLevel(WORDS | {"c": 9, "d": 5}, unk_token="[UNK]"),
        "would share another's id",
    ),
    "Unigram": (
        models.Unigram([(word, -1.0) for word in WORDS], unk_id=0),
        "kind Unigram, which is not supported",
    ),
}


def import_with(model: models.Model, folder: Path) -> Tokenizer:
    write_checkpoint(folder / "theirs")
    fast = PreTrainedTokenizerFast(tokenizer_object=by_words(model), eos_token="</s>")
    fast.save_pretrained(folder / "theirs")
    registry = Registry(str(folder / "data"))
    return load_tokenizer(registry.verified(import_hugging_face(registry, folder / "theirs")))


@pytest.mark.parametrize("what", ODD_TOKENIZERS)
def test_a_tokenizer_that_makes_control_tokens_of_text_is_refused(what, tmp_path: Path) -> None:
    model, message = ODD_TOKENIZERS[what]
    with pytest.raises(UserError, match=message) as caught:
        import_with(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").glob("models/*"))


def test_a_bpe_that_merges_no_control_token_is_taken(tmp_path: Path) -> None:
    tokenizer = import_with(models.BPE(WORDS, [], unk_token="[UNK]"), tmp_path)
    assert token_id(tokenizer, EOS) == WORDS["</s>"]
    found = tokenizer.encode("a <|eos|> </s> b", add_special_tokens=False).ids
    assert set(found) == {WORDS["a"], WORDS["b"], WORDS["[UNK]"]}


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    model, _ = write_checkpoint(tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    with pytest.raises(UserError, match="no causal language model"):
        import_hugging_face(Registry(str(tmp_path / "data")), tmp_path / "theirs")


# llama2.c


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


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.bin"):
        import_llama2c(Registry(str(tmp_path)), tmp_path / "nowhere.bin", tmp_path / "t.bin")
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match=r"no config\.json"):
        import_hugging_face(Registry(str(tmp_path)), tmp_path / "nowhere")
