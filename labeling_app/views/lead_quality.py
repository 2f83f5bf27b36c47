"""For the lead: how far the work is, how good it is, and what help does to it. Each number opens
the tasks behind it."""

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from labeling_app import planning, quality
from labeling_app.agreement import Estimate
from labeling_app.auth import Account
from labeling_app.planning import Plan
from labeling_app.quality import Calibration, Ranking
from labeling_app.store import Store
from labeling_app.views import look

PERIODS = {"Last 4 weeks": 28, "Last 12 weeks": 84, "All": None}
_COLOUR = "#3f86a8"
_HEIGHT = 170


def page(store: Store, who: Account) -> None:
    with st.container(key="wide"):
        chosen = st.selectbox("Period of the labels below", list(PERIODS), key="period", width=240)
        days = PERIODS[str(chosen)]
        since = None if days is None else store.clock() - dt.timedelta(days=days)
        plan = planning.plan(store, who)
        found = quality.rankings(store, who, since)
        _how_far(plan)
        left, right = st.columns(2, gap="large")
        with left:
            _agreement(found, days)
            _help(store, who, since, days)
        with right:
            _people(quality.calibration(store, who, found), days)
            _bias(found, days)
        _odd(store, who, since, days)


def behind(
    text: str, show: str, of: object = "", days: int | None = None, **more: str
) -> look.Link:
    """A number that opens its tasks."""
    query: dict[str, str | int] = {"show": show, **more}
    if of != "":
        query["of"] = str(of)
    if days is not None:
        query["days"] = days
    return look.Link(text, "tasks", query)


def _how_far(plan: Plan) -> None:
    left, right = st.columns([1, 1.3], gap="large")
    with left:
        st.subheader("How far", anchor=False)
        _plan(plan)
    with right:
        _backlog(plan)
        _days(plan)


def _plan(plan: Plan) -> None:
    free = sum(plan.open_slots.values())
    done = f"{plan.done_on:%d %b %Y}" if plan.done_on else "no pace yet"
    every = look.Link(f"{free:,}", "tasks", {"state": "open"})
    rows: list[tuple[str | look.Link, ...]] = [
        ("Labels to do", every, "that nobody has yet"),
        ("In hand", behind(f"{plan.in_hand:,}", "in-hand"), "people have them now"),
        ("At vendors", f"{plan.at_vendors:,}", "in batches that are out"),
        ("Wait for review", f"{plan.waiting_reviews:,}", "on the page Review"),
        ("Pace", f"{plan.pace:,.1f} a day", "of the last 14 days that had work"),
        ("Done on", done, "if the pace holds and nothing is added"),
    ]
    rows += [
        (f"A label: {kind}", f"{cost:,.2f} {plan.settings.currency}", "active time × hourly cost")
        for kind, cost in plan.cost_per_label.items()
    ]
    today = max((each.day for each in plan.days), default=None)
    if today is not None:
        number = sum(each.labels for each in plan.days if each.day == today)
        link = behind(f"{number:,}", "day", today)
        rows.insert(0, (f"Labels of {today:%d %b %Y}", link, "the last day that had work"))
    look.table(("", "", ""), rows, left=(0, 2))


def _backlog(plan: Plan) -> None:
    rows: list[dict[str, Any]] = [
        {"day": str(day), "labels": number, "what": "to do"} for day, number in plan.backlog[-28:]
    ]
    day, number = plan.backlog[-1]
    if plan.done_on is not None and number:
        last = min(plan.done_on, day + dt.timedelta(days=28))
        share = (last - day) / max(plan.done_on - day, dt.timedelta(days=1))
        rows.append({"day": str(day), "labels": number, "what": "forecast"})
        rows.append({"day": str(last), "labels": number * (1 - share), "what": "forecast"})
    dashes = alt.Scale(domain=["to do", "forecast"], range=[[1, 0], [5, 4]])
    lines = (
        alt.Chart(pd.DataFrame(rows))
        .mark_line(color=_COLOUR)
        .encode(
            x=_day_axis(),
            y=alt.Y("labels:Q", title="labels to do"),
            strokeDash=alt.StrokeDash("what:N", title=None, scale=dashes),
            tooltip=["day:T", "labels", "what"],
        )
    )
    _draw(lines, "Backlog, and its forecast at the pace of the last 14 days")


def _days(plan: Plan) -> None:
    if not plan.days:
        return
    frame = pd.DataFrame(
        [{"day": str(each.day), "kind": each.kind, "labels": each.labels} for each in plan.days]
    )
    bars = (
        alt.Chart(frame)
        .mark_bar(size=9)
        .encode(
            x=_day_axis(),
            y=alt.Y("labels:Q", title="labels a day"),
            color=_kinds(),
            tooltip=["day:T", "kind", "labels"],
        )
    )
    _draw(bars, "Throughput: labels handed in, by day (UTC)")
    _cost(plan)


