"""Rank K answers, ties allowed; nothing tells which model wrote which."""

import string

import streamlit as st

from labeling_app import ranking, submissions
from labeling_app.assignment import Work
from labeling_app.auth import Account
from labeling_app.store import Store
from labeling_app.views import desk, look

SIDE_BY_SIDE = 4


def page(store: Store, who: Account) -> None:
    work = _work(store, who)
    if work is None:
        desk.nothing_to_do("compare", "compare")
        return
    desk.header(work, f"compare {len(work.answers)}")
    desk.problem()
    beside = len(work.answers) <= SIDE_BY_SIDE
    with st.container(key="prompt" if beside else "pinned"):
        look.prompt(work.prompt)
    if beside:
        for place, column in enumerate(st.columns(len(work.answers), gap="small")):
            with column:
                _answer(store, who, work, place, "answer")
    else:
        for place in range(len(work.answers)):
            _answer(store, who, work, place, "stacked")
    _verdict(store, who, work)


def _work(store: Store, who: Account) -> Work | None:
    held: Work | None = st.session_state.get("work-compare")
    fresh = held is None or _confidence_key(held) not in st.session_state
    work = desk.task_at_hand(store, who, "compare", refresh=fresh)
    if work and fresh:
        body = work.draft.body if work.draft else {}
        for place, rank in enumerate(body.get("ranks", [None] * len(work.answers))):
            st.session_state[_rank_key(work, place)] = rank
        st.session_state[_confidence_key(work)] = body.get("confidence")
    return work


def _answer(store: Store, who: Account, work: Work, place: int, kind: str) -> None:
    letter = string.ascii_uppercase[place]
    look.box(f"Answer {letter}", work.answers[place].text, kind)
    st.segmented_control(
        f"Rank of {letter}",
        range(1, len(work.answers) + 1),
        key=_rank_key(work, place),
        required=True,  # else a second click would take the rank away
        on_change=_save,
        args=(store, who, work),
        label_visibility="collapsed",
    )


def _verdict(store: Store, who: Account, work: Work) -> None:
    ranks = _ranks(work)
    letters = dict(zip(string.ascii_uppercase, ranks, strict=False))
    words = ranking.in_words(letters) or "Rank each answer: 1 is best. Equal ranks are a tie."
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with left:
        look.line(words)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(
                "Submit",
                key="submit",
                type="primary",
                shortcut="Ctrl+Enter",
                disabled=None in ranks,
                on_click=_submit,
                args=(store, who, work),
            )
            desk.put_back_buttons(store, who, work)
            with st.popover(f"Instructions v{work.instruction_version}", key="guide-popover"):
                desk.instructions(store, who, height=360)
    with right:
        st.segmented_control(
            "How sure are you?",
            submissions.CONFIDENCES,
            key=_confidence_key(work),
            required=True,
            on_change=_save,
            args=(store, who, work),
        )


def _ranks(work: Work) -> list[int | None]:
    """In the order on the screen."""
    return [st.session_state[_rank_key(work, place)] for place in range(len(work.answers))]


def _rank_key(work: Work, place: int) -> str:
    return f"rank-{work.task_id}-{place}"


def _confidence_key(work: Work) -> str:
    return f"confidence-{work.task_id}"


def _save(store: Store, who: Account, work: Work) -> None:
    body = {"ranks": _ranks(work), "confidence": st.session_state[_confidence_key(work)]}
    desk.save(store, who, work, body)


def _submit(store: Store, who: Account, work: Work) -> None:
    by_position = {
        answer.position: rank
        for answer, rank in zip(work.answers, _ranks(work), strict=True)
        if rank is not None
    }
    ranks = [by_position[position] for position in sorted(by_position)]
    confidence = st.session_state[_confidence_key(work)]
    desk.hand_in(
        work,
        lambda: submissions.submit_comparison(
            store, who, work.token, ranks, confidence, idem_key=work.token
        ),
    )
