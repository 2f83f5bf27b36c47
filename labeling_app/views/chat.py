"""Chat with the deployed assistant; a thumb down sends its answer to the labelers."""

import dataclasses
import datetime as dt
import time
import uuid
from typing import Any

import streamlit as st

from labeling_app import running
from labeling_app.auth import Account
from labeling_app.chat import ChatClient, EndpointError
from labeling_app.feedback import record_feedback
from labeling_app.store import Store
from labeling_app.tasks import code_of
from labeling_app.views import look
from pipeline.core.errors import UserError
from pipeline.core.identity import prompt_id
from pipeline.core.records import Feedback, Message

_REDRAW_S = 0.05


@dataclasses.dataclass(frozen=True)
class Turn:
    """`turn_id` names an answer for its thumbs; `model` is empty for the person's own words."""

    role: str
    text: str
    turn_id: str = ""
    model: str = ""


def page(store: Store, who: Account) -> None:
    endpoint = running.settings().endpoint
    turns: list[Turn] = st.session_state.setdefault("turns", [])
    if endpoint:
        said = st.chat_input("Your message", key="said-to-model", max_chars=20_000)
        if said and str(said).strip():
            turns.append(Turn("user", str(said)))
    with st.container(key="column"):
        if not endpoint:
            st.info(
                "No assistant is named. `flywheel app` names the one that `flywheel serve` serves."
            )
            return
        if not turns:
            look.line("Ask the assistant that is deployed now. A thumb down becomes a task.")
        for place in range(len(turns)):
            _show(store, who, turns, place)
        if turns and turns[-1].role == "user":
            _answer(endpoint, turns)


def _show(store: Store, who: Account, turns: list[Turn], place: int) -> None:
    turn = turns[place]
    st.html(look.turn("You" if turn.role == "user" else "Assistant", turn.text))
    if turn.role == "user":
        return
    if not turn.text.strip():
        look.line("The model gave an empty answer.")
    with st.container(horizontal=True, vertical_alignment="center"):
        key = f"thumb-{turn.turn_id}"
        st.feedback("thumbs", key=key, on_change=_rate, args=(store, who, turns[: place + 1]))
        if place == len(turns) - 1 and st.button("Regenerate", key="regenerate"):
            turns.pop()
            st.rerun()
        look.line(st.session_state.get(f"rated-{turn.turn_id}", ""))


def _answer(endpoint: str, turns: list[Turn]) -> None:
    """Stream the answer to the last turn; a broken-off one is not kept as an answer."""
    client = ChatClient(endpoint)
    text, shown_at = "", 0.0
    place: Any = st.empty()
    try:
        model = client.models()[0]
        for piece in client.stream(model, [Message.of(t.role, t.text) for t in turns]):
            text += piece
            if time.monotonic() - shown_at > _REDRAW_S:
                place.html(look.turn("Assistant", text))
                shown_at = time.monotonic()
    except EndpointError as error:
        st.error(f"{error}. Your message is kept.")
        st.button("Try again", key="try-again")
        return
    finally:
        client.close()
    turns.append(Turn("assistant", text, uuid.uuid4().hex, model))
    st.rerun()


def _rate(store: Store, who: Account, turns: list[Turn]) -> None:
    """`turns` end with the rated answer; a copy, for the list goes on or is taken back."""
    turn = turns[-1]
    thumb: int | None = st.session_state[f"thumb-{turn.turn_id}"]
    if thumb is None:
        return
    rating = 1 if thumb == 1 else -1
    messages = tuple(Message.of(each.role, each.text) for each in turns)
    feedback = Feedback(
        feedback_id=f"{turn.turn_id}:{rating}",
        prompt_id=prompt_id(messages[:-1]),
        messages=messages,
        model_id=turn.model,
        rating=rating,
        comment="",
        created_at=store.clock().astimezone(dt.UTC),
    )
    try:
        receipt = record_feedback(store, feedback, who)
    except UserError as error:
        st.session_state[f"rated-{turn.turn_id}"] = f"Not kept: {error}"
        return
    said = "Thank you."
    if receipt.task_id is not None:
        said = f"Thank you: it is task {code_of(store, receipt.task_id)} now."
    st.session_state[f"rated-{turn.turn_id}"] = said
