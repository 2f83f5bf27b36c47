"""A peer's label, read by another person: accept, return with a reason, or put one's own in."""

import streamlit as st

from labeling_app import guidelines, reviews
from labeling_app.auth import Account
from labeling_app.reviews import REASONS, ToReview
from labeling_app.store import Store
from labeling_app.views import label_parts, look
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
        label_parts.handed_in(label)
    with right:
        _verdict(store, who, label)
        with st.expander("How it was made", expanded=True):
            label_parts.how_made(label)


def _verdict(store: Store, who: Account, label: ToReview) -> None:
    numbers = [clause.number for clause in guidelines.newest(store, who).clauses]
    key = f"{label.kind}-{label.id}"
    reason = st.selectbox("Reason to return or decide", REASONS, index=None, key=f"reason-{key}")
    clause = st.selectbox("Clause", numbers, index=None, key=f"clause-{key}")
    comment = st.text_area("What to do better", key=f"comment-{key}", max_chars=2000, height=90)
    with st.container(horizontal=True):
        accept = st.button("Accept", key="accept", type="primary", shortcut="Ctrl+Enter")
        back = st.button("Return", key="return", shortcut="Alt+B")
        decide = st.button("Put mine in", key="adjudicate", shortcut="Alt+M")
    if accept and reason:
        st.error("Not done: a reason is chosen; take it away to accept, or return the label.")
        return
    if (back or decide) and not reason:
        st.error("Not done: choose a reason first.")
        return
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
            page = "compare" if label.kind == "compare" else "."
            look.table(("",), [(look.Link("Open it", page, {}),)])
            return
        else:
            return
    except UserError as error:
        st.error(f"Not done: {error}.")
        return
    st.rerun()
