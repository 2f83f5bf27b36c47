"""Signing in, replacing the one-time password, and reading the instructions before any work."""

import streamlit as st

from labeling_app import auth, guidelines
from labeling_app.auth import Account, DeniedError
from labeling_app.store import Store
from labeling_app.views import look
from pipeline.core.errors import UserError


def signed_in(store: Store) -> Account | None:
    """The person of this browser session, checked against the store on every run."""
    who: Account | None = st.session_state.get("who")
    if who is None:
        return None
    try:
        return auth.current(store, who)
    except DeniedError as error:
        sign_out()
        st.session_state["ended"] = str(error)
        return None


def sign_out() -> None:
    """Forget everything of this browser session; drafts are in the store."""
    st.session_state.clear()


def sign_in_page(store: Store) -> None:
    with st.container(key="narrow"):
        st.title("Flywheel", anchor=False)
        if ended := st.session_state.pop("ended", ""):
            st.info(ended)
        with st.form("sign-in"):
            name = st.text_input("Name", key="name", autocomplete="username")
            password = st.text_input(
                "Password", key="password", type="password", autocomplete="current-password"
            )
            if not st.form_submit_button("Sign in", type="primary"):
                return
        try:
            st.session_state["who"] = auth.sign_in(store, name, password)
        except DeniedError as error:
            st.error(f"{error}.")
            return
    st.rerun()


def password_page(store: Store, who: Account) -> None:
    with st.container(key="narrow"):
        st.title("Choose your password", anchor=False)
        st.write("The one-time password has done its work. This one is yours alone.")
        with st.form("new-password"):
            first = st.text_input(
                f"New password, {auth.MIN_PASSWORD} characters or more",
                key="new-password-1",
                type="password",
                autocomplete="new-password",
            )
            again = st.text_input(
                "The same again", key="new-password-2", type="password", autocomplete="new-password"
            )
            if not st.form_submit_button("Keep it", type="primary"):
                return
        if first != again:
            st.error("The two are not the same.")
            return
        try:
            st.session_state["who"] = auth.set_password(store, who, first)
        except UserError as error:
            st.error(f"{error}.")
            return
    st.rerun()


def instructions_page(store: Store, who: Account) -> None:
    """Shown before all else until the newest version is acknowledged."""
    current = guidelines.newest(store, who)
    with st.container(key="column"):
        look.line(f"Instructions v{current.n}, published {current.published_at:%d %b %Y}")
        with st.container(height=520, border=True, key="guide"):
            st.markdown(current.body_md)
        if st.button("I have read these and will follow them", key="acknowledge", type="primary"):
            guidelines.acknowledge(store, who, current.n)
            st.rerun()
