"""Several clients of one served model share a forward pass per token, and none notices."""

import gc
import itertools
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from finetune.answer_text import AnswerText
from finetune.continuous_batch import ContinuousBatch, Request
from finetune.generate import Sampling, generate
from finetune.model import ModelConfig, new_model
from finetune.registry import Registry
from finetune.tokenizer import token_pieces
from infra.engine import Engine, Line
from infra.shared_batch import SharedBatch
from pipeline.core.errors import UserError
from pipeline.core.records import Message
from tests.infra import model_server
from tests.infra.model_server import LONG, SHAPE, wait_until

# The fixtures, under the names by which pytest finds them.
one_thread, tokenizer, publish = (
    model_server.one_thread,
    model_server.tokenizer,
    model_server.publish,
)
QUESTION = [Message.of("user", "does a heap keep order?")]


@pytest.fixture
def model(tokenizer):
    return new_model(ModelConfig(**SHAPE, max_length=LONG), tokenizer, 1).eval()


def widths_of(model) -> list[int]:
    """Filled with the number of rows of each forward pass."""
    widths: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, given: widths.append(len(given["input_ids"])), with_kwargs=True
    )
    return widths


def sharing(model, max_rows: int, known, **options) -> SharedBatch:
    return SharedBatch(lambda: ContinuousBatch(model, max_rows, token_bytes=known, **options))


def collect(ticket) -> tuple[tuple[int, ...], str, str]:
    ids, text, end = (), "", None
    while end is None:
        if delta := ticket.next(5):
            ids, text, end = ids + delta.ids, text + delta.text, delta.end
    return ids, text, end


def batch_threads() -> int:
    return sum(thread.name == "batch" for thread in threading.enumerate())


def test_clients_on_many_threads_get_what_each_would_get_alone(model, tokenizer) -> None:
    known, widths = token_pieces(tokenizer), widths_of(model)
    shared = sharing(model, 4, known)

    def one(seed: int) -> None:
        draw = random.Random(seed)
        prompt = [draw.randrange(300) for _ in range(draw.randint(1, 40))]
        stops = draw.choice([(), ("e", "he")])
        sampling = Sampling(draw.randint(1, 40), draw.choice([0, 1]), stop_strings=stops)
        ticket = shared.submit(Request(prompt, sampling, seed, answer=AnswerText(stops, False)))
        ids, text, end = collect(ticket)
        [expected] = generate(model, [prompt], sampling, seed, token_bytes=known)
        assert (ids, text) == (expected.ids, expected.text)
        assert end == ("stop" if expected.finished else "length")
        ticket.cancel()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(32)))
    assert max(widths) == 4
    wait_until(lambda: batch_threads() == 0)


def test_replies_of_one_engine_are_written_side_by_side(publish, tmp_path) -> None:
    registry = Registry(str(tmp_path))
    registry.promote(publish(registry), "the first")
    engine = Engine(registry)
    alone = ["".join(p.text for p in engine.reply(QUESTION, 60, 1.0, seed)) for seed in range(4)]
    widths = widths_of(engine._served.model)
    replies = [engine.reply(QUESTION, 60, 1.0, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        texts = pool.map(lambda reply: "".join(p.text for p in reply), replies)
        assert list(texts) == alone
    assert max(widths) > 1
    assert engine.num_in_line == 0


def test_a_closed_reply_frees_its_place_at_the_next_token(publish, tmp_path) -> None:
    registry = Registry(str(tmp_path))
    registry.promote(publish(registry, positions=LONG), "the first")
    engine = Engine(registry)
    replies = [engine.reply(QUESTION, LONG, 0.0, 0) for _ in range(3)]
    for reply in replies:
        assert next(piece for piece in reply._pieces if piece.text is not None)
    assert engine.num_in_line == 3
    for reply in replies:
        reply.close()
    assert engine.num_in_line == 0
    wait_until(lambda: batch_threads() == 0, 1)


def test_a_long_prompt_does_not_hold_up_who_writes(model, tokenizer) -> None:
    shared = sharing(model, 2, token_pieces(tokenizer), prompt_tokens=16)
    sizes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda _, __, given: sizes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    writing = shared.submit(Request([70], Sampling(LONG, 0), 0))
    assert writing.next(5)
    before = len(sizes)
    assert collect(shared.submit(Request([71] * 400, Sampling(1, 0), 0)))[2] == "length"
    parts = [i for i, (_, length) in enumerate(sizes) if i >= before and length > 1]
    assert [sizes[i] for i in parts] == [(1, 16)] * 25
    assert {j - i for i, j in itertools.pairwise(parts)} == {2}, (
        "a token of the other between two parts"
    )
    writing.cancel()


def test_an_error_reaches_everyone_in_the_batch_and_the_next_is_served(model, tokenizer) -> None:
    shared = sharing(model, 4, token_pieces(tokenizer))
    tickets = [shared.submit(Request([70], Sampling(LONG, 0), 0)) for _ in range(3)]
    for ticket in tickets:
        assert ticket.next(5)
    fault = model.register_forward_pre_hook(lambda *_: 1 / 0)
    for ticket in tickets:
        with pytest.raises(ZeroDivisionError):
            while True:
                ticket.next(5)
    fault.remove()
    with pytest.raises(UserError, match="empty prompt"):
        shared.submit(Request([], Sampling(1), 0)).next(5)
    [expected] = generate(model, [[70]], Sampling(5, 0), 0)
    assert collect(shared.submit(Request([70], Sampling(5, 0), 0)))[0] == expected.ids


def test_cancelled_before_it_began_and_after_it_ended(model, tokenizer) -> None:
    shared = sharing(model, 1, token_pieces(tokenizer))
    first = shared.submit(Request([70], Sampling(LONG, 0), 0))
    waiting = shared.submit(Request([71], Sampling(5, 0), 0))
    waiting.cancel()
    assert first.next(5)
    third = shared.submit(Request([72], Sampling(5, 0), 0))
    first.cancel()
    assert collect(third)[2] == "length"
    assert waiting.next(0.05) is None
    for ticket in (first, waiting, third):
        ticket.cancel()
    wait_until(lambda: batch_threads() == 0)


def test_an_old_champion_is_gone_with_its_last_answer(publish, tmp_path) -> None:
    registry = Registry(str(tmp_path))
    old, new = publish(registry, 1, positions=LONG), publish(registry, 2)
    registry.promote(old, "the first")
    engine = Engine(registry)
    model = weakref.ref(engine._served.model)
    undisturbed = "".join(p.text for p in engine.reply(QUESTION, 80, 1.0, 3))
    reply = engine.reply(QUESTION, 80, 1.0, 3)
    pieces = iter(reply)
    text = next(pieces).text
    registry.promote(new, "better")
    assert list(engine.reply(QUESTION, 5, 1.0, 0))
    assert (engine.model_id, reply.model_id) == (new, old)
    assert text + "".join(piece.text for piece in pieces) == undisturbed
    wait_until(lambda: batch_threads() == 0)
    del reply, pieces
    gc.collect()
    assert model() is None


def test_the_line_lets_so_many_begin_in_order_of_arrival() -> None:
    line = Line(5, width=2)
    places = [line.join() for _ in range(4)]
    assert not line.wait(places[1], 0), "who came before has not begun"
    assert line.wait(places[0], 0)
    assert line.wait(places[1], 0)
    assert line.wait(places[1], 0)
    assert not line.wait(places[2], 0.01)
    line.leave(places[0])
    assert not line.wait(places[3], 0)
    threading.Timer(0.05, line.leave, [places[2]]).start()
    assert line.wait(places[3], 5)
    assert len(line) == 2
