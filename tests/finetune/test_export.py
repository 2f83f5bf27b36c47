"""Every form that a model leaves in is read back by other means, and gives the same logits."""

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from finetune.bpe_parts import bpe_parts
from finetune.chat import encode_prompt
from finetune.export import (
    export_hugging_face,
    export_llama2c,
    export_two_files,
    find_model,
    llama2c_order,
    new_folder,
)
from finetune.gguf_file import export_gguf
from finetune.import_model import import_llama2c
from finetune.model import reward_model_from
from finetune.registry import Registry
from finetune.tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS, TURN_END, token_id
from pipeline.core.errors import UserError
from pipeline.core.records import Message
from tests.conftest import REPOSITORY
from tests.finetune.llama2c_reference import Reference

TEXT = "the heap keeps order of keys, and a liſt — naïve 日本 🙂\n  sorts   items"
EXPORTS = (export_hugging_face, export_gguf, export_llama2c, export_two_files)


def llama(tokenizer, **changes) -> LlamaForCausalLM:
    """Grouped heads and an odd number of layers; weights large enough that every part counts."""
    torch.manual_seed(3)
    shape = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "initializer_range": 0.15,
    }
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()
    for weight in model.parameters():
        if weight.ndim == 1:  # norms that are not all ones
            weight.data += 0.3 * torch.randn_like(weight)
    return model


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "data"))


