"""For the lead: the project's settings, its instructions, and whether it hands out work."""

from typing import Any

import streamlit as st

from labeling_app import guidelines, projects, qualification
from labeling_app.auth import Account
from labeling_app.projects import Settings
from labeling_app.store import Store
from labeling_app.views import look
from pipeline.core.errors import UserError


def page(store: Store, who: Account) -> None:
    view = projects.project(store, who)
    with st.container(key="column"):
        st.subheader(f"Project {view.name}", anchor=False)
        label = "Hand out work again" if view.paused else "Pause the project"
        look.line("Paused: nobody gets a new task." if view.paused else "Work is handed out.")
        if st.button(label, key="pause"):
            projects.pause(store, who, not view.paused)
            st.rerun()
        _settings(store, who, view.settings)
        if lacks := qualification.missing(store, who):
            st.warning(
                f"The qualification set lacks {lacks} tasks: each of"
                f" {view.settings.qualification_tries} tries takes"
                f" {view.settings.qualification_tasks} that the person has not seen, and so does a"
                " version that asks for it again."
            )
        _instructions(store, who)


def _settings(store: Store, who: Account, settings: Settings) -> None:
    st.subheader("Settings", anchor=False)
    values: dict[str, Any] = {}
    with st.form("settings"):
        columns = st.columns(2, gap="medium")
        for number, name in enumerate(Settings.model_fields):
            with columns[number % 2]:
                values[name] = _setting(name, getattr(settings, name))
        if not st.form_submit_button("Keep", type="primary"):
            return
    try:
        projects.configure(store, who, **values)
        st.toast("Kept.")
    except UserError as error:
        st.error(f"{error}.")


def _setting(name: str, now: Any) -> Any:
    """The setting's field, and what is in it."""
    label = f"{name.replace('_', ' ').capitalize()} ({Settings.model_fields[name].description})"
    if isinstance(now, tuple):
        text = st.text_area(label, "\n".join(map(str, now)), key=f"set-{name}", height=200)
        return tuple(line for line in (text or "").splitlines() if line.strip())
    if isinstance(now, str):
        return st.text_input(label, now, key=f"set-{name}")
    if Settings.model_fields[name].annotation is float:
        return st.number_input(label, value=float(now), step=0.01, key=f"set-{name}")
    return st.number_input(label, value=now, step=1, key=f"set-{name}")


def _instructions(store: Store, who: Account) -> None:
    current = guidelines.newest(store, who)
    st.subheader("Labeling instructions", anchor=False)
    look.line(
        f"v{current.n} holds since {current.published_at:%d %b %Y}. A version never changes;"
        " everybody reads a new one before their next task."
    )
    with st.form("publish"):
        body = st.text_area(
            "Markdown with numbered clauses", current.body_md, height=360, key="body"
        )
        again = st.checkbox("Everybody passes the qualification again", key="requalify")
        if not st.form_submit_button("Publish as a new version", type="primary"):
            return
    try:
        number = guidelines.publish(store, who, body or "", again)
        st.session_state["said"] = f"v{number} holds now; you read it first, as everybody will."
        st.rerun()
    except UserError as error:
        st.error(f"{error}.")
