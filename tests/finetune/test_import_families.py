"""A family whose logits or attention are computed otherwise is refused, by its numbers; the others
give transformers' own log-probs."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from finetune.attention import segment_attention, segments_of
from finetune.fidelity import check_computed_alike
from finetune.generate import NOT_NUMBERS
from finetune.import_model import import_hugging_face
from finetune.model import label_log_probs, load_language_model
from finetune.packing import Segment, pad_right
from finetune.registry import Registry
from finetune.tokenizer import as_hugging_face
from pipeline.core.errors import UserError

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GROUPED = {"num_key_value_heads": 2}
ALIKE: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "olmo2": GROUPED,
    "mixtral": GROUPED | {"num_local_experts": 2},
    "gemma3_text": GROUPED | {"head_dim": 8},
}
OTHERWISE: dict[str, tuple[dict[str, Any], str]] = {
    "cohere": (GROUPED | {"logit_scale": 0.0625}, "computes otherwise"),
    "granite": (GROUPED | {"logits_scaling": 8.0}, "computes otherwise"),
    "phi": ({"num_key_value_heads": 4}, "computes otherwise"),
    "gemma2": (GROUPED | {"head_dim": 8}, "computes otherwise"),
    "gpt_oss": (GROUPED | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
                "computes otherwise"),
    "stablelm": (GROUPED, "was not told where segments begin"),
    "gptj": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8},
             "keeps its own attention"),
}  # fmt: skip


def _theirs(kind: str, more: dict[str, Any], tokenizer, folder: Path) -> Path:
    settings = {**SHAPE, **more, "vocab_size": tokenizer.get_vocab_size()}
    settings |= {"bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 2}
    config = AutoConfig.for_model(kind, **settings)
    torch.manual_seed(0)
    model = cast(Any, AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 or "bias" in name or "sinks" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    as_hugging_face(tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ALIKE)
def test_what_is_imported_gives_the_log_probs_that_it_gave(kind, tokenizer, tmp_path: Path) -> None:
    folder = _theirs(kind, ALIKE[kind], tokenizer, tmp_path / "theirs")
    registry = Registry(str(tmp_path))
    ours = load_language_model(registry.verified(import_hugging_face(registry, folder))).eval()
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.randint(64, 300, (20,), generator=torch.Generator().manual_seed(1))
    batch = pad_right([Segment(ids.tolist(), (True,) * 20)], 2)
    with torch.no_grad():
        found = label_log_probs(ours, batch)[0, :-1]
        logits = theirs(input_ids=ids[None]).logits[0, :-1]
    expected = torch.log_softmax(logits, dim=-1).gather(1, ids[1:, None])[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", OTHERWISE)
def test_what_would_be_trained_on_another_distribution_is_refused(
    kind, tokenizer, tmp_path: Path
) -> None:
    more, why = OTHERWISE[kind]
    folder = _theirs(kind, more, tokenizer, tmp_path / "theirs")
    with pytest.raises(UserError, match=why) as caught:
        import_hugging_face(Registry(str(tmp_path)), folder)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("models/*"))


def test_a_model_that_makes_nan_is_not_alike(model) -> None:
    with torch.no_grad():
        model.lm_head.weight[70:] = torch.nan
    with pytest.raises(UserError, match=f"{NOT_NUMBERS[:20]}|computes otherwise"):
        check_computed_alike(model)


def test_attention_that_is_not_told_its_segments_is_no_attention(model) -> None:
    """A family that drops what it does not know would attend to everything, to the right too."""
    batch = pad_right([Segment((70, 71, 72), (True,) * 3)], 2)
    mask = segments_of(batch)["attention_mask"]
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match="was not told where segments begin"):
        segment_attention(model, states, states, states, mask)
