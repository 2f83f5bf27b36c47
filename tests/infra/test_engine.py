"""The engine behind the server: requests at once, a change of champion, a model that fails; and
its parts, the line and the text of an answer."""

import json
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from finetune.registry import Registry
from finetune.tokenizer import token_pieces
from infra.engine import AnswerText, BusyError, Engine, Line
from tests.infra import model_server
from tests.infra.model_server import ASKED, LONG, serving, streamed, wait_until

# The fixtures, under the names by which pytest finds them.
one_thread, tokenizer = model_server.one_thread, model_server.tokenizer
publish, server = model_server.publish, model_server.server
long_server = model_server.long_server


def test_four_at_once_get_what_each_would_get_alone(server) -> None:
    def answer(seed: int) -> str:
        with server.ask(**ASKED, seed=seed, max_tokens=40, stream=True) as chunks:
            return streamed(chunks).text

    alone = [answer(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, range(8))) == alone
    wait_until(lambda: server.engine.num_in_line == 0)


def test_a_new_champion_answers_while_the_old_one_finishes(publish, tmp_path) -> None:
    registry = Registry(str(tmp_path))
    old, new = publish(registry, 1), publish(registry, 2)
    registry.promote(old, "the first")
    options = {**ASKED, "seed": 1, "max_tokens": 40}
    with serving(Engine(registry)) as server:
        undisturbed = server.ask(**options).choices[0].message.content
        line = server.engine._served.line
        ahead = line.join()
        with server.ask(**options, stream=True) as chunks:
            registry.promote(new, "better")
            assert server.client.models.list().data[0].id == new
            answer = server.ask(**options)
            assert answer.model == new
            assert answer.choices[0].message.content != undisturbed
            assert len(line) == 2
            line.leave(ahead)
            rest = streamed(chunks)
        assert rest.models == {old}
        assert rest.text == undisturbed
        with pytest.raises(openai.NotFoundError):
            server.ask(**{**options, "model": old})
        registry.rollback("it swears")
        again = server.ask(**{**options, "model": old})
        assert again.choices[0].message.content == undisturbed


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"nonsense"])
def test_a_pointer_damaged_while_it_is_served_changes_nothing(
    publish, tmp_path, caplog, text
) -> None:
    registry = Registry(str(tmp_path))
    registry.promote(publish(registry), "the first")
    with serving(Engine(registry)) as server:
        first = server.ask(**ASKED, max_tokens=1).model
        (tmp_path / "pointers" / "champion").write_bytes(text)
        for _ in range(2):
            assert server.ask(**ASKED, max_tokens=1).model == first
    assert [message.count("goes on") for message in caplog.messages if first in message] == [1]


@pytest.mark.parametrize("damage", ["changed on disk", "not numbers", "a reward model"])
def test_a_champion_that_cannot_serve_leaves_the_old_one_serving(
    publish, tmp_path, caplog, damage
) -> None:
    registry = Registry(str(tmp_path))
    old = publish(registry)
    bad = publish(
        registry,
        2,
        "reward" if damage == "a reward model" else "sft",
        spoil=damage == "not numbers",
    )
    good = publish(registry, 3)
    registry.promote(old, "the first")
    engine = Engine(registry)
    weights = registry.folder(bad) / "model.safetensors"
    published = weights.read_bytes()
    if damage == "changed on disk":
        weights.write_bytes(published[:-1])
    registry.promote(bad, "by mistake")
    with serving(engine) as server:
        for _ in range(2):
            assert server.ask(**ASKED, max_tokens=1).model == old
        assert server.client.models.list().data[0].id == old
        registry.promote(good, "mended")
        assert server.ask(**ASKED, max_tokens=1).model == good
        weights.write_bytes(published)
        if damage == "changed on disk":
            registry.promote(bad, "restored")
            assert server.ask(**ASKED, max_tokens=1).model == bad
    errors = [
        record for record in caplog.records if "cannot serve the new champion" in record.message
    ]
    assert len(errors) == 1
    assert bad in errors[0].message


def test_beyond_the_limit_a_request_is_told_to_come_back(long_server) -> None:
    options = {**ASKED, "temperature": 0, "max_tokens": LONG, "stream": True}
    with long_server.ask(**options), long_server.ask(**options):
        with pytest.raises(
            openai.InternalServerError, match="2 requests are being answered"
        ) as caught:
            long_server.ask(**ASKED)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "1"
    wait_until(lambda: long_server.engine.num_in_line == 0)
    assert long_server.ask(**ASKED, max_tokens=3, temperature=0).usage.completion_tokens == 3


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_model(long_server, stream) -> None:
    body = json.dumps({**ASKED, "temperature": 0, "max_tokens": LONG, "stream": stream}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    port = int(long_server.url.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port)) as writing,
        socket.create_connection(("127.0.0.1", port)) as waiting,
    ):
        writing.sendall(head.encode() + body)
        if stream:
            assert b"200 OK" in writing.recv(1000)
        wait_until(lambda: long_server.engine.num_in_line == 1)
        waiting.sendall(head.encode() + body)
        wait_until(lambda: long_server.engine.num_in_line == 2)
        waiting.close()
        wait_until(lambda: long_server.engine.num_in_line == 1, 1)
    wait_until(lambda: long_server.engine.num_in_line == 0, 1)


def test_a_model_that_fails_says_so_and_frees_its_place(long_server, caplog) -> None:
    options = {**ASKED, "temperature": 1, "max_tokens": LONG}
    long_server.engine._served.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(openai.InternalServerError, match="the model failed"):
        long_server.ask(**options)
    with (
        pytest.raises(openai.APIError, match="the model failed"),
        long_server.ask(**options, stream=True) as chunks,
    ):
        streamed(chunks)
    wait_until(lambda: long_server.engine.num_in_line == 0)
    assert "probability tensor" in caplog.text


# ---------------------------------------------------------------------------------------- its parts


def test_bytes_of_tokens_are_what_the_tokenizer_decodes(tokenizer) -> None:
    bytes_of, draw = token_pieces(tokenizer), random.Random(0)
    assert sorted(bytes_of) == list(range(tokenizer.get_vocab_size()))
    for _ in range(500):
        ids = draw.choices(range(len(bytes_of)), k=draw.randint(1, 30))
        text = AnswerText((), skip_leading_blanks=False)
        pieces = [text.feed(bytes_of[i]) for i in ids] + [text.feed(b"", final=True)]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_stop_strings_against_brute_force_however_the_text_is_cut() -> None:
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices("abé", k=draw.randint(0, 12)))
        stops = [
            "".join(draw.choices("abé", k=draw.randint(1, 4))) for _ in range(draw.randint(0, 3))
        ]
        expected, stopped = text, False
        for end in range(len(text) + 1):
            starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
            if starts:
                expected, stopped = text[: min(starts)], True
                break
        answer, told, data = AnswerText(stops, skip_leading_blanks=False), "", text.encode()
        while data and not answer.stopped:
            size = draw.randint(1, 4)
            told, data = told + answer.feed(data[:size]), data[size:]
            assert expected.startswith(told)
        if not answer.stopped:
            told += answer.feed(b"", final=True)
        assert (told, answer.stopped) == (expected, stopped)


def test_the_line_is_first_come_first_served() -> None:
    line = Line(3)
    first, second, third = line.join(), line.join(), line.join()
    with pytest.raises(BusyError):
        line.join()
    line.leave(second)
    line.leave(second)
    assert line.wait(first, 0)
    assert not line.wait(third, 0.01)
    threading.Timer(0.05, line.leave, [first]).start()
    assert line.wait(third, 5)
