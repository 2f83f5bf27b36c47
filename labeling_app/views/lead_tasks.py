"""For the lead: search over tasks, the tasks behind a number, and one task with all that people
did to it. Each of them has an address of its own."""

import datetime as dt
from collections.abc import Sequence

import streamlit as st

from labeling_app import behind, planning, reviews, task_view
from labeling_app.auth import Account
from labeling_app.planning import FoundTask
from labeling_app.store import Store
from labeling_app.task_view import Given, TaskView
from labeling_app.tasks import code_of
from labeling_app.views import label_parts, look
from pipeline.core.errors import UserError

_NAMES = {
    "agreement": "Where people agree least",
    "gold": "Known answers",
    "peers": "Agreement with peers",
    "place": "Best alone at this place",
    "rankings": "Rankings",
    "help": "Answers with and without help",
    "day": "Labels of one day",
    "in-hand": "In hand now",
    "odd": "Odd times",
}


def page(store: Store, who: Account) -> None:
    asked = st.query_params
    with st.container(key="wide"):
        if "task" in asked:
            _task(store, who, task_view.task_view(store, who, _number(asked["task"])))
        elif "show" in asked:
            _behind(store, who, asked["show"], asked.get("of", ""), asked.get("days", ""))
        else:
            _search(store, who, asked.get("state", ""))


def _search(store: Store, who: Account, state_asked: str) -> None:
    st.subheader("Tasks", anchor=False)
    states = ("", "open", "done")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        hint = "in the prompt, key or source; a code"
        words = st.text_input("Words", key="find-words", placeholder=hint)
        kind = st.selectbox("Kind", ("", "demo", "question", "compare"), key="find-kind")
        state = st.selectbox(
            "State",
            states,
            index=states.index(state_asked) if state_asked in states else 0,
            key="find-state",
        )
        purpose = st.selectbox("Purpose", ("", "work", "gold", "qualification"), key="find-purpose")
        skill = st.text_input("Skill", key="find-skill", max_chars=64)
        flagged = st.checkbox("Flagged", key="find-flagged")
    rows = planning.find_tasks(
        store,
        who,
        words or "",
        kind or "",
        state or "",
        purpose or "",
        skill or "",
        flagged=flagged,
    )
    _list(rows, {})
    look.line(f"{len(rows)} shown, the most urgent first; 200 at most")


def _behind(store: Store, who: Account, show: str, of: str, days: str) -> None:
    since = store.clock() - dt.timedelta(days=min(_number(days), 36500)) if days else None
    found = behind.behind(store, who, show, of, since)
    st.subheader(_NAMES[show], anchor=False)
    look.table(("",), [(look.Link("Back to all the numbers", "quality", {}),)])
    notes: dict[int, str] = {}
    for each in found:
        said = " · ".join(part for part in (each.person, each.note) if part)
        notes[each.task_id] = "; ".join(filter(None, (notes.get(each.task_id, ""), said)))
    rows = planning.find_tasks(store, who, ids=list(notes))
    order = {task: place for place, task in enumerate(notes)}
    _list(sorted(rows, key=lambda row: order[row.id]), notes)
    look.line(f"{len(rows)} tasks, what wants looking at first; {behind.MOST} at most")


def _list(rows: Sequence[FoundTask], notes: dict[int, str]) -> None:
    if not rows:
        look.line("No task is like that.")
        return
    look.table(
        ("task", "kind", "state", "labels", "what" if notes else "source, skill", "prompt"),
        [
            (
                look.Link(str(row.id), "tasks", {"task": row.id}),
                row.kind if row.purpose == "work" else f"{row.kind}, {row.purpose}",
                row.state + (f", {row.flags} flags" if row.flags else ""),
                f"{row.filled} of {row.overlap}",
                notes.get(row.id) or ", ".join(filter(None, (row.source, row.skill))),
                row.prompt[:140] + (" …" if len(row.prompt) > 140 else ""),
            )
            for row in rows
        ],
        left=(1, 2, 4, 5),
    )


def _task(store: Store, who: Account, task: TaskView) -> None:
    st.subheader(f"Task {task.id} · {task.kind} · {task.state}", anchor=False)
    look.line(f"To those who label it is task {code_of(store, task.id)}.")
    purpose = "" if task.purpose == "work" else f"{task.purpose} · "
    skill = f"skill {task.skill} · " if task.skill else ""
    look.line(
        f"{purpose}{skill}from {task.source} · key {task.key} · priority {task.priority} ·"
        f" overlap {task.overlap} · added {task.created_at:%d %b %Y}"
    )
    left, right = st.columns([1.6, 1], gap="large")
    with left:
        look.prompt(task.prompt)
        if task.kind == "compare":
            _ranks(task)
        elif task.answers:
            look.box("A bad answer, to be done better", task.answers[0], "bad")
        for given in task.given:
            _given(store, who, given)
        if not task.given:
            look.line("Nobody has handed in a label yet.")
    with right:
        _turns(task)


def _ranks(task: TaskView) -> None:
    """Everybody's ranks side by side: where a row differs, they do not agree."""
    ranked = [given for given in task.given if given.ranks]
    head = ["answer", *(["known"] if task.gold else []), *(given.person for given in ranked)]
    rows = [
        (
            text[:90] + (" …" if len(text) > 90 else ""),
            *([str(task.gold[place])] if task.gold else []),
            *(str(given.ranks[place]) for given in ranked),
        )
        for place, text in enumerate(task.answers)
    ]
    look.table(head, rows)


def _given(store: Store, who: Account, given: Given) -> None:
    label = given.label
    name = "answer" if label.kind == "demo" else "ranking"
    more = f" · vendor {given.vendor}" if given.vendor else ""
    help_ = "" if given.assisted else " · no help offered"
    with st.container(border=True, key=f"given-{label.kind}-{label.id}"):
        look.line(
            f"{given.person}{more} · {name} {label.id} · instructions"
            f" v{label.instruction_version}{help_}"
        )
        label_parts.handed_in(label)
        if given.said:
            said = given.said
            why = " · ".join(filter(None, (said.reason, said.clause and f"clause {said.clause}")))
            verdict = f"{said.verdict} by {said.reviewer}, {said.at:%d %b %Y, %H:%M} UTC"
            look.line(" · ".join(filter(None, (verdict, why, said.comment))))
        with st.expander("How it was made"):
            label_parts.how_made(label)
        if who.role == "lead" and given.said is None:
            if not st.button("Let a peer read it", key=f"ask-{label.kind}-{label.id}"):
                return
            try:
                new = reviews.ask_for_review(store, who, label.kind, label.id, "a lead asks")
            except UserError as error:
                st.error(f"Not done: {error}.")
                return
            st.toast("It is in the review queue now." if new else "It was there already.")


def _turns(task: TaskView) -> None:
    st.subheader("Who had it", anchor=False)
    rows = [
        (
            turn.person,
            f"{turn.acquired:%d %b, %H:%M}",
            " · ".join(filter(None, (turn.outcome or "has it now", turn.reason))),
            "" if turn.purpose == "work" else turn.purpose,
        )
        for turn in task.turns
    ]
    if rows:
        look.table(("", "from (UTC)", "", ""), rows, left=(0, 2, 3))
    else:
        look.line("Nobody yet.")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 18):
        raise UserError(f"{text[:40]!r} is no number; open the task from a list")
    return int(text)
