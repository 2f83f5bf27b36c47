"""The labeling instructions, read before any work and again when a new version is published."""

import streamlit as st

from labeling_app import guidelines
from labeling_app.auth import Account
from labeling_app.store import Store
from labeling_app.views import look


def page(store: Store, who: Account) -> None:
    """Shown before all else until the newest version is acknowledged."""
    current = guidelines.newest(store, who)
    with st.container(key="column"):
        look.line(st.session_state.pop("said", ""))
        look.line(f"Instructions v{current.n}, published {current.published_at:%d %b %Y}")
        look.instructions(current.body_md)
        if st.button(
            "I have read these and will follow them",
            key="acknowledge",
            type="primary",
            shortcut="Ctrl+Enter",
        ):
            guidelines.acknowledge(store, who, current.n)
            st.rerun()