def logits_of(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def test_hugging_faces_folder_loads_with_transformers_alone(registry, tokenizer, tmp_path) -> None:
    model = llama(tokenizer)
    identity = registry.publish(model, tokenizer, {"kind": "sft"})
    export_hugging_face(registry, identity, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    turn = [{"role": "user", "content": TEXT}]
    fast = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = fast.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == encode_prompt(tokenizer, (Message.of("user", TEXT),))
    assert np.array_equal(logits_of(again, ids), logits_of(model, ids))


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_gives_the_same_logits_under_new_ids(
    eps: float, tied: bool, registry, tokenizer, tmp_path
) -> None:
    model = llama(tokenizer, rms_norm_eps=eps, tie_word_embeddings=tied)
    # as small as at the start of training, where another epsilon would show
    model.model.embed_tokens.weight.data *= 0.01 if not tied else 0.1
    identity = registry.publish(model, tokenizer, {"kind": "base"})
    export_llama2c(registry, identity, tmp_path / "out")
    reference = Reference(tmp_path / "out" / "model.bin", tmp_path / "out" / "tokenizer.bin")
    order = llama2c_order(bpe_parts(tokenizer, tokenizer.get_vocab_size()))
    ids = [token_id(tokenizer, BOS), *tokenizer.encode(TEXT).ids]
    theirs = [order.index(i) for i in ids]
    want = logits_of(model, ids)[:, order]
    assert np.abs(reference.forward(theirs) - want).max() < 1e-5 * max(1, np.abs(want).max())
    assert [order[1], order[2]] == [token_id(tokenizer, BOS), token_id(tokenizer, EOS)]
    assert reference.text(theirs[1:]).decode() == TEXT


def test_what_run_c_makes_of_a_text_is_that_text(registry, tokenizer, model, tmp_path) -> None:
    identity = registry.publish(model, tokenizer, {"kind": "base"})
    export_llama2c(registry, identity, tmp_path / "out")
    reference = Reference(tmp_path / "out" / "model.bin", tmp_path / "out" / "tokenizer.bin")
    assert [reference.vocabulary[3 + b] for b in range(1, 256)] == [
        bytes([b]) for b in range(1, 256)
    ]
    ids = reference.encode(TEXT)
    assert reference.text(ids).decode() == TEXT
    assert len(ids) < len(TEXT.encode())  # it merges


def test_an_imported_llama2c_model_leaves_as_it_came(shared_data, registry, tmp_path) -> None:
    folder = next(shared_data("models/stories260K").rglob("stories260K.bin")).parent
    identity = import_llama2c(registry, folder / "stories260K.bin", folder / "tok512.bin")
    export_llama2c(registry, identity, tmp_path / "out")
    before = Reference(folder / "stories260K.bin", folder / "tok512.bin")
    after = Reference(tmp_path / "out" / "model.bin", tmp_path / "out" / "tokenizer.bin")
    for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "norm", "norm_1", "norm_2"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    assert np.array_equal(before.embedding, after.embedding[:512])
    for text in ("Once upon a time", "heap “é” aaa   \n日", "she said, that they liked it"):
        assert before.encode(text) == after.encode(text)
    tables = [
        (f / n).read_bytes()
        for f, n in ((folder, "stories260K.bin"), (tmp_path / "out", "model.bin"))
    ]
    theirs, ours = (np.frombuffer(t, "<f4", offset=len(t) - 4 * 512 * 8) for t in tables)
    assert np.abs(theirs - ours).max() < 1e-4


# GGUF


def read_gguf(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return fields, tensors


def as_llama_cpp_computes(fields: dict, tensors: dict[str, np.ndarray]) -> LlamaForCausalLM:
    """transformers' Llama from the file alone, its rotary pairs put where transformers has them."""
    heads, kv = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    size = fields["llama.rope.dimension_count"]
    config = LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings="output.weight" not in tensors,
    )
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    layer = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    layer |= {f"attn_{n}": f"self_attn.{n}_proj" for n in "qkv"} | {
        "attn_output": "self_attn.o_proj"
    }
    layer |= {f"ffn_{n}": f"mlp.{n}_proj" for n in ("gate", "up", "down")}
    state = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[0] != "blk":
            state[f"{names[parts[0]]}.weight"] = torch.tensor(tensor)
            continue
        if parts[2] in ("attn_q", "attn_k"):  # row 2i of a head belongs to i, row 2i+1 to i + half
            rows = np.arange(len(tensor)).reshape(-1, size)
            where = np.concatenate([rows[:, 0::2], rows[:, 1::2]], axis=1).ravel()
            tensor = tensor[where]
        state[f"model.layers.{parts[1]}.{layer[parts[2]]}.weight"] = torch.tensor(tensor)
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


REQUIRED = {  # what llama.cpp will not load a llama without (src/llama-model.cpp, llama-vocab.cpp)
    "general.architecture",
    "llama.context_length",
    "llama.embedding_length",
    "llama.block_count",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.layer_norm_rms_epsilon",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
}


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_gives_the_same_logits_to_the_bit(tied: bool, registry, tokenizer, tmp_path) -> None:
    model = llama(
        tokenizer,
        tie_word_embeddings=tied,
        rope_parameters={"rope_theta": 5e5, "rope_type": "default"},
    )
    identity = registry.publish(model, tokenizer, {"kind": "sft"})
    export_gguf(registry, identity, tmp_path / "out")
    fields, tensors = read_gguf(tmp_path / "out" / "model.gguf")
    ids = encode_prompt(tokenizer, (Message.of("user", TEXT),))
    assert np.array_equal(
        logits_of(as_llama_cpp_computes(fields, tensors), ids), logits_of(model, ids)
    )
    assert fields.keys() >= REQUIRED | {"tokenizer.ggml.merges", "tokenizer.chat_template"}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    assert np.array_equal(logits_of(theirs.eval(), ids), logits_of(model, ids))
    fast = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    assert fast.encode(TEXT, add_special_tokens=False) == tokenizer.encode(TEXT).ids


@pytest.mark.parametrize(("precision", "bound"), [("f16", 0.01), ("q8_0", 0.1)])
def test_gguf_in_fewer_bits_is_near(precision, bound, registry, tokenizer, tmp_path) -> None:
    model = llama(tokenizer)
    identity = registry.publish(model, tokenizer, {"kind": "base"})
    export_gguf(registry, identity, tmp_path / "out", precision)
    export_gguf(registry, identity, tmp_path / "whole")
    sizes = [(tmp_path / name / "model.gguf").stat().st_size for name in ("out", "whole")]
    assert sizes[0] < 0.62 * sizes[1]
    fields, tensors = read_gguf(tmp_path / "out" / "model.gguf")
    ids = [token_id(tokenizer, BOS), *tokenizer.encode(TEXT).ids]
    got, want = logits_of(as_llama_cpp_computes(fields, tensors), ids), logits_of(model, ids)
    assert np.sqrt(((got - want) ** 2).mean()) < bound * want.std()


def test_rows_that_q8_0_cannot_cut_are_f16_and_what_f16_cannot_hold_is_refused(
    registry, tokenizer, tmp_path
) -> None:
    model = llama(tokenizer, intermediate_size=70)
    export_gguf(
        registry, registry.publish(model, tokenizer, {"kind": "base"}), tmp_path / "a", "q8_0"
    )
    kinds = {
        t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "a" / "model.gguf").tensors
    }
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_norm.weight"] == "F32"
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
    identity = registry.publish(model, tokenizer, {"kind": "base"})
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.up_proj\.weight .* beyond f16; use f32"):
        export_gguf(registry, identity, tmp_path / "b", "f16")
    assert not (tmp_path / "b").exists()


def test_ggufs_tokenizer_is_ours(registry, tokenizer, model, tmp_path) -> None:
    identity = registry.publish(model, tokenizer, {"kind": "sft"})
    export_gguf(registry, identity, tmp_path / "out")
    fields, _ = read_gguf(tmp_path / "out" / "model.gguf")
    state = json.loads(tokenizer.to_str())["model"]
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens == [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    assert [m.split(" ") for m in fields["tokenizer.ggml.merges"]] == state["merges"]
    kinds = dict(zip(tokens, fields["tokenizer.ggml.token_type"], strict=True))
    assert {t for t, kind in kinds.items() if kind == gguf.TokenType.CONTROL} == set(SPECIAL_TOKENS)
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    for key, name in (("bos", BOS), ("eos", TURN_END), ("eot", TURN_END), ("padding", PAD)):
        assert fields[f"tokenizer.ggml.{key}_token_id"] == token_id(tokenizer, name)
    assert fields["tokenizer.ggml.add_space_prefix"] is False
    template = fields["tokenizer.chat_template"]
    assert "generation %}" not in template  # not every reader of GGUF knows the mark
    fast = AutoTokenizer.from_pretrained(registry.folder(identity))
    talk = [{"role": r, "content": f"{r} é"} for r in ("system", "user", "assistant", "user")]
    options = {"tokenize": False, "add_generation_prompt": True}
    assert fast.apply_chat_template(talk, chat_template=template, **options) == (
        fast.apply_chat_template(talk, **options)
    )


def test_an_imported_models_gguf_has_scores_bytes_and_the_blank_of_sentencepiece(
    shared_data, registry, tmp_path
) -> None:
    folder = next(shared_data("models/stories260K").rglob("stories260K.bin")).parent
    identity = import_llama2c(registry, folder / "stories260K.bin", folder / "tok512.bin")
    export_gguf(registry, identity, tmp_path / "out")
    fields, tensors = read_gguf(tmp_path / "out" / "model.gguf")
    assert fields.keys() >= REQUIRED | {"tokenizer.ggml.scores"}
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"] is True
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert tokens[:4] == ["<unk>", BOS, EOS, "<0x00>"]
    assert "▁Once" in tokens
    assert not any(" " in token for token in tokens)
    assert kinds[:3] == [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    assert set(kinds[3:259]) == {gguf.TokenType.BYTE}
    # the order in which run.c would merge is the order of these scores
    reference = Reference(folder / "stories260K.bin", folder / "tok512.bin")
    merged = [i for i in range(259, 512) if fields["tokenizer.ggml.scores"][i] < 0]
    assert len(merged) > 100
    scores = [fields["tokenizer.ggml.scores"][i] for i in merged]
    assert sorted(merged, key=lambda i: -fields["tokenizer.ggml.scores"][i]) == (
        sorted(merged, key=lambda i: -reference.scores[i])
    )
    assert len(set(scores)) == len(scores)
    model = AutoModelForCausalLM.from_pretrained(registry.folder(identity)).eval()
    ids = [1, *reference.encode("Lily saw a heap.")]
    assert np.array_equal(
        logits_of(as_llama_cpp_computes(fields, tensors), ids), logits_of(model, ids)
    )


# What cannot leave, and where it cannot go


@pytest.mark.parametrize("form", EXPORTS[1:])
def test_models_that_a_form_cannot_hold_are_refused(form, registry, tokenizer, tmp_path) -> None:
    def refused(model, kind: str = "base") -> str:
        with pytest.raises(UserError) as caught:
            identity = registry.publish(model, tokenizer, {"kind": kind})
            form(registry, identity, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    rows = tokenizer.get_vocab_size()
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    qwen = Qwen2ForCausalLM(Qwen2Config(vocab_size=rows, **shape))
    assert "(qwen2) is no plain Llama" in refused(qwen)
    assert "no plain Llama" in refused(llama(tokenizer, attention_bias=True))
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert "no plain Llama" in refused(llama(tokenizer, rope_parameters=scaled))
    broken = llama(tokenizer)
    broken.model.norm.weight.data[3] = float("nan")
    assert "model.norm.weight holds NaN" in refused(broken)
    folder = registry.folder(registry.publish(llama(tokenizer), tokenizer, {"kind": "base"}))
    assert "reward model" in refused(reward_model_from(folder), "reward")


def test_llama2c_refuses_what_run_c_has_built_in(registry, tokenizer, tmp_path) -> None:
    for changes in (
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"head_dim": 8},
    ):
        identity = registry.publish(llama(tokenizer, **changes), tokenizer, {"kind": "base"})
        with pytest.raises(UserError, match=r"llama2[.]c has a rotary base of 10000"):
            export_llama2c(registry, identity, tmp_path / "out")
        export_gguf(registry, identity, tmp_path / identity)


def test_a_reward_model_leaves_as_hugging_faces(
    registry, tokenizer, base_id, run, tmp_path
) -> None:
    registry = Registry(run.root)
    reward = reward_model_from(registry.folder(base_id))
    identity = registry.publish(reward, tokenizer, {"kind": "reward"})
    export_hugging_face(registry, identity, tmp_path / "out")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("form", EXPORTS)
def test_a_target_that_is_there_stays_as_it_is(form, base_id, run, tmp_path) -> None:
    registry = Registry(run.root)
    (tmp_path / "file").write_text("here before")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("here before")
    (tmp_path / "empty").mkdir()
    for name in ("file", "full", "file/below", "nowhere/\0", "long/" + "x" * 300):
        with pytest.raises(UserError, match=r"is there already|cannot write to"):
            form(registry, base_id, tmp_path / name)
    assert (tmp_path / "full" / "x").read_text() == (tmp_path / "file").read_text()
    form(registry, base_id, tmp_path / "empty")
    form(registry, base_id, tmp_path / "deep" / "er")
    for name in ("empty", "deep/er"):
        files = [p for p in (tmp_path / name).iterdir() if p.is_file()]
        assert files
        assert all(p.stat().st_mode & 0o777 == 0o644 for p in files)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o755
    assert not list(tmp_path.rglob(".*"))


def test_a_full_disk_leaves_nothing_and_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="No space left") as caught,
        new_folder(tmp_path / "out") as folder,
    ):
        (folder / "part").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_kill_leaves_no_half_export(base_id, run, tmp_path) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from finetune import export\n"
        "from finetune.registry import Registry\n"
        "real = export.storage.fsync\n"
        "def fsync(path):\n    real(path)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "export.storage.fsync = fsync\n"
        "export.export_hugging_face(Registry(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, run.root, base_id, str(tmp_path / "out")]
    result = subprocess.run(command, cwd=REPOSITORY, check=False)
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    export_hugging_face(Registry(run.root), base_id, tmp_path / "out")


def test_a_model_is_found_by_its_id_its_beginning_and_its_pointer(registry, tokenizer) -> None:
    first = registry.publish(llama(tokenizer), tokenizer, {"kind": "base"})
    second = registry.publish(llama(tokenizer), tokenizer, {"kind": "sft"})
    assert find_model(registry, first) == first
    assert find_model(registry, second[:9]) == second
    with pytest.raises(UserError, match=r"there is no champion yet"):
        find_model(registry, "champion")
    registry.promote(second, "a test")
    assert find_model(registry, "champion") == second
    for wrong in ("", "zz", "../pointers", first + "0", "g" * 64, "\0"):
        with pytest.raises(UserError, match="no model is called") as caught:
            find_model(registry, wrong)
        assert first[:12] in str(caught.value)
    (registry.root / "models" / (first[:8] + "0" * 56)).mkdir()
    with pytest.raises(UserError, match=f"2 models begin with '{first[:8]}'"):
        find_model(registry, first[:8])
