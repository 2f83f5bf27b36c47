"""A model of the registry in the forms that other programs read: Hugging Face's folder, llama2.c's
.bin, and two files that chat with numpy alone. GGUF stands in finetune/gguf_file.py.

Every form is checked by its logits (tests/finetune/test_export.py); docs/export.md says more.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig, LlamaConfig

from finetune.bpe_parts import BpeParts, bpe_parts, letters_and_numbers
from finetune.model import load_language_model
from finetune.registry import PointerName, Registry
from finetune.tokenizer import BOS, EOS, PAD, load_tokenizer
from pipeline.core import storage
from pipeline.core.errors import UserError, is_disk_full

RUN_PROGRAM = Path(__file__).parent / "two_files" / "run.py"
LLAMA2C_EPS, LLAMA2C_THETA = 1e-5, 10_000.0  # run.c has them built in
Weights = dict[str, NDArray[Any]]  # in float32, by transformers' names and in its layout
_EMBED, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_Q, _K, _O, _DOWN = "self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"


@dataclasses.dataclass(frozen=True)
class Llama:
    """`config` is transformers' LlamaConfig; a tied head is not among the weights."""

    config: Any
    weights: Weights
    tokenizer: BpeParts
    chat: bool


def find_model(registry: Registry, name: str) -> str:
    """The id that is meant: a whole one, the beginning of one, or a pointer. Raises UserError."""
    if name in get_args(PointerName):
        if (found := registry.pointer(cast(PointerName, name))) is None:
            raise UserError(f"there is no {name} yet; `flywheel pretrain` makes the first champion")
        return found
    return registry.whole_id(name)


def export_hugging_face(registry: Registry, identity: str, target: Path) -> None:
    """The checkpoint as AutoModelForCausalLM and AutoTokenizer load it, with its lineage."""
    source = registry.verified(identity)
    with new_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def export_two_files(registry: Registry, identity: str, target: Path) -> None:
    """parameters.bin, and run.py, which says what stands in it. Raises UserError for a model that
    is no Llama."""
    llama = llama_of(registry, identity)
    config, digest = llama.config, hashlib.sha256()
    for tensor in llama.weights.values():
        digest.update(_float32(tensor))
    header = {
        "version": 1,
        "model": identity,
        "chat": llama.chat,
        "layers": config.num_hidden_layers,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "positions": config.max_position_embeddings,
        "eps": config.rms_norm_eps,
        "theta": config.rope_parameters["rope_theta"],
        **tokens_header(llama.tokenizer),
        "tensors": [(name, tensor.shape) for name, tensor in llama.weights.items()],
        "sha256": digest.hexdigest(),
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 16)  # the tensors begin at a multiple of 16
    with new_folder(target) as folder:
        with (folder / "parameters.bin").open("wb") as file:
            file.write(b"FLYWHEEL" + struct.pack("<Q", len(text)) + hashlib.sha256(text).digest())
            file.write(text)
            for tensor in llama.weights.values():
                file.write(_float32(tensor))
        shutil.copyfile(RUN_PROGRAM, folder / RUN_PROGRAM.name)


def tokens_header(parts: BpeParts) -> dict[str, Any]:
    """What run.py's Tokens are made from. Special tokens have no bytes: they are not printed."""
    letters, numbers = letters_and_numbers()
    silent = {*parts.special.values(), *parts.unused}
    return {
        "pieces": ["" if i in silent else piece.hex() for i, piece in enumerate(parts.pieces)],
        "special": parts.special,
        "byte_ids": parts.byte_ids,
        "merges": parts.merges,
        "blank": parts.blank,
        "letters": letters,
        "numbers": numbers,
    }


def export_llama2c(registry: Registry, identity: str, target: Path) -> None:
    """model.bin (version 0: float32) and tokenizer.bin, for karpathy/llama2.c's run.c.

    run.c knows BOS as id 1, EOS as 2 and byte b as 3 + b: ids are given anew. Raises UserError for
    a model that is no Llama, or whose rotary base is not 10,000.
    """
    llama = llama_of(registry, identity)
    c, parts = llama.config, llama.tokenizer
    theta = c.rope_parameters["rope_theta"]
    if theta != LLAMA2C_THETA or c.head_dim * c.num_attention_heads != c.hidden_size:
        raise UserError(
            f"llama2.c has a rotary base of 10000 and heads that divide the width; model"
            f" {identity[:12]} has {theta:g} and heads of {c.head_dim}: use gguf"
        )
    order = llama2c_order(parts)
    weights, layout = _as_run_c(llama, order), llama2c_layout(c)
    weights["cos"], weights["sin"] = rotary_tables(*layout["cos"])
    with new_folder(target) as folder:
        with (folder / "model.bin").open("wb") as file:
            vocabulary = len(order) if c.tie_word_embeddings else -len(order)
            sizes = (c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads)
            file.write(
                struct.pack(
                    "<7i", *sizes, c.num_key_value_heads, vocabulary, c.max_position_embeddings
                )
            )
            for name, shape in layout.items():
                for i in range(shape[0] if "{}" in name else 1):
                    file.write(_float32(weights[name.format(i)]))
        with (folder / "tokenizer.bin").open("wb") as file:
            pieces, scores = _llama2c_pieces(parts), parts.scores()
            file.write(struct.pack("<I", max(map(len, pieces))))
            for i in order:
                file.write(struct.pack("<fI", scores[i], len(pieces[i])) + pieces[i])


