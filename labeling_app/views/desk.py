"""What the two work pages share: the task at hand, its draft, putting it back, instructions."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from labeling_app import assignment, guidelines, submissions
from labeling_app.assignment import Kind, LeaseLostError, Work
from labeling_app.auth import Account
from labeling_app.store import Store
from labeling_app.views import look
from pipeline.core.errors import UserError

SKIP_REASONS = ("I do not know this subject", "It is unclear to me", "I would rather not")
FLAG_REASONS = ("The prompt is broken", "It is harmful", "It holds personal data", "Something else")


def task_at_hand(store: Store, who: Account, kind: Kind, refresh: bool) -> Work | None:
    """The task on this page; asked for anew with `refresh`, so that the draft is the newest."""
    slot = f"work-{kind}"
    if refresh or slot not in st.session_state:
        work = assignment.next_task(store, who, kind)
        if work is None:
            st.session_state.pop(slot, None)
            return None
        st.session_state[slot] = work
        st.session_state[f"rev-{kind}"] = work.draft.rev if work.draft else 0
        if work.draft:
            _say(kind, f"draft of {work.draft.saved_at:%d %b %Y, %H:%M:%S} UTC restored")
    return st.session_state[slot]


def save(store: Store, who: Account, work: Work, body: dict[str, Any]) -> None:
    """Keep the draft and say when; a failure is said too, and the text stays on the page."""
    rev = st.session_state[f"rev-{work.kind}"] + 1
    try:
        at = submissions.save_draft(store, who, work.token, rev, body)
    except UserError as error:
        st.session_state["problem"] = f"Not saved: {error}"
        return
    st.session_state[f"rev-{work.kind}"] = rev
    _say(work.kind, f"saved {at:%H:%M:%S} UTC")


def hand_in(work: Work, submit: Callable[[], object]) -> None:
    """Run a submission; on success the page goes on to the next task."""
    try:
        submit()
    except LeaseLostError as error:
        st.session_state["problem"] = str(error)
    except UserError as error:
        st.session_state["problem"] = f"Not submitted: {error}"
        return
    else:
        _say(work.kind, f"task {work.task_id} submitted")
    st.session_state.pop(f"work-{work.kind}", None)


def header(work: Work, name: str) -> None:
    left, right = st.columns([3, 2], vertical_alignment="center")
    with left:
        look.line(f"Task {work.task_id} · {name} · instructions v{work.instruction_version}")
    with right:
        look.line(st.session_state.get(f"said-{work.kind}", ""))


def problem() -> None:
    """What went wrong in the last step, once."""
    text = st.session_state.pop("problem", "")
    if text:
        st.error(text)


def put_back_buttons(store: Store, who: Account, work: Work) -> None:
    """Shift, because a bare key does nothing while a text box has the focus."""
    if st.button("Skip", key="skip", shortcut="Shift+F8"):
        _ask(store, who, work, "skip")
    if st.button("Flag", key="flag", shortcut="Shift+F7"):
        _ask(store, who, work, "flag")


def instructions(store: Store, who: Account, height: int) -> None:
    current = guidelines.newest(store, who)
    with (
        st.expander(f"Instructions v{current.n}", expanded=True),
        st.container(height=height, border=False, key="guide"),
    ):
        st.markdown(current.body_md)


def nothing_to_do(kind: Kind, verb: str) -> None:
    with st.container(key="column"):
        problem()
        look.line(st.session_state.get(f"said-{kind}", ""))
        st.subheader("Nothing for you now")
        st.write(f"There is no open task to {verb}. New ones appear here as they come in.")
        st.button("Look again", key="again", type="primary", shortcut="Ctrl+Enter")


@st.dialog("Put this task back")
def _ask(store: Store, who: Account, work: Work, verb: str) -> None:
    """`verb` is skip or flag."""
    meaning = "It is not for you." if verb == "skip" else "Something is wrong with the task itself."
    st.write(f"{meaning} You will not see this task again.")
    with st.form("put-back", border=False):
        reasons = SKIP_REASONS if verb == "skip" else FLAG_REASONS
        reason = st.radio("Why?", reasons, key="put-back-reason")
        more = st.text_input("More, if you like", key="put-back-more", max_chars=500)
        if not st.form_submit_button(f"{verb.capitalize()} this task", type="primary"):
            return
    deed = submissions.skip if verb == "skip" else submissions.flag
    try:
        deed(store, who, work.token, f"{reason}: {more}" if more else str(reason))
        past = "skipped" if verb == "skip" else "flagged"
        _say(work.kind, f"task {work.task_id} {past}")
    except UserError as error:
        st.session_state["problem"] = str(error)
    st.session_state.pop(f"work-{work.kind}", None)
    st.rerun()


def _say(kind: Kind, text: str) -> None:
    st.session_state[f"said-{kind}"] = text
