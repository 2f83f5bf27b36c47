"""How the pages look: one small style sheet, and text that is never read as HTML or Markdown."""

import dataclasses
import functools
import html
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from labeling_app import guidelines, projects, running
from labeling_app.auth import Account
from labeling_app.store import Store
from pipeline.core.records import Message

_CSS = """
<style>
.stMainBlockContainer { padding: 3.6rem 1.5rem 1rem; max-width: 1560px; }
[data-testid="stHeader"] { height: 3rem; }
.st-key-column { max-width: 46rem; margin: 0 auto; }
.st-key-wide { max-width: 84rem; margin: 0 auto; }
.fw-turn { max-height: 44vh; }
.st-key-narrow { max-width: 24rem; margin: 8vh auto 0; }
[data-testid="stBottomBlockContainer"] { max-width: 49rem; padding: .5rem 1.5rem 1.5rem; }
.fw-text { font-size: 1rem; line-height: 1.5; max-width: 72ch; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.fw-box { border: 1px solid color-mix(in srgb, currentColor 18%, transparent);
  border-radius: 6px; padding: .65rem .85rem; overflow: auto; }
.fw-box:focus-visible { outline: 2px solid #2f7fa8; outline-offset: 1px; }
.fw-box .fw-text + .fw-text { margin-top: .6rem; }
.fw-prompt { max-height: 24vh; background: color-mix(in srgb, currentColor 4%, transparent); }
.fw-bad { max-height: 18vh; border-style: dashed; }
.fw-answer { height: 40vh; }
.fw-stacked { max-height: 34vh; }
.fw-label { font-size: .78rem; letter-spacing: .06em; font-weight: 600; opacity: .75;
  margin: 0 0 .3rem !important; text-transform: uppercase; }
.fw-line { font-size: .92rem; opacity: .82; margin: 0; min-height: 1.5em; }
.fw-role { font-size: .82rem; font-weight: 600; opacity: .72; margin: .5rem 0 .1rem; }
.fw-table { border-collapse: collapse; font-size: 1rem; }
.fw-table th, .fw-table td { padding: .45rem 1.6rem .45rem 0; text-align: right; border: 0;
  vertical-align: top;
  border-bottom: 1px solid color-mix(in srgb, currentColor 14%, transparent); }
.fw-table th { font-weight: 600; } .fw-table .l { text-align: left;
  overflow-wrap: break-word; max-width: 44rem; }
.fw-table td { font-variant-numeric: tabular-nums; } .fw-table .r { white-space: nowrap; }
.fw-table a { color: inherit; text-underline-offset: 3px; }
.fw-said { padding-top: .4rem; }
.st-key-account { position: fixed; top: .65rem; right: 1.25rem; z-index: 999991;
  width: auto !important; }
div:has(> .st-key-pinned) { position: sticky; top: 3.6rem; z-index: 5; padding: .3rem 0 .5rem;
  background: var(--st-background-color, Canvas); }
.fw-guide { max-width: 72ch; line-height: 1.5; }
.fw-guide h2 { font-size: 1.35rem; padding: .6rem 0 .2rem; }
.fw-guide h3 { font-size: 1.08rem; padding: .7rem 0 .1rem; }
.st-key-guide h1 { font-size: 1.15rem; padding: 0 0 .4rem; }
.st-key-guide h2 { font-size: 1rem; padding: .5rem 0 .2rem; }
.st-key-guide p, .st-key-guide li { line-height: 1.5; }
[data-testid="stButtonGroup"] [aria-checked="true"] { font-weight: 700;
  background: color-mix(in srgb, currentColor 16%, transparent); }
[data-testid="stButtonGroup"] [aria-checked="true"],
[data-testid="stButtonGroup"] [aria-checked="true"] * { color: inherit !important; }
textarea { line-height: 1.5 !important; font-size: 1rem !important; }
:focus-visible { outline-offset: 1px; }
@media (prefers-reduced-motion: reduce) { * { transition: none !important; } }
</style>
"""


_LINK = """
export default function ({ data, parentElement }) {
  const place = parentElement.querySelector("span");
  const node = document.createElement(data.post ? "button" : "a");
  node.textContent = data.label;
  if (data.post) {
    node.onclick = () => {
      const form = document.createElement("form");
      form.method = "post";
      form.action = data.address;
      document.body.append(form);
      form.submit();
    };
  } else {
    node.href = data.address;
  }
  place.replaceChildren(node);
}
"""
_LINK_CSS = """
a, button { font: inherit; font-family: var(--st-font); font-size: .92rem; color: inherit;
  background: none; border: 0; padding: .2rem .4rem; cursor: pointer; text-decoration: underline;
  text-underline-offset: 3px; border-radius: 4px; white-space: nowrap; }
:focus-visible { outline: 2px solid var(--st-primary-color); }
"""


def apply() -> None:
    st.html(_CSS)


