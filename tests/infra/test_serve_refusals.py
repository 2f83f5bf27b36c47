"""What the server refuses, in the words and with the status that an openai client expects."""

import json

import openai
import pytest

from finetune.chat import encode_prompt
from infra.serve import MAX_BODY_BYTES
from pipeline.core.records import Message
from tests.infra import model_server
from tests.infra.model_server import ASKED, QUESTION, SHORT

# The fixtures, under the names by which pytest finds them.
one_thread, tokenizer = model_server.one_thread, model_server.tokenizer
publish, server = model_server.publish, model_server.server

JSON = {"content-type": "application/json"}


def test_an_unknown_model(server) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4o' here") as caught:
        server.ask(model="gpt-4o", messages=QUESTION)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("param", "wrong"),
    [
        ("n", {"n": 2}),
        ("n", {"n": True}),
        ("top_p", {"top_p": 0.9}),
        ("tools", {"tools": [{"type": "function"}]}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("best_of", {"best_of": 1}),
        ("temperature", {"temperature": 2.1}),
        ("temperature", {"temperature": -1}),
        ("temperature", {"temperature": "1"}),
        ("temperature", {"temperature": True}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 1.5}),
        ("max_tokens", {"max_tokens": 5, "max_completion_tokens": 6}),
        ("seed", {"seed": 10**30}),
        ("seed", {"seed": "1"}),
        ("stop", {"stop": 5}),
        ("stop", {"stop": ["a", "b", "c", "d", "e"]}),
        ("stop[1]", {"stop": ["a", ""]}),
        ("stream", {"stream": "yes"}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("stream_options.extra", {"stream": True, "stream_options": {"extra": 1}}),
        ("model", {"model": 5}),
        ("messages", {"messages": []}),
        ("messages", {"messages": "hello"}),
        ("messages[0]", {"messages": ["hello"]}),
        ("messages[0].role", {"messages": [{"role": "tool", "content": "x"}]}),
        ("messages[0].role", {"messages": [{"content": "x"}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": None}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": 5}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": []}]}),
        (
            "messages[1].name",
            {"messages": [*QUESTION, {"role": "user", "content": "", "name": "x"}]},
        ),
        (
            "messages[0].content[0].type",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        ),
    ],
)
def test_a_bad_parameter_is_named(server, param, wrong) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client.post("/chat/completions", body={**ASKED, **wrong}, cast_to=object)
    assert caught.value.param == param
    assert param.partition("[")[0].partition(".")[0] in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b'{"model": "champion", "messages"',
        b"[" * 100_000,
        b'{"model": "champion", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "champion", "temperature": NaN, "messages": [{"role": "user", "content": ""}]}',
        b'{"model": "champion", "messages": [{"role": "user", "content": ""}], "'
        + b"k" * 9000
        + b'": 1}',
    ],
)
def test_a_body_that_is_no_request(server, body) -> None:
    response = server.http.post("/v1/chat/completions", content=body, headers=JSON)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) < 400


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (None, 415),
        ("text/plain", 415),
        ("text/plain; x=application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data", 415),
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
    ],
)
def test_a_web_page_cannot_ask_without_asking_the_server_first(server, kind, status) -> None:
    """The kinds that a browser sends to another site with no preflight are refused."""
    headers = {} if kind is None else {"content-type": kind}
    body = json.dumps({**ASKED, "max_tokens": 1}).encode()
    response = server.http.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == status
    asked = {"origin": "http://evil.test", "access-control-request-method": "POST"}
    preflight = server.http.options("/v1/chat/completions", headers=asked)
    assert preflight.is_error
    assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_body_over_the_limit(server, in_chunks) -> None:
    message = {"role": "user", "content": "x" * (12 * MAX_BODY_BYTES)}
    body = json.dumps({"model": "champion", "messages": [message]}).encode()
    content = iter([body[:MAX_BODY_BYTES], body[MAX_BODY_BYTES:]]) if in_chunks else body
    response = server.http.post("/v1/chat/completions", content=content, headers=JSON)
    assert response.status_code == 413
    assert "1,000,000 bytes" in response.json()["error"]["message"]


def test_other_addresses_and_methods_have_the_same_shape(server) -> None:
    for response, status in (
        (server.http.get("/v1/nothing"), 404),
        (server.http.get("/v1/chat/completions"), 405),
        (server.http.get("/docs"), 404),
    ):
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"


# ------------------------------------------------------------------------------ what does not fit


def test_what_does_not_fit_gives_way_oldest_first(server, tokenizer) -> None:
    served = server.engine._served
    system = Message.of("system", "be kind")
    turns = [Message.of(("user", "assistant")[i % 2], f"turn {i} the heap") for i in range(41)]
    ids, dropped = served.fit([system, *turns], max_tokens=20)
    assert ids == encode_prompt(tokenizer, [system, *turns[dropped:]])
    assert len(ids) <= SHORT - 20
    assert turns[dropped].role == "user"
    more = encode_prompt(tokenizer, [system, *turns[dropped - 2 :]])
    assert len(more) > SHORT - 20
    assert served.fit([system, *turns[-3:]], 20)[1] == 0
    body = {
        "model": "champion",
        "max_tokens": 20,
        "messages": [{"role": m.role, "content": m.text} for m in [system, *turns]],
    }
    response = server.http.post("/v1/chat/completions", json=body)
    assert response.headers["x-flywheel-dropped-turns"] == str(dropped)
    assert response.json()["usage"]["prompt_tokens"] == len(ids)


@pytest.mark.parametrize("length", [300, 900_000])
def test_a_last_message_that_cannot_fit(server, length) -> None:
    with pytest.raises(
        openai.BadRequestError, match="does not fit into the model's 128 tokens"
    ) as caught:
        server.ask(model="champion", messages=[{"role": "user", "content": "é" * (length // 2)}])
    assert caught.value.code == "context_length_exceeded"


def test_the_answer_ends_where_the_context_does(server, tokenizer) -> None:
    message = Message.of("user", "!" * 110)
    used = len(encode_prompt(tokenizer, [message]))
    asked = [{"role": "user", "content": message.text}]
    answer = server.ask(model="champion", messages=asked, temperature=0, max_tokens=5000)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == SHORT - used
