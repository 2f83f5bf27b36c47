"""Write the ideal answer to a prompt."""

import streamlit as st

from labeling_app import submissions
from labeling_app.assignment import Work
from labeling_app.auth import Account
from labeling_app.store import Store
from labeling_app.views import desk, look

_HEIGHT = 260


def page(store: Store, who: Account) -> None:
    work = _work(store, who)
    if work is None:
        desk.nothing_to_do("demo", "write for")
        return
    key = _key(work)
    task, guide = st.columns([1.45, 1], gap="medium")
    with task:
        desk.header(work, "write")
        desk.problem()
        look.prompt(work.prompt)
        if work.answers:
            look.box("A user marked this as bad: write better", work.answers[0].text, "bad")
        st.text_area(
            "Your answer",
            key=key,
            height=_HEIGHT if work.answers else _HEIGHT + 110,
            on_change=_save,
            args=(store, who, work),
            placeholder="Write the answer that you would be glad to receive.",
        )
        _actions(store, who, work)
    with guide:
        desk.instructions(store, who, height=560)


def _work(store: Store, who: Account) -> Work | None:
    held: Work | None = st.session_state.get("work-demo")
    work = desk.task_at_hand(
        store, who, "demo", refresh=not held or _key(held) not in st.session_state
    )
    if work and _key(work) not in st.session_state:
        st.session_state[_key(work)] = str(work.draft.body.get("text", "")) if work.draft else ""
    return work


def _actions(store: Store, who: Account, work: Work) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Submit",
            key="submit",
            type="primary",
            shortcut="Ctrl+Enter",
            on_click=_submit,
            args=(store, who, work),
        )
        desk.put_back_buttons(store, who, work)
        look.line(f"{len(str(st.session_state[_key(work)]).split())} words")


def _key(work: Work) -> str:
    return f"answer-{work.task_id}"


def _save(store: Store, who: Account, work: Work) -> None:
    desk.save(store, who, work, {"text": st.session_state[_key(work)]})


def _submit(store: Store, who: Account, work: Work) -> None:
    text = str(st.session_state[_key(work)])
    desk.hand_in(
        work,
        lambda: submissions.submit_demonstration(store, who, work.token, text, idem_key=work.token),
    )
