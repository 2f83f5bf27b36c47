"""Models made elsewhere become base models of the registry: a Hugging Face checkpoint of any causal
language model, or llama2.c's .bin with its tokenizer.

Our special tokens are added where they are missing, so that every stage after takes it for one of
ours. The checkpoint's own BOS and EOS keep their ids, and bear our names from then on.
"""

import json
import math
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from finetune.attention import NAME
from finetune.export import (
    LLAMA2C_EPS,
    LLAMA2C_THETA,
    Weights,
    llama2c_layout,
    rotary_tables,
    side_by_side,
)
from finetune.fidelity import check_computed_alike
from finetune.model import quiet
from finetune.registry import Registry
from finetune.tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS, TURN_END, plain, token_id
from pipeline.core.errors import UserError
from pipeline.core.manifest import describe_file

_UNK, _FIRST_BYTE = "<unk>", 3  # run.c's places: 0 unknown, 1 BOS, 2 EOS, 3 + b byte b
_MAX_TOKEN = 1000  # bytes: what merges a token has is looked for at each of its places
_WEIGHTS, _INDEX = ".safetensors", ".safetensors.index.json"
_SIZES = [
    *("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "head_dim"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("n_positions", "n_embd", "n_layer", "n_head"),  # GPT-2's
]
_UNKNOWN_SIGNS = "\U0010fffd \u0378"  # no vocabulary has these


def import_hugging_face(registry: Registry, folder: Path) -> str:
    """Publish a checkpoint folder (config.json, *.safetensors, tokenizer.json) as a base model in
    float32, and return its id. No code that comes with it is run. Raises UserError."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UserError(f"no {name} in {str(folder)!r}; a Hugging Face checkpoint has one")
    files = _own_files(folder)
    tokenizer = _own_tokenizer(folder)
    model = _own_model(folder)
    return _publish(registry, model, tokenizer, "hugging-face", files)


def _own_files(folder: Path) -> list[Path]:
    """What may be read of the folder. Raises UserError for what leads out of it, by a link, by the
    index of the weights or by an adapter: the lineage would not name it."""
    files = [p for p in sorted(folder.iterdir()) if p.suffix in (".json", _WEIGHTS)]
    for path in files:
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise UserError(
                f"{path} is a link that leads outside {str(folder)!r}; copy the file itself there"
                " (cp -L)"
            )
        if not path.is_file():
            raise UserError(f"{path} is no file, where one is expected; take it away")
        if path.name == "adapter_config.json":
            raise UserError(f"{path} makes this an adapter to another model; merge the two first")
    weights = {path.name for path in files if path.suffix == _WEIGHTS}
    for index in files:
        named = _named_weights(index) if index.name.endswith(_INDEX) else []
        if unknown := [name for name in named if name not in weights]:
            raise UserError(
                f"{index} names {unknown[0]!r:.200}, which is no {_WEIGHTS} file in"
                f" {str(folder)!r}; put all of the weights there"
            )
    return files


def _named_weights(index: Path) -> list[str]:
    try:
        found: Any = json.loads(index.read_bytes())["weight_map"]
        return sorted(set(found.values()))
    except Exception as error:  # noqa: BLE001 - it may hold anything
        raise UserError(f"{index} cannot be read: {error!r:.200}; get it anew") from None


def _check_sizes(path: Path) -> None:
    """Raises UserError for a number in config.json that no model has."""
    try:
        config: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # transformers says more of it
    found: Any = config.get("text_config") if isinstance(config, dict) else None
    for part in (config, found):
        settings = cast(dict[str, Any], part) if isinstance(part, dict) else {}
        for name in _SIZES:
            value = settings.get(name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (value is None or isinstance(value, list) or (whole and value > 0)):
                raise UserError(
                    f"{path} has {name} = {value!r:.100}; it is a whole number over 0: get the"
                    " model anew"
                )
        if name := settings.get("transformers_weights"):
            raise UserError(f"{path} has its weights elsewhere, in {name!r:.200}; it must not")


def _own_model(folder: Path) -> PreTrainedModel:
    _check_sizes(folder / "config.json")
    quiet()
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,  # a pickle may run code
            trust_remote_code=False,
            output_loading_info=True,
            attn_implementation=NAME,  # as every stage will load it
        )
    except Exception as error:  # noqa: BLE001 - each architecture fails in ways of its own
        why = " ".join(str(error).split())[:300]
        if isinstance(error, KeyError) and NAME in why:
            why = "its family keeps its own attention, where ours has no place"
        raise UserError(f"{str(folder)!r} is no causal language model to load: {why}") from None
    model, info = found
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{str(folder)!r} lacks the weights {missing[0]} ({len(missing)} missing)")
    return model


def _check_alike(model: PreTrainedModel) -> None:
    try:
        check_computed_alike(model)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - each architecture fails in ways of its own
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"a model of the type {model.config.model_type} cannot be computed here: {why}"
        ) from None


def _own_tokenizer(folder: Path) -> Tokenizer:
    """With our names for its BOS and EOS, and without what would put a second BOS before a text
    that has one (OpenRLHF#393)."""
    try:
        state: Any = json.loads((folder / "tokenizer.json").read_bytes())
        path = folder / "tokenizer_config.json"
        settings: Any = json.loads(path.read_bytes()) if path.exists() else {}
        state["post_processor"] = state["truncation"] = state["padding"] = None
        present = {token["content"] for token in state["added_tokens"]}
        names = {BOS: settings.get("bos_token"), EOS: settings.get("eos_token")}
        for ours, theirs in names.items():
            theirs = theirs["content"] if isinstance(theirs, dict) else theirs  # noqa: PLW2901
            if theirs in present and ours not in present:
                _rename(state, theirs, ours)
                present = present - {theirs} | {ours}
        tokenizer = Tokenizer.from_str(json.dumps(state))
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more exact
        raise UserError(f"{folder / 'tokenizer.json'} cannot be read: {error!r:.200}") from None
    if isinstance(tokenizer.model, models.Unigram):
        raise UserError(
            f"{folder / 'tokenizer.json'} is of the kind Unigram, which is not supported; take a"
            " model with a BPE"
        )
    return tokenizer


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    for token in state["added_tokens"]:
        if token["content"] == old:
            token |= {"content": new, "special": True, "normalized": False}
    vocabulary = state["model"].get("vocab")
    if isinstance(vocabulary, dict) and old in vocabulary:
        vocabulary[new] = cast(dict[str, int], vocabulary).pop(old)


def _publish(
    registry: Registry, model: PreTrainedModel, tokenizer: Tokenizer, form: str, files: list[Path]
) -> str:
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"the weights {name} hold NaN or infinity; get the model anew")
    _check_alike(model)
    _add_special_tokens(model, tokenizer)
    _check_typed(tokenizer)
    sums = {path.name: describe_file(str(path), path.name).sha256 for path in files}
    config = {"format": form, "architecture": model.config.model_type, "files": sums}
    return registry.publish(
        model, tokenizer, {"kind": "base", "parents": {}, "config": {"import": config}}
    )


def _add_special_tokens(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """In place. A new token's rows are the mean of those that are there (Hewitt 2021), so that it
    is neither likely nor unlikely at first. Raises UserError if the tokenizer does not fit."""
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    known = tokenizer.get_vocab().values()
    if not known or max(known) >= embedding.num_embeddings:
        raise UserError(
            f"the tokenizer has ids up to {max(known, default=-1)}, the model's embedding"
            f" {embedding.num_embeddings} rows: they are not of one model"
        )
    used = torch.tensor(sorted(known))
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS]
    )
    new = sorted(set(tokenizer.get_vocab().values()) - set(used.tolist()))
    if new and new[-1] >= embedding.num_embeddings:
        model.resize_token_embeddings(new[-1] + 1, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        for rows in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
            if new and isinstance(rows, Tensor):
                rows.data[new] = rows.data[used].mean(dim=0)
    places = {"bos_token_id": BOS, "eos_token_id": TURN_END, "pad_token_id": PAD}
    ids = {key: token_id(tokenizer, name) for key, name in places.items()}
    model.config.update(ids)
    model.generation_config = GenerationConfig(**ids)


def _check_typed(tokenizer: Tokenizer) -> None:
    """What a person types stays text: no special token comes of its own name, as it does where a
    word is looked up whole, nor of an unknown sign. Raises UserError."""
    loaded = plain(Tokenizer.from_str(tokenizer.to_str()))  # as each later stage has it
    special = {token_id(loaded, name): name for name in SPECIAL_TOKENS}
    holders = Counter(loaded.get_vocab().values())
    if shared := [name for index, name in special.items() if holders[index] > 1]:
        raise UserError(f"the tokenizer's ids have gaps: {shared[0]} would share another's id")
    for name in (*SPECIAL_TOKENS, _UNKNOWN_SIGNS):
        for text in (name, f" {name}", f"a {name} b", f"a{name}b", f"\n{name}\n"):
            try:
                found = loaded.encode(text, add_special_tokens=False).ids
            except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more exact
                raise UserError(f"the tokenizer fails at {text!r}: {error!r:.200}") from None
            if made := [special[index] for index in found if index in special]:
                raise UserError(
                    f"the tokenizer makes the control token {made[0]} of the typed text {text!r};"
                    " take a model whose tokenizer does not"
                )


def import_llama2c(registry: Registry, checkpoint: Path, tokenizer_file: Path) -> str:
    """Publish llama2.c's model.bin (version 0: float32) and tokenizer.bin as a base model, and
    return its id; it gives run.c's tokens and logits. Raises UserError for files that are cut
    short, of another version, or not of one model."""
    data, sizes = _read(checkpoint), struct.Struct("<7i")
    if len(data) < sizes.size:
        raise UserError(f"{checkpoint} is cut short: {len(data)} bytes, no header")
    header: tuple[int, ...] = sizes.unpack_from(data)
    hidden, feed_forward, layers, heads, kv_heads, vocabulary, positions = header
    tied, vocabulary = vocabulary > 0, abs(vocabulary)
    if struct.pack("<i", header[0]) == b"24ka":
        raise UserError(f"{checkpoint} is of llama2.c's version {header[1]}; export version 0")
    fits = min(*header[:5], vocabulary, positions) > 0
    if not fits or hidden % heads or heads % kv_heads or hidden // heads % 2:
        raise UserError(f"{checkpoint} is no llama2.c model: its header says {header}")
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        rms_norm_eps=LLAMA2C_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": LLAMA2C_THETA},
        tie_word_embeddings=tied,
    )
    weights = _llama2c_weights(checkpoint, data[sizes.size :], config)
    tokenizer = llama2c_tokenizer(tokenizer_file, vocabulary)
    model = LlamaForCausalLM(config)
    state = {name: torch.from_numpy(tensor.copy()) for name, tensor in weights.items()}
    model.load_state_dict(state, strict=not tied)
    model.tie_weights()
    return _publish(registry, model, tokenizer, "llama2.c", [checkpoint, tokenizer_file])


