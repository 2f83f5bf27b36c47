"""Requests that join and leave between tokens get what they would get alone."""

import dataclasses
import random

import pytest

from finetune.answer_text import AnswerText
from finetune.continuous_batch import ContinuousBatch, Request
from finetune.generate import Completion, Sampling, generate
from finetune.tokenizer import token_pieces
from pipeline.core.errors import UserError
from tests.finetune.test_generate import FAMILIES, make


def alone(model, request: Request) -> Completion:
    return generate(model, [request.prompt], request.sampling, request.seed, rows=[request.row])[0]


def run(batch: ContinuousBatch, deltas: list, steps: int | None = None) -> None:
    while batch and steps != 0:
        deltas += batch.step()
        steps = None if steps is None else steps - 1


def told(deltas, number: int) -> Completion:
    mine = [d for d in deltas if d.number == number]
    assert [d.end for d in mine[:-1]] == [None] * (len(mine) - 1)
    ids, log_probs = (sum((getattr(d, n) for d in mine), ()) for n in ("ids", "log_probs"))
    return Completion(ids, log_probs, mine[-1].end == "stop")


def same(found: Completion, expected: Completion) -> None:
    assert (found.ids, found.finished) == (expected.ids, expected.finished)
    assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-5)


def some_request(draw: random.Random) -> Request:
    sampling = Sampling(
        draw.randint(0, 20),
        draw.choice([0, 0.6, 1, 1.4]),
        stop_ids=tuple(range(draw.choice([0, 6]))),
        top_k=draw.choice([0, 0, 5]),
        top_p=draw.choice([1, 1, 0.8]),
    )
    prompt = [draw.randrange(120) for _ in range(draw.choice([1, 2, 5, 9, 23]))]
    return Request(prompt, sampling, draw.randrange(-5, 5), draw.randrange(3))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("max_rows", "prompt_tokens", "at_once"), [(3, 7, 1), (8, 40, 4)])
def test_whoever_comes_and_goes_when_he_likes(family, max_rows, prompt_tokens, at_once) -> None:
    """Random arrivals and cancellations, prompts read in parts, each row its own sampling."""
    model, draw = make(family), random.Random(max_rows)
    batch = ContinuousBatch(model, max_rows, prompt_tokens=prompt_tokens, join_at_once=at_once)
    asked: dict[int, Request] = {}
    cancelled: dict[int, int] = {}
    deltas: list = []
    for _ in range(24):
        for _ in range(draw.randint(0, 2)):
            request = some_request(draw)
            asked[batch.add(request)] = request
        if asked and draw.random() < 0.3:
            number = draw.choice(list(asked))
            cancelled.setdefault(number, len(deltas))
            batch.cancel(number)
        run(batch, deltas, draw.randint(0, 3))
        assert len(batch._running) <= max_rows
    run(batch, deltas)
    assert len(asked) > 15
    for number, request in asked.items():
        if number in cancelled:
            assert number not in {d.number for d in deltas[cancelled[number] :]}
        else:
            same(told(deltas, number), alone(model, request))
    assert len(batch) == 0
    assert batch._cache.layers == [], "an empty batch holds no memory"


def test_a_long_prompt_is_read_in_parts_while_the_others_write_on(model) -> None:
    batch, deltas = ContinuousBatch(model, 4, prompt_tokens=10), []
    writing = batch.add(Request([70, 71], Sampling(40, 0), 0))
    run(batch, deltas, 2)
    reading = Request([(i * 7) % 300 for i in range(95)], Sampling(3, 0), 0)
    late = batch.add(reading)
    behind = batch.add(Request([75], Sampling(3, 0), 0))
    for _ in range(9):
        assert [d.number for d in batch.step()] == [writing], "one token a step, as before"
    joined = batch.step()
    assert {d.number for d in joined} == {writing, late}
    run(batch, joined)
    same(told(joined, late), alone(model, reading))
    same(told(joined, behind), alone(model, Request([75], Sampling(3, 0), 0)))


def test_first_come_first_served_and_a_cancelled_place_is_free_at_the_next_token(model) -> None:
    batch = ContinuousBatch(model, 2)
    numbers = [batch.add(Request([70 + i], Sampling(50), i)) for i in range(5)]
    assert {d.number for d in batch.step()} == set(numbers[:2])
    batch.cancel(numbers[0])
    batch.cancel(numbers[3])
    batch.cancel(12345)
    assert {d.number for d in batch.step()} == {numbers[1], numbers[2]}
    batch.cancel(numbers[1])
    assert {d.number for d in batch.step()} == {numbers[2], numbers[4]}
    assert len(batch) == 2


