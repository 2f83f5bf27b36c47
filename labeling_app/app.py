"""The labeling app: `streamlit run` starts here. Thin: every rule is in the services below it."""

import os
from collections.abc import Callable

import streamlit as st

from labeling_app import guidelines
from labeling_app.auth import WORKERS, Account
from labeling_app.chat import ENDPOINT_VARIABLE
from labeling_app.store import STORE_VARIABLE, Store, open_store
from labeling_app.views import chat, compare, look, progress, sign_in, write


@st.cache_resource
def _store(place: str) -> Store:
    return open_store(place)


def main() -> None:
    st.set_page_config("Flywheel", layout="wide", initial_sidebar_state="collapsed")
    look.apply()
    store = _store(os.environ.get(STORE_VARIABLE, ""))
    who = sign_in.signed_in(store)
    if who is None:
        _only(lambda: sign_in.sign_in_page(store))
        return
    with st.container(key="account", horizontal=True, vertical_alignment="center"):
        st.button(
            f"{who.name} · sign out", key="sign-out", type="tertiary", on_click=sign_in.sign_out
        )
    if who.must_change:
        _only(lambda: sign_in.password_page(store, who))
    elif who.role in WORKERS and not guidelines.has_read_newest(store, who):
        _only(lambda: sign_in.instructions_page(store, who))
    else:
        _pages(store, who)


def _only(page: Callable[[], None]) -> None:
    """One page and no way around it; an address of another page leads here."""
    st.navigation([st.Page(page, title="Flywheel", url_path="start")], position="hidden").run()


def _pages(store: Store, who: Account) -> None:
    endpoint = os.environ.get(ENDPOINT_VARIABLE, "")
    pages = [
        st.Page(lambda: progress.page(store, who), title="Progress", url_path="progress"),
        st.Page(lambda: chat.page(store, who, endpoint), title="Chat", url_path="chat"),
    ]
    if who.role in WORKERS:
        pages = [
            st.Page(lambda: write.page(store, who), title="Write", url_path="write", default=True),
            st.Page(lambda: compare.page(store, who), title="Compare", url_path="compare"),
            *pages,
        ]
    st.navigation(pages, position="top").run()


main()