def account_bar(store: Store, who: Account, sign_out: Callable[[], None]) -> None:
    """Who is signed in, in which project, and the way out: at the top right of every page."""
    mine = projects.my_projects(store, who)
    with st.container(key="account", horizontal=True, vertical_alignment="center"):
        if len(mine) > 1:
            st.selectbox(
                "Project",
                list(mine),
                index=list(mine).index(who.project_id),
                format_func=mine.__getitem__,
                key="project",
                label_visibility="collapsed",
            )
        if running.settings().oidc is None:
            # A form of our own: the cookie is taken away by the server, not by a rerun.
            link("/sign-out", f"{who.name} · sign out", "sign-out", post=True)
        else:
            st.button(f"{who.name} · sign out", key="oidc-out", type="tertiary", on_click=sign_out)


def link(address: str, label: str, key: str, *, post: bool = False) -> None:
    """A way to one of our own pages outside Streamlit; `post`: as a form, for what changes
    something."""
    _link()(key=key, data={"address": address, "label": label, "post": post})


@functools.cache
def _link() -> Any:
    components: Any = st.components
    return components.v2.component("flywheel-link", html="<span></span>", css=_LINK_CSS, js=_LINK)


def trouble(title: str, what: str, safe: str) -> None:
    """What happened, what is safe; the page adds what to do."""
    with st.container(key="column"):
        st.subheader(title, anchor=False)
        st.error(f"{what[:1].upper()}{what[1:]}. {safe}")


def instructions(body_md: str) -> None:
    """The instructions as text, headings and numbered clauses; nothing in them is markup."""
    parts: list[str] = []
    for block in guidelines.blocks_of(body_md):
        text = html.escape(block.text)
        if block.level:
            level = min(block.level + 1, 4)
            parts.append(f"<h{level}>{text}</h{level}>")
        else:
            number = f"<b>{html.escape(block.number)}</b> " if block.number else ""
            parts.append(f"<p>{number}{text}</p>")
    st.html(f'<div class="fw-guide">{"".join(parts)}</div>')


def line(text: str) -> None:
    """One quiet line; its place is kept when it is empty, so that nothing moves."""
    st.html(f'<p class="fw-line" role="status">{html.escape(text)}</p>')


def box(label: str, text: str, kind: str) -> None:
    """A text in a labelled frame that scrolls inside, and takes the focus so that keys can."""
    st.html(_frame(label, plain(text), kind))


def excerpt(text: str, limit: int = 600) -> None:
    """The beginning of a text, as it is."""
    st.html(plain(text if len(text) <= limit else text[:limit] + " …"))


def prompt(messages: Sequence[Message]) -> None:
    """The prompt; who says what is told where there is more than one turn."""
    parts: list[str] = []
    for message in messages:
        if len(messages) > 1:
            parts.append(f'<p class="fw-role">{html.escape(message.role)}</p>')
        parts.append(plain(message.text))
    st.html(_frame("Prompt", "".join(parts), "prompt"))


def turn(speaker: str, text: str) -> str:
    """HTML of one turn of a chat."""
    return f'<div class="fw-said"><p class="fw-label">{html.escape(speaker)}</p>{plain(text)}</div>'


def plain(text: str) -> str:
    """HTML that shows a text as it is."""
    return f'<div class="fw-text">{html.escape(text)}</div>'


@dataclasses.dataclass(frozen=True)
class Link:
    """A table's cell that leads to another page of the app."""

    text: str
    page: str
    query: Mapping[str, str | int]


def table(
    head: Sequence[str], rows: Sequence[Sequence[str | Link]], left: Collection[int] = (0,)
) -> None:
    """`left`: the columns of words; the others are numbers and stand at the right."""

    def row(cells: Sequence[str | Link], tag: str) -> str:
        parts: list[str] = []
        for place, cell in enumerate(cells):
            name = tag if place else "th"
            scope = "" if name == "td" else f' scope="{"row" if tag == "td" else "col"}"'
            side = "l" if place in left else "r"
            parts.append(f'<{name} class="{side}"{scope}>{_cell(cell)}</{name}>')
        return f"<tr>{''.join(parts)}</tr>"

    top = row(head, "th") if any(head) else ""
    st.html(f'<table class="fw-table">{top}{"".join(row(cells, "td") for cells in rows)}</table>')


def _cell(cell: str | Link) -> str:
    if isinstance(cell, str):
        return html.escape(cell)
    address = html.escape(f"{cell.page}?{urlencode(cell.query)}")
    return f'<a href="{address}" target="_self">{html.escape(cell.text)}</a>'


def _frame(label: str, inner: str, kind: str) -> str:
    name = html.escape(label)
    return (
        f'<p class="fw-label">{name}</p><div class="fw-box fw-{kind}" tabindex="0" role="region" '
        f'aria-label="{name}">{inner}</div>'
    )