def llama2c_layout(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a model.bin of version 0 and their shapes, in the file's order: {} is each
    layer in turn; the tables of cosines and sines are passed over by run.c."""
    c = cast(Any, config)
    wide, inner, shared = c.hidden_size, c.intermediate_size, c.head_dim * c.num_key_value_heads
    of_layers = {
        "input_layernorm": (wide,),
        _Q: (wide, wide),
        _K: (shared, wide),
        "self_attn.v_proj": (shared, wide),
        _O: (wide, wide),
        "post_attention_layernorm": (wide,),
        "mlp.gate_proj": (inner, wide),
        _DOWN: (wide, inner),
        "mlp.up_proj": (inner, wide),
    }
    layout: dict[str, tuple[int, ...]] = {_EMBED: (c.vocab_size, wide)}
    for name, shape in of_layers.items():
        layout[f"model.layers.{{}}.{name}.weight"] = (c.num_hidden_layers, *shape)
    table = (c.max_position_embeddings, c.head_dim // 2)
    layout |= {_NORM: (wide,), "cos": table, "sin": table}
    return layout | ({} if c.tie_word_embeddings else {_HEAD: (c.vocab_size, wide)})


def llama2c_order(parts: BpeParts) -> list[int]:
    """order[new id] = old id. The places that run.c has fixed come first, then the rest."""
    nothing = parts.special[PAD] if parts.unknown is None else parts.unknown
    fixed = [nothing, parts.special[BOS], parts.special[EOS], *parts.byte_ids]
    taken = set(fixed)
    return fixed + [i for i in range(len(parts.pieces)) if i not in taken]


def _llama2c_pieces(parts: BpeParts) -> list[bytes]:
    """By old id. Bytes that a C string cannot hold, or that are told apart from characters, are
    written out."""
    pieces = list(parts.pieces)
    for byte, index in enumerate(parts.byte_ids):
        if parts.blank is not None or byte == 0:
            pieces[index] = b"<0x%02X>" % byte
    return pieces


def _as_run_c(llama: Llama, order: Sequence[int]) -> Weights:
    """run.c's norms have an epsilon of 1e-5. The norm of c * x with c² * epsilon is that of x with
    epsilon: what is added to the residual stream is multiplied by c, a tied head's input divided
    by it."""
    c = np.float32((LLAMA2C_EPS / llama.config.rms_norm_eps) ** 0.5)
    weights = side_by_side(llama.weights, llama.config.head_dim)
    for name in weights:
        if name.endswith((f"{_O}.weight", f"{_DOWN}.weight")):
            weights[name] = weights[name] * c
    weights[_EMBED] = weights[_EMBED][order] * c
    if _HEAD in weights:
        weights[_HEAD] = weights[_HEAD][order]
    else:
        weights[_NORM] = weights[_NORM] / c
    return weights


def rotary_tables(positions: int, half: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """cos and sin [positions, head_dim / 2]"""
    frequencies = 1 / LLAMA2C_THETA ** (np.arange(half, dtype=np.float32) / half)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def side_by_side(weights: Weights, head_dim: int, *, back: bool = False) -> Weights:
    """Hugging Face turns number i of a head together with i + head_dim / 2; llama2.c and llama.cpp
    with its neighbour: the rows of queries and keys in their order, or `back` in Hugging Face's."""
    cut = (head_dim // 2, 2) if back else (2, head_dim // 2)

    def turned(rows: NDArray[Any]) -> NDArray[Any]:
        return rows.reshape(-1, *cut, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    of_pairs = (f"{_Q}.weight", f"{_K}.weight")
    return {n: turned(rows) if n.endswith(of_pairs) else rows for n, rows in weights.items()}


def llama_of(registry: Registry, identity: str) -> Llama:
    """Raises UserError for a reward model, a model that is no plain Llama, or weights that are not
    finite."""
    folder, kind = registry.verified(identity), registry.kind(identity)
    config: Any = AutoConfig.from_pretrained(str(folder))
    if kind == "reward":
        raise UserError(f"model {identity[:12]} is a reward model: it scores, and says nothing")
    plain = config.model_type == "llama" and config.hidden_act == "silu"
    plain = plain and not config.attention_bias and not config.mlp_bias
    if not plain or config.rope_parameters["rope_type"] != "default":
        raise UserError(
            f"model {identity[:12]} ({config.model_type}) is no plain Llama (no biases, SwiGLU,"
            " unscaled rotary positions); export it with hugging-face"
        )
    state = cast(Any, load_language_model(folder)).state_dict()
    weights = {name: tensor.numpy() for name, tensor in state.items()}
    if config.tie_word_embeddings:
        weights.pop(_HEAD, None)
    for name, tensor in weights.items():
        if not np.isfinite(tensor).all():
            raise UserError(f"{name} of model {identity[:12]} holds NaN or infinity")
    parts = bpe_parts(load_tokenizer(folder), len(weights[_EMBED]))
    return Llama(config, weights, parts, chat=kind != "base")


@contextlib.contextmanager
def new_folder(target: Path) -> Generator[Path]:
    """Yield a folder to write to; on a clean exit it stands at `target`, on the disk and whole,
    else nothing does. Raises UserError for a target that holds anything already."""
    try:
        target = target.resolve()  # "." has a name, then
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{str(target)!r} is there already; name a new folder, or empty it")
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except (OSError, ValueError) as error:
        if is_disk_full(error):
            raise
        raise UserError(f"cannot write to {str(target)!r} ({error}); name a folder") from None
    try:
        yield folder
        for path in [*folder.rglob("*"), folder]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            storage.fsync(path)
        folder.rename(target)  # onto an empty folder, or onto nothing
        storage.fsync(target.parent)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if is_disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        raise


def _float32(tensor: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(tensor, dtype="<f4").tobytes()
