"""A model of the registry behind lm-eval's three questions: how likely is this continuation,
how likely is this text, what do you say. A reward model behind its one: how good is this answer.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from finetune.chat import encode_answer, encode_prompt
from finetune.generate import Completion, Sampling, generate
from finetune.model import (
    best_precision,
    end_scores,
    label_log_probs,
    load_language_model,
    load_reward_model,
    num_parameters,
    place,
)
from finetune.packing import Segment, lay_segments
from finetune.registry import Registry
from finetune.tokenizer import BOS, PAD, end_tokens, load_tokenizer, token_id
from pipeline.core.errors import UserError
from pipeline.core.records import Message

_LOGITS_AT_ONCE = 2**25  # 128 MB of fp32
_PROMPTS_AT_ONCE = 64
PLAIN_QUESTION, PLAIN_ANSWER = "Question:", "Answer:"
PLAIN_STOP = "\n"  # ends a base model's answer, here and where it is served


@dataclasses.dataclass(frozen=True)
class Score:
    """-ln p of a text, in nats, over `num_tokens` tokens; special tokens are not among them."""

    nats: float
    num_tokens: int


@dataclasses.dataclass(frozen=True)
class NextToken:
    """After `token` the model expects `likeliest`, (text, probability) pairs, best first."""

    token: str
    likeliest: tuple[tuple[str, float], ...]


def plain_prompt(messages: Sequence[Message]) -> str:
    """How a base model, which knows no turns, is asked: "Question: {q}\\nAnswer:". The answer
    then follows a blank."""
    lines: list[str] = []
    for message in messages:
        opening = {"user": f"{PLAIN_QUESTION} ", "assistant": f"{PLAIN_ANSWER} "}
        lines.append(opening.get(message.role, "") + message.text)
    return "\n".join([*lines, PLAIN_ANSWER])


class LanguageModel:
    """`chat`: it was taught turns, and is asked in them; otherwise it is asked in plain text.

    Scores are computed in fp32. They do not depend on what else is in the call, up to rounding.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, chat: bool) -> None:
        self.model, self.tokenizer, self.chat = model.eval(), tokenizer, chat
        self.device = next(model.parameters()).device
        self.max_length = int(model.config.max_position_embeddings)
        self.overlap = self.max_length // 4
        self._bos, self._pad = token_id(tokenizer, BOS), token_id(tokenizer, PAD)
        self._stops = end_tokens(tokenizer)
        self._row_budget = max(self.max_length, _LOGITS_AT_ONCE // tokenizer.get_vocab_size())

    @staticmethod
    def load(registry: Registry, identity: str) -> "LanguageModel":
        """A language model of the registry. Raises UserError for an unknown id, a damaged
        model, or a reward model."""
        folder, kind = registry.verified(identity), registry.kind(identity)
        if kind == "reward":
            raise UserError(f"model {identity} is a reward model: it scores answers, gives none")
        model = load_language_model(folder)
        place(model, best_precision().device)
        return LanguageModel(model, load_tokenizer(folder), chat=kind != "base")

    @property
    def num_parameters(self) -> int:
        return num_parameters(self.model)

    def loglikelihood(self, pairs: Sequence[tuple[Sequence[Message], str]]) -> list[Score]:
        """The score of each answer to its prompt. The end of turn is not scored, so that a chat
        model and a base model are asked for the same text; the base model's answer carries the
        blank before it. A prompt that does not fit is cut at its left."""
        sequences: list[tuple[list[int], int]] = []
        for messages, answer in pairs:
            prompt = self._prompt_ids(messages)
            sequences.append((prompt + self._answer_ids(answer), len(prompt)))
        return self._score(sequences)

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[Score]:
        """The score of each text alone after BOS. A text longer than the model's context is read
        in rows that overlap by a quarter of a row or more; what is read again is not scored again:
        every token is scored once, with at least that much before it."""
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return self._score([([self._bos, *encoding.ids], 1) for encoding in encoded])

    def generate_until(
        self,
        prompts: Sequence[Sequence[Message]],
        max_new_tokens: int,
        until: Sequence[str] = (),
    ) -> list[str]:
        """The likeliest answers, token by token, without the blanks around them. Each ends at its
        end of turn (or document), before a string of `until`, or after `max_new_tokens`; a base
        model's also at the end of its first line."""
        until = until if self.chat else (*until, PLAIN_STOP)
        room = self.max_length - max_new_tokens
        if room < 2:
            raise UserError(f"max_new_tokens = {max_new_tokens} leaves no room for a prompt")
        ids = [self._fit(self._prompt_ids(messages), room) for messages in prompts]
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
        answers = [""] * len(ids)
        sampling = Sampling(max_new_tokens, temperature=0.0, stop_ids=self._stops)
        for start in range(0, len(order), _PROMPTS_AT_ONCE):
            rows = order[start : start + _PROMPTS_AT_ONCE]
            completions = generate(self.model, [ids[i] for i in rows], sampling, 0)
            for i, completion in zip(rows, completions, strict=True):
                answers[i] = _before(self._text(completion).lstrip(), until).rstrip()
        return answers

    def sample_documents(
        self, number: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[str]:
        """What the model writes after nothing but BOS: its dreams."""
        sampling = Sampling(min(max_new_tokens, self.max_length - 1), temperature, self._stops)
        completions = generate(self.model, [[self._bos]] * number, sampling, seed)
        return [self._text(completion) for completion in completions]

    @torch.inference_mode()
    def next_tokens(self, text: str, k: int) -> list[NextToken]:
        """What the model expects at each position of the text, from the start of a document.
        Positions past the model's context are left out."""
        ids = [self._bos, *self.tokenizer.encode(text, add_special_tokens=False).ids]
        ids = ids[: self.max_length]
        logits_TV = self.model(
            input_ids=torch.tensor([ids], device=self.device), use_cache=False
        ).logits[0]
        best = torch.softmax(logits_TV.float(), dim=-1).topk(k, dim=-1)
        result: list[NextToken] = []
        for token, row, probabilities in zip(
            ids, best.indices.tolist(), best.values.tolist(), strict=True
        ):
            texts = [self._token_text(candidate) for candidate in row]
            likeliest = tuple(zip(texts, probabilities, strict=True))
            result.append(NextToken(self._token_text(token), likeliest))
        return result

    def _prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        if self.chat:
            return encode_prompt(self.tokenizer, messages)
        text = plain_prompt(messages)
        return [self._bos, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def _answer_ids(self, answer: str) -> list[int]:
        text = answer if self.chat else f" {answer}"
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _fit(self, ids: list[int], room: int) -> list[int]:
        return ids if len(ids) <= room else [self._bos, *ids[-(room - 1) :]]

    def _text(self, completion: Completion) -> str:
        ids = completion.ids[:-1] if completion.finished else completion.ids
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _token_text(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special_tokens=False)

    def _score(self, sequences: Sequence[tuple[list[int], int]]) -> list[Score]:
        """`sequences` are ids and the index from which on they are scored."""
        rows = [
            (owner, segment)
            for owner, (ids, start) in enumerate(sequences)
            for segment in windows(ids, start, self.max_length, self.overlap)
        ]
        nats = [0.0] * len(sequences)
        for batch in _batches(rows, self._row_budget):
            sums = self._nats([segment for _, segment in batch])
            for (owner, _), value in zip(batch, sums, strict=True):
                nats[owner] += value
        if not all(map(math.isfinite, nats)):
            raise UserError("the model's scores are not numbers: it diverged; train it again")
        return [
            Score(total, len(ids) - start)
            for total, (ids, start) in zip(nats, sequences, strict=True)
        ]

    @torch.inference_mode()
    def _nats(self, segments: Sequence[Segment]) -> list[float]:
        batch = lay_segments(segments, self._pad).to(self.device)
        return (-batch.sums(label_log_probs(self.model, batch.tokens).double())).tolist()


class RewardModel:
    """Scores of whole answers; only differences between answers to one prompt mean anything."""

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.device = next(model.parameters()).device
        self.max_length = int(model.config.max_position_embeddings)

    @staticmethod
    def load(registry: Registry, identity: str) -> "RewardModel":
        folder = registry.verified(identity)
        if (kind := registry.kind(identity)) != "reward":
            raise UserError(f"model {identity} is of kind {kind!r}, not a reward model")
        model = load_reward_model(folder)
        place(model, best_precision().device)
        return RewardModel(model, load_tokenizer(folder))

    @torch.inference_mode()
    def scores(self, pairs: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        """One score per (prompt, answer), read at the end of the answer's turn; what does not fit
        is cut at the left."""
        rows: list[tuple[int, Segment]] = []
        for index, (messages, answer) in enumerate(pairs):
            ids = encode_prompt(self.tokenizer, messages) + encode_answer(self.tokenizer, answer)
            ids = ids[-self.max_length :]
            rows.append((index, Segment(tuple(ids), (False,) * len(ids))))
        scores = [0.0] * len(pairs)
        for batch in _batches(rows, 2**13):
            segments = [segment for _, segment in batch]
            laid = lay_segments(segments, token_id(self.tokenizer, PAD)).to(self.device)
            values = end_scores(self.model, laid).tolist()
            for (index, _), value in zip(batch, values, strict=True):
                scores[index] = value
        return scores


def windows(ids: Sequence[int], start: int, length: int, overlap: int) -> Iterator[Segment]:
    """Rows of at most `length` tokens in which each of ids[start:] is supervised exactly once,
    with all that stands before it if that fits, else with at least `overlap` tokens before it."""
    assert 0 < start <= len(ids), "the first token has nothing before it"
    assert 0 < overlap < length, "a row holds something new"
    stride = length - overlap
    done, end = start, min(len(ids), length if start < length else start + stride)
    while done < len(ids):
        first = max(0, end - length)
        supervised = tuple(first + i >= done for i in range(end - first))
        yield Segment(tuple(ids[first:end]), supervised)
        done, end = end, min(len(ids), end + stride)


def _batches(
    rows: Sequence[tuple[int, Segment]], budget: int
) -> Iterator[list[tuple[int, Segment]]]:
    """Rows of like length together, each batch within `budget` padded tokens (or one row)."""
    batch: list[tuple[int, Segment]] = []
    for row in sorted(rows, key=lambda r: len(r[1].ids)):
        if batch and (len(batch) + 1) * len(row[1].ids) > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _before(text: str, stops: Sequence[str]) -> str:
    return text[: min((at for s in stops if (at := text.find(s)) >= 0), default=len(text))]
