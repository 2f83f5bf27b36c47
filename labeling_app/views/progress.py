"""One's own work, and nobody else's: what was done, how it agrees, what came back."""

import streamlit as st

from labeling_app import labels, own_work, quality
from labeling_app.agreement import Estimate
from labeling_app.auth import WORKERS, Account
from labeling_app.labels import OwnLabel
from labeling_app.store import Store
from labeling_app.tasks import code_of
from labeling_app.views import look
from pipeline.core.errors import UserError


def page(store: Store, who: Account) -> None:
    work = own_work.own_work(store, who)
    with st.container(key="column"):
        st.subheader("Your work", anchor=False)
        rows = (
            ("Today", f"{work.answers_today:,}", f"{work.rankings_today:,}"),
            ("Last seven days", f"{work.answers_week:,}", f"{work.rankings_week:,}"),
            ("In all", f"{work.answers:,}", f"{work.rankings:,}"),
        )
        look.table(("", "Answers written", "Sets ranked"), rows)
        minutes = work.active_today_ms // 60_000
        look.line(
            f"{minutes} minutes at work today · {work.drafts} unfinished drafts kept ·"
            f" {work.put_back} tasks skipped or flagged · days are UTC days"
        )
        if who.role not in WORKERS:
            return
        _agreement(store, who, work)
        _labels(store, who)


def _agreement(store: Store, who: Account, work: own_work.OwnWork) -> None:
    gold, peers = quality.own_agreement(store, who)
    st.subheader("How it agrees", anchor=False)
    rows = (
        (
            "With known answers",
            _share(gold),
            "right, up to last midnight (UTC)",
        ),
        (
            "With other people",
            _tau(peers),
            "Kendall's tau-b: 1 the same order, 0 chance",
        ),
        ("Reviews", f"{work.accepted} accepted", f"{work.returned} came back"),
    )
    look.table(("", "", ""), rows, left=(0, 2))


def _labels(store: Store, who: Account) -> None:
    st.subheader("What you handed in last", anchor=False)
    mine = labels.own_labels(store, who)
    if not mine:
        look.line("Nothing yet.")
    for label in mine:
        _label(store, who, label)


def _label(store: Store, who: Account, label: OwnLabel) -> None:
    name = "answer" if label.kind == "demo" else "ranking"
    said = {"returned": "came back", "accepted": "accepted", "adjudicated": "decided by a reviewer"}
    verdict = said.get(label.verdict, "")
    with st.container(border=True, key=f"own-{label.kind}-{label.id}"):
        head = f"Task {code_of(store, label.task_id)} · {name}"
        head += f" · {label.created_at:%d %b %Y, %H:%M} UTC"
        look.line(f"{head} · {verdict}" if verdict else head)
        look.line(label.prompt[:140] + (" …" if len(label.prompt) > 140 else ""))
        look.excerpt(label.text)
        if label.verdict == "returned":
            clause = f" (clause {label.clause})" if label.clause else ""
            look.line(f"Why: {label.reason}{clause}. {label.comment}")
        if label.editable:
            st.button(
                "Correct it",
                key=f"correct-{label.kind}-{label.id}",
                on_click=_reopen,
                args=(store, who, label),
            )


def _reopen(store: Store, who: Account, label: OwnLabel) -> None:
    try:
        labels.reopen(store, who, label.kind, label.id)
    except UserError as error:
        st.toast(f"Not opened: {error}.")
        return
    area = "Compare" if label.kind == "compare" else "Write"
    st.toast(f"It is open on the page {area} now.")


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return "none yet"
    return f"{estimate.value:.0%} of {estimate.num} ({estimate.low:.0%} to {estimate.high:.0%})"


def _tau(estimate: Estimate | None) -> str:
    if estimate is None:
        return "none yet"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
