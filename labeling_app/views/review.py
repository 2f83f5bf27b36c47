"""A peer's label, read by another person: accept, return with a reason, or put one's own in."""

import streamlit as st

from labeling_app import guidelines, reviews
from labeling_app.auth import Account
from labeling_app.reviews import REASONS, ToReview
from labeling_app.store import Store
from labeling_app.views import look
from pipeline.core.errors import UserError


def page(store: Store, who: Account) -> None:
    label = reviews.next_review(store, who)
    if label is None:
        with st.container(key="column"):
            st.subheader("Nothing to review now", anchor=False)
            st.write("Labels that are drawn, or that a signal points at, appear here.")
            st.button("Look again", key="again", type="primary", shortcut="Ctrl+Enter")
        return
    waiting = reviews.waiting(store, who)
    look.line(
        f"{'Answer' if label.kind == 'demo' else 'Ranking'} {label.id} of task {label.task_id} ·"
        f" {label.why} · instructions v{label.instruction_version} · {waiting} wait for review"
    )
    left, right = st.columns([1.6, 1], gap="medium")
    with left, st.container(height=560, border=False, key="label"):
        look.prompt(label.prompt)
        _label(label)
    with right:
        _verdict(store, who, label)
        _seen(label)


def _label(label: ToReview) -> None:
    for turn in label.turns:
        look.box("Answer" if turn.role == "assistant" else "Question", turn.text, "turn")
    for place, answer in enumerate(label.answers):
        letter = chr(65 + place)
        quality = f" · quality {answer.likert}" if answer.likert else ""
        boxes = f" · {', '.join(answer.flags)}" if answer.flags else ""
        look.box(f"{letter}: rank {answer.rank}{quality}{boxes}", answer.text, "stacked")
    for name, value in label.words.items():
        look.line(f"{name}: {value}")


def _verdict(store: Store, who: Account, label: ToReview) -> None:
    numbers = [clause.number for clause in guidelines.newest(store, who).clauses]
    key = f"{label.kind}-{label.id}"
    reason = st.selectbox("Reason to return or decide", REASONS, index=None, key=f"reason-{key}")
    clause = st.selectbox("Clause", numbers, index=None, key=f"clause-{key}")
    comment = st.text_area("What to do better", key=f"comment-{key}", max_chars=2000, height=90)
    with st.container(horizontal=True):
        accept = st.button("Accept", key="accept", type="primary", shortcut="Ctrl+Enter")
        back = st.button("Return", key="return", shortcut="F8")
        decide = st.button("Put mine in", key="adjudicate", shortcut="F9")
    try:
        if accept:
            reviews.review(store, who, label.kind, label.id, "accepted", comment=comment or "")
        elif back:
            reviews.review(
                store,
                who,
                label.kind,
                label.id,
                "returned",
                reason or "",
                clause or "",
                comment or "",
            )
        elif decide:
            reviews.adjudicate(store, who, label.kind, label.id, reason or "")
            area = "Compare" if label.kind == "compare" else "Write"
            st.info(f"It is open on the page {area}; what you hand in there takes its place.")
            return
        else:
            return
    except UserError as error:
        st.error(f"Not done: {error}.")
        return
    st.rerun()


def _seen(label: ToReview) -> None:
    """What its author saw and did: facts, no judgement."""
    with st.expander("How it was made", expanded=True):
        look.line(
            f"{label.created_at:%d %b %Y, %H:%M} UTC · {label.active_ms / 1000:.0f} s at work"
        )
        if label.kind == "demo":
            edited = f", {label.edit_chars} characters from it" if label.edit_chars else ""
            drafts = {"human": "written without a draft", "accepted": "a draft as it was"}
            origin = drafts.get(label.origin, f"from a draft{edited}")
            look.line(f"{origin} · {label.pasted_chars} characters pasted")
        for shown in label.assists:
            took = ", ".join(f"{action} {part + 1}" for part, action in shown.actions)
            look.line(
                f"{shown.kind} by {shown.model}, {len(shown.parts)} parts; {took or 'none used'}"
            )
            for number, part in enumerate(shown.parts, 1):
                look.excerpt(f"{number}  {part}")
        for number, text in enumerate(label.earlier, 1):
            look.line(f"{number} before this")
            look.excerpt(text)