def test_cancelled_while_its_prompt_is_read(model) -> None:
    batch, deltas = ContinuousBatch(model, 3, prompt_tokens=8), []
    long = [(i * 7) % 300 for i in range(40)]
    first, second = (batch.add(Request(long, Sampling(4), seed)) for seed in (1, 2))
    run(batch, deltas, 2)
    batch.cancel(first)
    run(batch, deltas)
    assert {d.number for d in deltas} == {second}
    same(told(deltas, second), alone(model, Request(long, Sampling(4), 2)))
    only = batch.add(Request(long, Sampling(4), 3))
    batch.step()
    batch.cancel(only)
    assert (len(batch), batch.step()) == (0, [])


def test_equal_prompts_are_read_once(model) -> None:
    read = []
    model.register_forward_pre_hook(
        lambda _, __, given: read.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    generate(model, [[70, 71, 72]] * 6 + [[80]] * 2, Sampling(2), 0)
    assert read == [(2, 3), (8, 1)]


@pytest.mark.parametrize("bad", ["alone", "with others"])
def test_one_request_that_fails_spoils_no_other_now_or_later(bad) -> None:
    """A token whose embedding is NaN: its row fails; its place then serves the next one well."""
    model = make("llama")
    model.model.embed_tokens.weight.data[99] = float("nan")
    others = [Request([7 + i], Sampling(30), i) for i in range(2 if bad == "with others" else 0)]
    batch, deltas = ContinuousBatch(model, len(others) + 1), []
    numbers = [batch.add(request) for request in others]
    poison = batch.add(Request([3, 99, 4, 5, 6, 7, 8, 9], Sampling(9), 0))
    run(batch, deltas, 3)
    later = Request([3], Sampling(20), 5)
    number = batch.add(later)
    run(batch, deltas)
    assert [d.end for d in deltas if d.number == poison] == ["failed"]
    same(told(deltas, number), alone(model, later))
    for each, request in zip(numbers, others, strict=True):
        same(told(deltas, each), alone(model, request))


def test_a_row_that_fails_in_the_middle_leaves_a_clean_place() -> None:
    """Its NaN keys and values lie where the next row has none yet, which a mask alone hides not."""
    model = make("llama")
    writing = Request([7], Sampling(50), 0)
    failing = Request([3, 5, 8], Sampling(30), 1)
    later = Request([2], Sampling(20), 2)
    clean = [alone(model, request) for request in (writing, failing, later)]
    others = {*clean[0].ids, *clean[2].ids}
    ids = clean[1].ids
    at = next(i for i, token in enumerate(ids) if i > 5 and token not in {*others, *ids[:i]})
    model.model.embed_tokens.weight.data[ids[at]] = float("nan")
    batch, deltas = ContinuousBatch(model, 2), []
    numbers = [batch.add(request) for request in (writing, failing, later)]
    run(batch, deltas)
    assert sum((d.ids for d in deltas if d.number == numbers[1]), ()) == ids[: at + 1]
    assert [d.end for d in deltas if d.number == numbers[1]][-1] == "failed"
    same(told(deltas, numbers[0]), clean[0])
    same(told(deltas, numbers[2]), clean[2])


def test_text_and_stop_strings_belong_to_their_request(model, tokenizer) -> None:
    known = token_pieces(tokenizer)
    requests = [
        Request([70 + i], Sampling(30), i, answer=AnswerText(stops, False))
        for i, stops in enumerate([("e",), (), ("he", "t"), ("never",)])
    ]
    batch, deltas = ContinuousBatch(model, 3, token_bytes=known), []
    numbers = [batch.add(request) for request in requests]
    run(batch, deltas)
    for number, request in zip(numbers, requests, strict=True):
        sampling = dataclasses.replace(request.sampling, stop_strings=request.answer.stops)
        [expected] = generate(model, [request.prompt], sampling, request.seed, token_bytes=known)
        same(told(deltas, number), dataclasses.replace(expected, text=""))
        assert "".join(d.text for d in deltas if d.number == number) == expected.text


def test_a_refused_request_leaves_the_batch_as_it_was(model) -> None:
    batch = ContinuousBatch(model, 2)
    with pytest.raises(UserError, match="empty prompt"):
        batch.add(Request([], Sampling(1), 0))
    assert len(batch) == 0
    assert batch.step() == []


def test_the_cache_grows_by_need_and_no_further_than_the_longest_answer(model) -> None:
    batch = ContinuousBatch(model, 64)
    batch.add(Request([70, 71, 72], Sampling(60, 0), 0))
    sizes = []
    while batch:
        batch.step()
        if batch._cache.layers:
            sizes.append(tuple(batch._cache.layers[0][0].shape))
    rows, heads, lengths, widths = map(set, zip(*sizes, strict=True))
    assert (rows, heads, widths) == ({2}, {2}, {16})
    assert len(lengths) <= 5, "doubled, not grown token by token"
    assert max(lengths) == 62 + 1, "the last token is never read; one column is for padding"