def _cost(plan: Plan) -> None:
    """Cost per label, week by week."""
    weeks: dict[tuple[dt.date, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for each in plan.days:
        sums = weeks[(each.day - dt.timedelta(days=each.day.weekday()), each.kind)]
        sums[0] += each.labels
        sums[1] += plan.settings.hourly_cost * each.active_ms / 3.6e6
    rows = [
        {"day": str(week), "kind": kind, "cost": cost / labels}
        for (week, kind), (labels, cost) in weeks.items()
        if labels and cost
    ]
    if rows:
        line = (
            alt.Chart(pd.DataFrame(rows))
            .mark_line(point=True)
            .encode(
                x=_day_axis(),
                y=alt.Y("cost:Q", title=f"{plan.settings.currency} a label"),
                color=_kinds(),
                tooltip=["day:T", "kind", alt.Tooltip("cost:Q", format=",.2f")],
            )
        )
        _draw(line, "Cost a label, by week")


def _agreement(found: list[Ranking], days: int | None) -> None:
    st.subheader("Agreement", anchor=False)
    whole = quality.agreement(found)
    named = (
        ("Ranks: Krippendorff's alpha, ordinal", whole.ordinal, "answers"),
        ("Better, tie, worse: alpha, nominal", whole.nominal, "pairs of answers"),
        ("Two people on one task: tau-b", whole.tau, "pairs of people"),
    )
    rows = [
        (name, behind(_said(value), "agreement", days=days) if value else "none yet", over)
        for name, value, over in named
    ]
    look.table(("", "value (95%)", "over"), rows, left=(0, 2))
    weeks: list[dict[str, Any]] = [
        {"week": f"{week:%d %b}", "at": str(week), "alpha": each.ordinal.value,
         "low": each.ordinal.low, "high": each.ordinal.high, "answers": each.ordinal.num}
        for week, each in quality.agreement_by_week(found)
        if each.ordinal
    ]  # fmt: skip
    if weeks:
        axis = alt.X("week:O", title="week of", sort=alt.SortField("at"), axis=_UPRIGHT)
        scale = alt.Scale(domain=[min(-0.2, *(each["low"] for each in weeks)), 1])
        base = alt.Chart(pd.DataFrame(weeks)).encode(x=axis)
        band = base.mark_rule(color=_COLOUR).encode(
            y=alt.Y("low:Q", title="alpha, ordinal", scale=scale), y2="high:Q"
        )
        dots = base.mark_circle(size=70, color=_COLOUR, opacity=1).encode(
            y="alpha:Q", tooltip=["week", "alpha", "low", "high", "answers"]
        )
        _draw(band + dots, "Agreement by week, with 95% intervals")
        links = [
            (str(each["week"]), behind("tasks", "agreement", each["at"], days))
            for each in weeks[-8:]
        ]
        with st.expander("The tasks of one week"):
            look.table(("week of", ""), links, left=(0, 1))


def _people(rows: Sequence[Calibration], days: int | None) -> None:
    st.subheader("Calibration", anchor=False)
    if not rows:
        look.line("Nobody has ranked yet.")
        return
    look.table(
        ("", "rankings", "right on gold", "tau-b with peers"),
        [
            (
                row.name,
                behind(f"{row.labels:,}", "rankings", row.user_id, days),
                behind(_share(row.gold), "gold", row.user_id, days) if row.gold else "none yet",
                behind(_said(row.tau), "peers", row.user_id, days) if row.tau else "none yet",
            )
            for row in rows
        ],
    )
    look.line("By name, not by score: intervals overlap more often than not.")
    points = [
        {"name": row.name, "what": what, "value": each.value, "low": each.low, "high": each.high}
        for row in rows
        for what, each in (("right on gold", row.gold), ("tau-b with peers", row.tau))
        if each
    ]
    if points:
        base = alt.Chart(pd.DataFrame(points)).encode(y=alt.Y("name:N", title=None))
        rule = base.mark_rule(color=_COLOUR).encode(x=alt.X("low:Q", title=None), x2="high:Q")
        dots = base.mark_circle(size=60, color=_COLOUR, opacity=1).encode(
            x="value:Q", tooltip=["name", "what", "value", "low", "high"]
        )
        height = 24 * len({each["name"] for each in points})
        chart = (
            (rule + dots)
            .properties(height=height, width=210)
            .facet(column=alt.Column("what:N", title=None))
        )
        look.line("With 95% intervals")
        st.altair_chart(chart.resolve_scale(x="independent"))


def _bias(found: list[Ranking], days: int | None) -> None:
    st.subheader("Does the place on the screen matter?", anchor=False)
    bias = quality.position_bias(found)
    if not bias:
        look.line("No rankings with one best answer yet.")
        return
    rows: list[tuple[str | look.Link, ...]] = []
    points: list[dict[str, Any]] = []
    for size, places in bias.items():
        for place, (share, expected) in enumerate(places):
            letter = f"{chr(65 + place)} of {size}"
            link = behind(_share(share), "place", f"{size}.{place}", days)
            rows.append((letter, link, f"{expected:.0%}"))
            points.append(
                {"shown as": letter, "best alone": share.value, "low": share.low,
                 "high": share.high, "by chance": expected}
            )  # fmt: skip
    look.table(("shown as", "ranked best alone", "by chance"), rows)
    base = alt.Chart(pd.DataFrame(points)).encode(
        x=alt.X("shown as:O", title=None, sort=None, axis=_UPRIGHT)
    )
    share_axis = alt.Axis(format="%")
    bars = base.mark_bar(color=_COLOUR, size=18).encode(
        y=alt.Y("best alone:Q", title="best alone", axis=share_axis),
        tooltip=list(points[0]),
    )
    rule = base.mark_rule().encode(y="low:Q", y2="high:Q")
    tick = base.mark_tick(thickness=2, size=26, color="#c2571a").encode(y="by chance:Q")
    _draw(bars + rule + tick, "Ranked best alone, by place; the mark is chance")


def _help(store: Store, who: Account, since: dt.datetime | None, days: int | None) -> None:
    st.subheader("With help, and without", anchor=False)
    arms = quality.arms(store, who, since)
    if not arms:
        look.line("Nobody has written yet.")
        return
    rows = [
        (
            "help offered" if arm.assisted else "no help",
            behind(f"{arm.labels:,}", "help", "yes" if arm.assisted else "no", days),
            f"{arm.median_active_s:.0f} s",
            f"{arm.median_chars:,.0f}",
            ", ".join(f"{count} {origin}" for origin, count in sorted(arm.by_origin.items())),
            "" if arm.median_edit_chars is None else f"{arm.median_edit_chars:,.0f}",
        )
        for arm in arms
    ]
    look.table(("", "answers", "time", "length", "origin", "changed"), rows, left=(0, 4))
    look.line("Medians: seconds at work, characters, characters that differ from the draft.")
    changed = [share for arm in arms for share in arm.changed]
    if changed:
        bars = (
            alt.Chart(pd.DataFrame({"changed": changed}))
            .mark_bar(color=_COLOUR)
            .encode(
                x=alt.X(
                    "changed:Q",
                    bin=alt.Bin(step=0.1, extent=[0, 1]),
                    title="share of the answer that differs from its draft",
                    axis=alt.Axis(format="%"),
                ),
                y=alt.Y("count()", title="answers"),
            )
        )
        _draw(bars, "Anchoring: answers that began with a draft")


def _odd(store: Store, who: Account, since: dt.datetime | None, days: int | None) -> None:
    odd = quality.odd_times(store, who, since)
    if not odd:
        return
    st.subheader("Odd times", anchor=False)
    look.line(f"{len(odd)} labels took far less or far more time than others of their kind.")
    rows = [
        (
            look.Link(f"task {each.task_id}", "tasks", {"task": each.task_id}),
            each.kind,
            f"{each.seconds:,.0f} s",
            f"{each.median_s:,.0f} s",
        )
        for each in odd[:10]
    ]
    if len(odd) > len(rows):
        rows.append((behind(f"all {len(odd):,}", "odd", days=days), "", "", ""))
    look.table(("", "kind", "took", "median"), rows)
    if who.role == "lead" and st.button("Let peers read them", key="ask-peers"):
        st.toast(f"{quality.ask_peers(store, who, odd)} are in the review queue now.")


_UPRIGHT = alt.Axis(labelAngle=0)


def _day_axis() -> alt.X:
    return alt.X("day:T", title=None, axis=alt.Axis(format="%d %b", tickCount=7))


def _kinds() -> alt.Color:
    colours = alt.Scale(domain=["write", "compare"], range=[_COLOUR, "#c2571a"])
    return alt.Color("kind:N", title=None, scale=colours)


def _draw(chart: Any, title: str) -> None:
    look.line(title)
    st.altair_chart(chart.properties(height=_HEIGHT), width="stretch")


def _said(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f}), {estimate.num:,}"


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} ({estimate.low:.0%} to {estimate.high:.0%}), {estimate.num:,}"
