"""How well a model foretells the answers that people wrote to prompts it never trained on."""

from collections.abc import Sequence

from eval.model import LanguageModel
from eval.results import SampleResult
from finetune.losses import bits_per_byte
from pipeline.core.identity import canonical_json, is_heldout, split_id
from pipeline.core.records import Conversation

TASK, METRIC = "held_out_answers", "bits_per_byte"

CANARY_SOURCES = "canary-"


def held_out(conversations: Sequence[Conversation], fraction: float) -> list[Conversation]:
    """Those of held-out prompts that end with an answer of at least one byte. Canaries are left
    out: their refusals follow a few templates that training has read word for word."""
    return [
        conversation
        for conversation in conversations
        if conversation.messages
        and not conversation.source.startswith(CANARY_SOURCES)
        and is_heldout(split_id(conversation.messages), fraction)
        and conversation.messages[-1].role == "assistant"
        and conversation.messages[-1].text
    ]


def answer_results(
    model: LanguageModel, conversations: Sequence[Conversation]
) -> list[SampleResult]:
    """Bits per UTF-8 byte of each conversation's last answer; the cluster is its prompt.

    The nats of the answer's own tokens: not of the end of turn, which has no bytes. A base model
    is asked in plain text (eval/model.py).
    """
    pairs = [(c.messages[:-1], c.messages[-1].text) for c in conversations]
    results: list[SampleResult] = []
    for conversation, score in zip(conversations, model.loglikelihood(pairs), strict=True):
        num_bytes = len(conversation.messages[-1].text.encode())
        detail = {"nats": score.nats, "tokens": score.num_tokens, "bytes": num_bytes}
        results.append(
            SampleResult(
                TASK,
                conversation.conversation_id,
                conversation.prompt_id,
                METRIC,
                bits_per_byte(score.nats, num_bytes),
                canonical_json({**detail, "source": conversation.source}),
            )
        )
    return results