def _llama2c_weights(path: Path, data: bytes, config: LlamaConfig) -> Weights:
    """The tensors in transformers' layout. Raises UserError."""
    layout = llama2c_layout(config)
    wanted = 4 * sum(map(math.prod, layout.values()))
    if len(data) != wanted:
        raise UserError(
            f"{path} has {len(data)} bytes of weights where its header asks for {wanted}: it is cut"
            " short, damaged, or no llama2.c model of version 0"
        )
    tensors: Weights = {}
    at = 0
    for name, shape in layout.items():
        found = np.frombuffer(data, "<f4", math.prod(shape), at).reshape(shape)
        layers = enumerate(found) if "{}" in name else [(0, found)]
        tensors |= {name.format(i): tensor for i, tensor in layers}
        at += found.nbytes
    found = tensors.pop("cos"), tensors.pop("sin")
    if not np.allclose(found, rotary_tables(*layout["cos"]), atol=1e-3):
        raise UserError(f"{path} has a table of rotary positions that run.c does not use")
    return side_by_side(tensors, 2 * layout["cos"][1], back=True)


def llama2c_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    """A BPE with byte fallback that encodes as run.c does: a blank goes before the text, and the
    neighbours whose token scores highest are merged first (the leftmost, if no two tokens score
    alike: SentencePiece's never do). Raises UserError."""
    pieces = _llama2c_pieces(path, vocabulary)
    names = [piece for piece, _ in pieces]
    names[:_FIRST_BYTE] = [_UNK, BOS, EOS]
    ids = {name: index for index, name in enumerate(names)}
    own = [f"<0x{byte:02X}>" for byte in range(256)]
    if names[_FIRST_BYTE : _FIRST_BYTE + 256] != own or len(ids) != vocabulary or " " not in ids:
        raise UserError(f"{path} is no llama2.c tokenizer: no 256 bytes, no blank, or tokens twice")
    merges = [
        (-score, cut, text[:cut], text[cut:])
        for text, score in pieces[_FIRST_BYTE:]
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    model = models.BPE(
        vocab=ids,
        merges=[(left, right) for _, _, left, right in sorted(merges)],
        unk_token=_UNK,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Prepend(" ")
    steps = [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _llama2c_pieces(path: Path, vocabulary: int) -> list[tuple[str, float]]:
    """(text, score) by id. Raises UserError."""
    data, entry, at = _read(path), struct.Struct("<fi"), 4
    found: list[tuple[str, float]] = []
    for index in range(vocabulary):
        if at + entry.size > len(data):
            raise UserError(f"{path} has {index} tokens, the model {vocabulary}: not of one model")
        score, length = entry.unpack_from(data, at)
        if length > _MAX_TOKEN:
            raise UserError(
                f"{path} is damaged or no llama2.c tokenizer: its token {index} has {length:,}"
                f" bytes, over {_MAX_TOKEN:,}"
            )
        raw = data[at + entry.size : at + entry.size + max(length, 0)]
        text = raw.decode(errors="replace")
        if len(raw) != length or not raw or text.encode() != raw or not math.isfinite(score):
            raise UserError(f"{path} is cut short or damaged: its token {index} cannot be read")
        found.append((text, score))
        at += entry.size + length
    if at != len(data):
        raise UserError(f"{path} has more tokens than the model's {vocabulary}: not of one model")
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); name a file") from None
