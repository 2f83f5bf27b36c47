"""For the lead: how far the work is, how good it is, and what help does to it. Each number opens
the tasks behind it."""

import altair as alt
import pandas as pd
import streamlit as st

from labeling_app import planning, quality
from labeling_app.agreement import Estimate
from labeling_app.auth import Account
from labeling_app.planning import Plan
from labeling_app.quality import Ranking
from labeling_app.store import Store
from labeling_app.views import look

_COLOUR = "#3f86a8"


def page(store: Store, who: Account) -> None:
    plan = planning.plan(store, who)
    found = quality.rankings(store, who)
    with st.container(key="wide"):
        _throughput(plan)
        left, right = st.columns(2, gap="large")
        with left:
            _agreement(found)
            _arms(store, who)
        with right:
            _people(store, who, found)
            _bias(found)
        _odd(store, who)
        _tasks(store, who)


def _throughput(plan: Plan) -> None:
    left = sum(plan.open_slots.values())
    done = f"{plan.done_on:%d %b %Y}" if plan.done_on else "no pace yet"
    st.subheader("How far", anchor=False)
    rows = (
        ("Open labels", f"{left:,}", f"{plan.in_hand:,} in hand, {plan.at_vendors:,} at vendors"),
        ("Pace", f"{plan.pace:,.1f} a day", "of the last 14 days that had work"),
        ("Done on", done, "if the pace holds and nothing is added"),
    )
    costs = tuple(
        (f"A label: {kind}", f"{cost:,.2f} {plan.settings.currency}", "active time × hourly cost")
        for kind, cost in plan.cost_per_label.items()
    )
    look.table(("", "", ""), (*rows, *costs))
    if plan.days:
        frame = pd.DataFrame(
            [{"day": str(each.day), "kind": each.kind, "labels": each.labels} for each in plan.days]
        )
        chart = (
            alt.Chart(frame)
            .mark_bar()
            .encode(
                x=alt.X("day:O", title="day (UTC)"),
                y=alt.Y("labels:Q", title="labels"),
                color=alt.Color("kind:N", title=None),
                tooltip=["day", "kind", "labels"],
            )
            .properties(height=170)
        )
        st.altair_chart(chart, width="stretch")


def _agreement(found: list[Ranking]) -> None:
    st.subheader("Agreement", anchor=False)
    whole = quality.agreement(found)
    rows = (
        ("Ranks: Krippendorff's alpha, ordinal", _said(whole.ordinal), "answers"),
        ("Better, tie, worse: alpha, nominal", _said(whole.nominal), "pairs of answers"),
        ("Two people on one task: tau-b", _said(whole.tau), "pairs of people"),
    )
    look.table(("", "value (95%)", "over"), rows)
    weeks = [
        {"week": str(week), "alpha": each.ordinal.value, "low": each.ordinal.low,
         "high": each.ordinal.high, "answers": each.ordinal.num}
        for week, each in quality.agreement_by_week(found)
        if each.ordinal
    ]  # fmt: skip
    if weeks:
        base = alt.Chart(pd.DataFrame(weeks)).encode(x=alt.X("week:O", title="week of"))
        band = base.mark_rule(color=_COLOUR).encode(
            y=alt.Y("low:Q", title="alpha, ordinal", scale=alt.Scale(domain=[-0.2, 1])), y2="high:Q"
        )
        dots = base.mark_circle(size=70, color=_COLOUR).encode(
            y="alpha:Q", tooltip=["week", "alpha", "low", "high", "answers"]
        )
        st.altair_chart((band + dots).properties(height=170), width="stretch")


def _people(store: Store, who: Account, found: list[Ranking]) -> None:
    st.subheader("Calibration", anchor=False)
    rows = [
        (row.name, f"{row.labels:,}", _share(row.gold), _said(row.tau))
        for row in quality.calibration(store, who, found)
    ]
    if rows:
        look.table(("", "rankings", "right on gold", "tau-b with peers"), rows)
        look.line("By name, not by score: intervals overlap more often than not.")
    else:
        look.line("Nobody has ranked yet.")


def _bias(found: list[Ranking]) -> None:
    st.subheader("Does the place on the screen matter?", anchor=False)
    bias = quality.position_bias(found)
    if not bias:
        look.line("No rankings with one best answer yet.")
    for size, places in bias.items():
        rows = [
            (f"{chr(65 + place)} of {size}", _share(estimate), f"{expected:.0%}")
            for place, (estimate, expected) in enumerate(places)
        ]
        look.table(("shown as", "ranked best alone", "by chance"), rows)


def _arms(store: Store, who: Account) -> None:
    st.subheader("With help, and without", anchor=False)
    arms = quality.arms(store, who)
    rows = [
        (
            "help offered" if arm.assisted else "no help",
            f"{arm.labels:,}",
            f"{arm.median_active_s:.0f} s",
            f"{arm.median_chars:,.0f}",
            ", ".join(f"{count} {origin}" for origin, count in sorted(arm.by_origin.items())),
            "" if arm.median_edit_chars is None else f"{arm.median_edit_chars:,.0f}",
        )
        for arm in arms
    ]
    if rows:
        head = ("", "answers", "median time", "median length", "origin", "median edit distance")
        look.table(head, rows)
    else:
        look.line("Nobody has written yet.")


def _odd(store: Store, who: Account) -> None:
    odd = quality.odd_times(store, who)
    if not odd:
        return
    st.subheader("Odd times", anchor=False)
    look.line(f"{len(odd)} labels took far less or far more time than others of their kind.")
    rows = [
        (f"task {each.task_id}", each.kind, f"{each.seconds:,.0f} s", f"{each.median_s:,.0f} s")
        for each in odd[:20]
    ]
    look.table(("", "kind", "took", "median"), rows)
    if who.role == "lead" and st.button("Let peers read them", key="ask-peers"):
        st.toast(f"{quality.ask_peers(store, who, odd)} are in the review queue now.")


def _tasks(store: Store, who: Account) -> None:
    st.subheader("Tasks", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        words = st.text_input("Words", key="find-words", placeholder="in the prompt, key or source")
        kind = st.selectbox("Kind", ("", "demo", "question", "compare"), key="find-kind")
        state = st.selectbox("State", ("", "open", "done"), key="find-state")
        purpose = st.selectbox("Purpose", ("", "work", "gold", "qualification"), key="find-purpose")
        flagged = st.checkbox("Flagged", key="find-flagged")
    rows = planning.find_tasks(
        store, who, words or "", kind or "", state or "", purpose or "", flagged=flagged
    )
    frame = pd.DataFrame(
        [
            {
                "task": row.id,
                "kind": row.kind,
                "purpose": row.purpose,
                "state": row.state,
                "source": row.source,
                "skill": row.skill,
                "priority": row.priority,
                "labels": f"{row.filled} of {row.overlap}",
                "flags": row.flags,
                "prompt": row.prompt[:200],
            }
            for row in rows
        ]
    )
    st.dataframe(frame, hide_index=True, width="stretch", height=320)
    look.line(f"{len(rows)} shown; the 200 most urgent at most")


def _said(estimate: Estimate | None) -> str:
    if estimate is None:
        return "none yet"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f}), {estimate.num:,}"


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return "none yet"
    return f"{estimate.value:.0%} ({estimate.low:.0%} to {estimate.high:.0%}), {estimate.num:,}"
