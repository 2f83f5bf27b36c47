"""The two pages of work. Each is one component (views/work_js/): typing, keys and autosave happen
in the browser and at /api/page; a rerun comes when a task is done."""

import dataclasses
import functools
from importlib import resources
from typing import Any

import streamlit as st

from labeling_app import assignment, guidelines, labels, own_work, projects, running
from labeling_app.assignment import Area, Work
from labeling_app.assist import shown_before
from labeling_app.auth import Account, DeniedError
from labeling_app.qualification import Standing, standing
from labeling_app.store import Store
from labeling_app.tasks import code_of
from labeling_app.verdicts import CONFIDENCES, DEGREES
from labeling_app.views import look, visitor
from pipeline.core.errors import UserError

SKIP_REASONS = ("I do not know this subject", "It is unclear to me", "I would rather not")
FLAG_REASONS = ("The prompt is broken", "It is harmful", "It holds personal data", "Something else")
UNRANKABLE_REASONS = (
    "the answers cannot be read",
    "the task cannot be understood",
    "I do not know enough to judge",
    "all are harmful in ways that cannot be compared",
)
_SAID = {
    "submitted": "Task {task} is handed in.",
    "skipped": "Task {task} is skipped.",
    "flagged": "Task {task} is flagged.",
    "gone": "Task {task} was given to somebody else.",
    "kept": "Task {task} stays as it was.",
}


@functools.cache
def _source(name: str) -> str:
    return (resources.files("labeling_app") / "views" / "work_js" / name).read_text("utf-8")


@functools.cache
def _component(area: Area) -> Any:
    components: Any = st.components
    return components.v2.component(
        f"flywheel-{area}",
        html='<div class="work"></div>',
        css=_source("work.css"),
        js=_source("common.js") + _source(f"{area}.js"),
    )


def write_page(store: Store, who: Account) -> None:
    _page(store, who, "write")


def compare_page(store: Store, who: Account) -> None:
    _page(store, who, "compare")


def _page(store: Store, who: Account, area: Area) -> None:
    try:
        work = assignment.next_task(store, who, area)
    except DeniedError as error:
        look.trouble("No work for now", str(error), "Your labels are safe.")
        return
    if work is None:
        _nothing(store, who, area)
        return
    with store.one_view():
        data = _data(store, who, work)
    _component(area)(
        key=f"work-{area}",
        data=data,
        on_done_change=functools.partial(_done, area),
        on_undo_change=functools.partial(_undo, store, who, area),
    )


def _data(store: Store, who: Account, work: Work) -> dict[str, Any]:
    current = guidelines.version(store, who, work.instruction_version)
    project = projects.project(store, who)
    now = standing(store, who)
    return {
        "page_token": visitor.page_token(store, who),
        "person": who.user_id,
        "token": work.token,
        "task_id": code_of(store, work.task_id),
        "kind": work.kind,
        "name": _name(work, now),
        "said": " ".join(filter(None, (st.session_state.pop("said", ""), _news(now)))),
        "purpose": work.purpose,
        "prompt": [{"role": turn.role, "text": turn.text} for turn in work.prompt],
        "bad": work.answers[0].text if work.kind == "demo" and work.answers else None,
        "answers": [answer.text for answer in work.answers] if work.kind == "compare" else [],
        "draft": {"rev": work.draft.rev, "body": work.draft.body} if work.draft else None,
        "instructions": {
            "n": current.n,
            "blocks": [
                dataclasses.asdict(block) for block in guidelines.blocks_of(current.body_md)
            ],
        },
        "today": own_work.handed_in_today(store, who),
        "goal": project.settings.daily_goal,
        "can_undo": work.purpose == "work" and labels.can_undo(store, who),
        "assisted": work.assisted,
        "abilities": list(running.abilities()),
        "shown": [dataclasses.asdict(each) for each in shown_before(store, who, work.token)],
        "flags": list(project.settings.flags),
        "confidences": list(CONFIDENCES),
        "degrees": list(DEGREES),
        "skip_reasons": list(SKIP_REASONS),
        "flag_reasons": list(FLAG_REASONS),
        "unrankable_reasons": list(UNRANKABLE_REASONS),
    }


def _news(now: Standing) -> str:
    """What became of the qualification since the page looked last."""
    before: Standing | None = st.session_state.get("standing")
    st.session_state["standing"] = now
    if before is None or before.tries >= now.tries or now.score is None:
        return ""
    verdict = "You did not pass this time" if now.needed else "You passed"
    return f"{verdict}: {now.score:.0%} right."


def _name(work: Work, now: Standing) -> str:
    if work.qualifies:
        return f"qualification {now.done + 1} of {now.total}"
    names = {"demo": "write", "question": "write a question and its answer"}
    return names.get(work.kind, f"compare {len(work.answers)}")


def _done(area: Area) -> None:
    said = st.session_state[f"work-{area}"].done
    if said:
        task = str(said["task"])[:8]
        st.session_state["said"] = _SAID.get(str(said["how"]), "").format(task=task)


def _undo(store: Store, who: Account, area: Area) -> None:
    """Open the newest label again, on whichever page it belongs to."""
    if not st.session_state[f"work-{area}"].undo:
        return
    try:
        last = labels.last_label(store, who)
        if last is None:
            st.session_state["said"] = "There is nothing to undo any more."
            return
        labels.reopen(store, who, last.kind, last.id)
    except UserError as error:
        st.session_state["said"] = f"Not undone: {error}."
        return
    page_of_last: Area = "compare" if last.kind == "compare" else "write"
    if page_of_last != area:
        st.session_state["said"] = f"It is open on the page {page_of_last.capitalize()} now."


def _nothing(store: Store, who: Account, area: Area) -> None:
    now = standing(store, who)
    with st.container(key="column"):
        look.line(" ".join(filter(None, (st.session_state.pop("said", ""), _news(now)))))
        st.subheader("Nothing for you now", anchor=False)
        project = projects.project(store, who)
        if project.paused:
            st.write("The project is paused. Your lead will say when it goes on.")
        else:
            verb = "write for" if area == "write" else "compare"
            if now.needed:
                st.write("First pass the qualification, on the page where answers are compared.")
                look.table(("",), [(look.Link("To the qualification", "compare", {}),)])
            else:
                st.write(f"There is no open task to {verb}. New ones appear here as they come in.")
        st.button("Look again", key="again", type="primary", shortcut="Ctrl+Enter")
        if labels.last_label(store, who) is not None:
            st.button(
                "Undo last",
                key="undo-last",
                shortcut="Alt+U",
                on_click=_undo_from_nothing,
                args=(store, who),
            )


def _undo_from_nothing(store: Store, who: Account) -> None:
    last = labels.last_label(store, who)
    if last is not None:
        labels.reopen(store, who, last.kind, last.id)
        area = "Compare" if last.kind == "compare" else "Write"
        st.session_state["said"] = f"It is open on the page {area}."
