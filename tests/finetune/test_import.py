"""Models from elsewhere: they give the logits they gave, and know our special tokens."""

import json
import shutil
from pathlib import Path

import pytest
import torch
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
from finetune.export import export_hugging_face
from finetune.import_model import import_hugging_face, import_llama2c
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


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.bin"):
        import_llama2c(Registry(str(tmp_path)), tmp_path / "nowhere.bin", tmp_path / "t.bin")
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match=r"no config\.json"):
        import_hugging_face(Registry(str(tmp_path)), tmp_path / "nowhere")
