"""One's own work, and nobody else's."""

import streamlit as st

from labeling_app import submissions
from labeling_app.auth import Account
from labeling_app.store import Store
from labeling_app.views import look


def page(store: Store, who: Account) -> None:
    work = submissions.own_work(store, who)
    with st.container(key="column"):
        st.subheader("Your work", anchor=False)
        rows = (
            ("Today", f"{work.answers_today:,}", f"{work.rankings_today:,}"),
            ("Last seven days", f"{work.answers_week:,}", f"{work.rankings_week:,}"),
            ("In all", f"{work.answers:,}", f"{work.rankings:,}"),
        )
        look.table(("", "Answers written", "Sets ranked"), rows)
        look.line(
            f"{work.drafts} unfinished drafts kept · {work.put_back} tasks skipped or flagged · "
            "days are UTC days"
        )
