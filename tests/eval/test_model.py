"""The adapter against a loop that feeds the model one prefix at a time."""

import itertools
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from eval.model import LanguageModel, RewardModel, plain_prompt, windows
from finetune.chat import encode_prompt
from finetune.model import ModelConfig, new_model
from finetune.tokenizer import BOS, EOS, TURN_END, token_id
from pipeline.core.errors import UserError
from pipeline.core.records import Message


@torch.no_grad()
def brute_force(model: LanguageModel, ids: list[int], start: int) -> float:
    """-ln p of ids[start:], each token from the whole prefix before it, alone in its batch."""
    nats = 0.0
    for end in range(start, len(ids)):
        logits = model.model(input_ids=torch.tensor([ids[:end]])).logits[0, -1]
        nats -= float(torch.log_softmax(logits, -1)[ids[end]])
    return nats


def plain_ids(model: LanguageModel, text: str) -> list[int]:
    return model.tokenizer.encode(text, add_special_tokens=False).ids


def test_a_chat_models_answer_is_scored_token_by_token_after_its_turn_opens(chat, build) -> None:
    pairs = [(build.question("What does it return?"), "None."), (build.question("?"), "héé 🙂")]
    for (messages, answer), score in zip(pairs, chat.loglikelihood(pairs), strict=True):
        prompt = encode_prompt(chat.tokenizer, messages)
        ids = [*prompt, *plain_ids(chat, answer)]
        assert score.nats == pytest.approx(brute_force(chat, ids, len(prompt)), rel=1e-4)
        assert score.num_tokens == len(plain_ids(chat, answer))


def test_a_base_model_is_asked_in_plain_text(base, build) -> None:
    [score] = base.loglikelihood([(build.question("What does it return?"), "None.")])
    prompt = [
        token_id(base.tokenizer, BOS),
        *plain_ids(base, "Question: What does it return?\nAnswer:"),
    ]
    ids = [*prompt, *plain_ids(base, " None.")]
    assert score.nats == pytest.approx(brute_force(base, ids, len(prompt)), rel=1e-4)


def test_plain_prompt_of_several_turns() -> None:
    turns = [("system", "Be brief."), ("user", "A?"), ("assistant", "B."), ("user", "C?")]
    text = plain_prompt([Message.of(role, words) for role, words in turns])
    assert text == "Be brief.\nQuestion: A?\nAnswer: B.\nQuestion: C?\nAnswer:"


def test_padding_and_company_change_nothing(chat, build) -> None:
    pairs = [(build.question("Q" * n), "a folder " * n) for n in (1, 5, 2, 4, 3)]
    together = chat.loglikelihood(pairs)
    for pair, score in zip(pairs, together, strict=True):
        assert chat.loglikelihood([pair])[0].nats == pytest.approx(score.nats, rel=1e-5)


def test_the_empty_answer_costs_nothing(chat, build) -> None:
    [score] = chat.loglikelihood([(build.question("Q"), "")])
    assert (score.nats, score.num_tokens) == (0.0, 0)


def test_typed_special_tokens_are_plain_text(chat, build) -> None:
    [score] = chat.loglikelihood([(build.question("Q"), "<|end|>")])
    assert score.num_tokens > 1


def test_rolling_is_the_loop_where_the_text_fits(base) -> None:
    texts = ["The os module.", "a", ""]
    for text, score in zip(texts, base.loglikelihood_rolling(texts), strict=True):
        ids = [token_id(base.tokenizer, BOS), *plain_ids(base, text)]
        assert score.nats == pytest.approx(brute_force(base, ids, 1), rel=1e-4, abs=1e-9)
        assert score.num_tokens == len(ids) - 1


