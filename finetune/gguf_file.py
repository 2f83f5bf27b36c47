"""A model of the registry as a GGUF file, which llama.cpp and what is built on it run.

The format: ggml-org/ggml, docs/gguf.md. Written with llama.cpp's own package.
"""

from pathlib import Path
from typing import Literal

import gguf
import numpy as np

from finetune.bpe_parts import BpeParts
from finetune.export import llama_of, new_folder, side_by_side
from finetune.registry import Registry
from finetune.tokenizer import BOS, CHAT_TEMPLATE, EOS, PAD, TURN_END
from pipeline.core.errors import UserError

Precision = Literal["f32", "f16", "q8_0"]


def export_gguf(
    registry: Registry, identity: str, target: Path, precision: Precision = "f32"
) -> None:
    """model.gguf in the folder `target`. Matrices in `precision` (one whose rows are no multiple
    of 32 long stays f16 under q8_0), norms in float32. Raises UserError for a model that is no
    Llama, and for weights beyond f16's range."""
    llama = llama_of(registry, identity)
    kinds, c = gguf.GGMLQuantizationType, llama.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    with new_folder(target) as folder:
        writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
        writer.add_name(identity[:12])
        file_type = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}[precision]
        writer.add_file_type(gguf.LlamaFileType[file_type])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_vocab_size(len(llama.tokenizer.names))
        writer.add_context_length(c.max_position_embeddings)
        writer.add_embedding_length(c.hidden_size)
        writer.add_block_count(c.num_hidden_layers)
        writer.add_feed_forward_length(c.intermediate_size)
        writer.add_head_count(c.num_attention_heads)
        writer.add_head_count_kv(c.num_key_value_heads)
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
        writer.add_rope_dimension_count(c.head_dim)
        writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)
        _add_tokenizer(writer, llama.tokenizer, llama.chat)
        for name, tensor in side_by_side(llama.weights, c.head_dim).items():
            kind = kinds.F32 if tensor.ndim == 1 else kinds[precision.upper()]
            if kind == kinds.Q8_0 and tensor.shape[-1] % 32:
                kind = kinds.F16
            if kind != kinds.F32 and np.abs(tensor).max() > np.finfo(np.float16).max:
                raise UserError(f"{name} of model {identity[:12]} is beyond f16; use f32")
            data = gguf.quantize(np.ascontiguousarray(tensor), kind)
            theirs = names.get_name(name, try_suffixes=(".weight",))
            assert theirs is not None, name
            writer.add_tensor(theirs, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, parts: BpeParts, chat: bool) -> None:
    kinds = [gguf.TokenType.NORMAL] * len(parts.names)
    for index in parts.unused:
        kinds[index] = gguf.TokenType.UNUSED
    for index in parts.special.values():
        kinds[index] = gguf.TokenType.CONTROL
    if parts.unknown is not None:
        kinds[parts.unknown] = gguf.TokenType.UNKNOWN
    names = list(parts.names)
    if parts.blank is None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges([f"{names[a]} {names[b]}" for a, b, _ in parts.merges])
    else:  # llama.cpp's SentencePiece goes by scores, and writes a space as its signs do
        for index in parts.byte_ids:
            kinds[index] = gguf.TokenType.BYTE
        names = [name.replace(parts.blank, "▁") for name in names]
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(parts.scores())
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(parts.blank is not None)
    writer.add_bos_token_id(parts.special[BOS])
    writer.add_eos_token_id(parts.special[TURN_END if chat else EOS])
    writer.add_eot_token_id(parts.special[TURN_END])
    writer.add_pad_token_id(parts.special[PAD])
    if parts.unknown is not None:
        writer.add_unk_token_id(parts.unknown)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    if chat:  # without the marks of what is learned, which render to nothing
        marks = ("{% generation %}", "{% endgeneration %}")
        writer.add_chat_template(CHAT_TEMPLATE.replace(marks[0], "").replace(marks[1], ""))
