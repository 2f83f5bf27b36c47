"""What every rerun begins with: who is here, and which pages are theirs. Every rule is in the
services below."""

import functools
from collections.abc import Callable
from typing import Any

import streamlit as st

from labeling_app import guidelines, running
from labeling_app.auth import REVIEWERS, WORKERS, Account, DeniedError
from labeling_app.store import Store
from labeling_app.views import (
    chat,
    instructions,
    lead_people,
    lead_project,
    lead_quality,
    lead_tasks,
    look,
    progress,
    review,
    visitor,
    work,
)
from pipeline.core.errors import UserError

_PATHS = ("compare", "review", "progress", "quality", "tasks", "people", "project", "chat")


def main() -> None:
    st.set_page_config("Flywheel", layout="wide", initial_sidebar_state="collapsed")
    look.apply()
    try:
        store = running.store()
        who = visitor.signed_in(store)
        if who is None:
            _only(functools.partial(visitor.signed_out_page, store))
        elif who.must_change:
            _only(visitor.password_page)
        else:
            with store.one_view():
                look.account_bar(store, who, functools.partial(visitor.sign_out_of_oidc, store))
                unread = who.role in WORKERS and not guidelines.has_read_newest(store, who)
            if unread:
                _only(functools.partial(instructions.page, store, who), *_PATHS)
            else:
                st.navigation(_pages(store, who), position="top").run()
    except DeniedError as error:
        look.trouble("This is not for you", str(error), "Nothing was changed.")
    except UserError as error:  # the database is away, say
        look.trouble(
            "Something is missing",
            str(error),
            "What you typed is kept on this computer until it can be saved.",
        )
        st.button("Try again", key="try-again", type="primary")


def _only(page: Callable[[], None], *paths: str) -> None:
    """One page and no way around it, at its own address and at these."""
    pages = [
        st.Page(functools.partial(page), title="Flywheel", url_path=path, default=path == "start")
        for path in ("start", *paths)
    ]
    st.navigation(pages, position="hidden").run()


def _pages(store: Store, who: Account) -> list[Any]:
    def page(run: Callable[[Store, Account], None], title: str, **more: Any) -> Any:
        bound = functools.partial(run, store, who)
        return st.Page(bound, title=title, url_path=title.lower(), **more)

    pages: list[Any] = []
    if who.role in WORKERS:
        pages += [page(work.write_page, "Write", default=True), page(work.compare_page, "Compare")]
    if who.role in REVIEWERS:
        pages.append(page(review.page, "Review"))
    pages.append(page(progress.page, "Progress"))
    if who.role in ("lead", "engineer"):
        pages += [page(lead_quality.page, "Quality"), page(lead_tasks.page, "Tasks")]
    if who.role == "lead":
        pages += [page(lead_people.page, "People"), page(lead_project.page, "Project")]
    return [*pages, page(chat.page, "Chat")]


main()