def test_a_long_text_is_read_in_rows_that_overlap_by_a_quarter_or_more(base) -> None:
    text = "The os module gives access to files and folders. " * 8
    ids = [token_id(base.tokenizer, BOS), *plain_ids(base, text)]
    assert 112 < len(ids) <= 160, "three rows of 64"
    rows = [(0, 1, 64), (48, 64, 112), (len(ids) - 64, 112, len(ids))]  # read from, score from, to
    expected = sum(brute_force(base, ids[a:b], start - a) for a, start, b in rows)
    [score] = base.loglikelihood_rolling([text])
    assert score.nats == pytest.approx(expected, rel=1e-4)


def test_a_uniform_model_needs_log2_vocabulary_bits_a_token_at_any_length(
    make_model, tokenizer
) -> None:
    uniform = LanguageModel(make_model(scale=0.0), tokenizer, chat=False)
    texts = ["x", "The os module gives access. " * 40]
    for score in uniform.loglikelihood_rolling(texts):
        bits = score.nats / math.log(2)
        assert bits == pytest.approx(score.num_tokens * math.log2(384), rel=1e-6)


@pytest.mark.parametrize(
    ("length", "start"),
    [(n, s) for n in (1, 2, 9, 10, 11, 17, 18, 64, 200) for s in (1, 3, 10, 15) if s <= n],
)
def test_windows_supervise_each_token_once_with_enough_before_it(length: int, start: int) -> None:
    ids = list(range(length))
    seen: list[int] = []
    for segment in windows(ids, start, 10, 3):
        assert len(segment.ids) <= 10
        assert list(segment.ids) == list(range(segment.ids[0], segment.ids[-1] + 1))
        assert not segment.supervised[0]
        scored = [t for t, wanted in zip(segment.ids, segment.supervised, strict=True) if wanted]
        assert segment.ids[0] == 0 or scored[0] - segment.ids[0] >= 3
        seen += scored
    assert seen == ids[start:]


def test_a_long_prompt_keeps_its_end(chat, build) -> None:
    long = build.question("The os module. " * 50 + "Which?")
    [score] = chat.loglikelihood([(long, "None.")])
    answer = plain_ids(chat, "None.")
    ids = [*encode_prompt(chat.tokenizer, long), *answer][-64:]
    assert score.nats == pytest.approx(brute_force(chat, ids, len(ids) - len(answer)), rel=1e-4)


@torch.no_grad()
def greedy(model: LanguageModel, ids: list[int], max_new_tokens: int) -> str:
    new: list[int] = []
    stops = (token_id(model.tokenizer, TURN_END), token_id(model.tokenizer, EOS))
    for _ in range(max_new_tokens):
        token = int(model.model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
        if token in stops:
            break
        new.append(token)
    return model.tokenizer.decode(new).strip()


def test_generation_is_greedy_in_any_company(chat, build) -> None:
    prompts = [build.question(text) for text in ("What?", "The os module. " * 3, "x")]
    alone = [greedy(chat, encode_prompt(chat.tokenizer, p), 12) for p in prompts]
    assert chat.generate_until(prompts, 12) == alone
    assert chat.generate_until(prompts[::-1], 12) == alone[::-1]
    assert any(alone)


def test_generation_stops_before_a_string(chat, build) -> None:
    prompts = [build.question("The os module. " * 3)]
    [whole] = chat.generate_until(prompts, 12)
    middle = whole[len(whole) // 2]
    [cut] = chat.generate_until(prompts, 12, until=(middle,))
    assert len(cut) < len(whole)
    assert cut == whole[: whole.index(middle)].strip()


def parrot(tokenizer, script: list[tuple[str, str]]) -> LlamaForCausalLM:
    """A model in which the second token of a pair always follows the first."""
    size = tokenizer.get_vocab_size()
    shape = ModelConfig(hidden_size=size, num_layers=1, num_heads=2, intermediate_size=16)
    model = new_model(shape, tokenizer, 0).eval()
    head = torch.zeros(size, size)
    for before, after in script:
        head[tokenizer.token_to_id(after), tokenizer.token_to_id(before)] = 1.0
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
    model.lm_head.weight = torch.nn.Parameter(head)
    return model


@pytest.mark.parametrize("end", [TURN_END, EOS, BOS])
def test_an_answer_ends_where_a_turn_or_a_text_does(tokenizer, build, end: str) -> None:
    model = parrot(tokenizer, [("<|assistant|>", "i"), *itertools.pairwise(["i", "o", end, "n"])])
    found = LanguageModel(model, tokenizer, chat=True).generate_until([build.question("x")], 12)
    assert found == ["io"]


def test_a_base_model_answers_in_one_line(tokenizer, build) -> None:
    words = ["i", "o", "Ċ", "n", TURN_END]  # Ċ is byte-level BPE's sign for a line end
    script = [(":", "i"), ("<|assistant|>", "i"), *itertools.pairwise(words)]
    model = parrot(tokenizer, script)
    for chat, expected in ((False, "io"), (True, "io\nn")):
        speaker = LanguageModel(model, tokenizer, chat=chat)
        assert speaker.generate_until([build.question("Q")], 12) == [expected]


def test_a_prompt_longer_than_the_context_still_gets_an_answer(chat, build) -> None:
    assert len(chat.generate_until([build.question("os " * 500)], 20)) == 1
    with pytest.raises(UserError, match="max_new_tokens = 64"):
        chat.generate_until([build.question("Q")], 64)


def test_no_prompts_no_answers(chat) -> None:
    assert chat.generate_until([], 5) == []
    assert chat.loglikelihood([]) == []


def test_next_tokens_are_the_softmax(base) -> None:
    guesses = base.next_tokens("The os", 3)
    ids = [token_id(base.tokenizer, BOS), *plain_ids(base, "The os")]
    assert "".join(g.token for g in guesses) == BOS + "The os"
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([ids])).logits[0]
    for guess, row in zip(guesses, torch.softmax(logits, -1), strict=True):
        assert [p for _, p in guess.likeliest] == pytest.approx(row.topk(3).values.tolist())


def test_dreams_repeat_with_their_seed(base) -> None:
    first = base.sample_documents(3, 20, 0.8, seed=7)
    assert first == base.sample_documents(3, 20, 0.8, seed=7)
    assert first != base.sample_documents(3, 20, 0.8, seed=8)


def test_a_model_of_nans_is_refused(make_model, tokenizer) -> None:
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(UserError, match="diverged"):
        LanguageModel(model, tokenizer, chat=False).loglikelihood_rolling(["os"])


def test_the_lineage_decides_how_a_model_is_asked(publish, registry) -> None:
    assert not LanguageModel.load(registry, publish("base")).chat
    assert LanguageModel.load(registry, publish("sft", seed=1)).chat
    reward = publish("reward", seed=2)
    with pytest.raises(UserError, match="reward model"):
        LanguageModel.load(registry, reward)
    with pytest.raises(UserError, match="'base'"):
        RewardModel.load(registry, publish("base"))
    with pytest.raises(UserError, match="no model"):
        LanguageModel.load(registry, "0" * 64)


def test_rewards_are_read_at_the_last_token_of_each_answer(publish, registry, build) -> None:
    judge = RewardModel.load(registry, publish("reward"))
    pairs = [(build.question("What?"), a) for a in ("None.", "The os module. " * 4, "")]
    found = judge.scores(pairs)
    end = token_id(judge.tokenizer, TURN_END)
    for (messages, answer), score in zip(pairs, found, strict=True):
        text = judge.tokenizer.encode(answer, add_special_tokens=False).ids
        ids = torch.tensor([[*encode_prompt(judge.tokenizer, messages), *text, end]])
        with torch.no_grad():
            body = judge.model.model(input_ids=ids).last_hidden_state
            expected = float(judge.model.score(body[0, -1]))
        assert score == pytest.approx(expected, rel=1e-4, abs=1e-5)
