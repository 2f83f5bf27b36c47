"""A label on a page: what was handed in, and how it was made."""

from labeling_app.label_view import LabelView
from labeling_app.views import look


def handed_in(label: LabelView) -> None:
    for turn in label.turns:
        look.box("Answer" if turn.role == "assistant" else "Question", turn.text, "turn")
    for place, answer in enumerate(label.answers):
        letter = chr(65 + place)
        quality = f" · quality {answer.likert}" if answer.likert else ""
        boxes = f" · {', '.join(answer.flags)}" if answer.flags else ""
        look.box(f"{letter}: rank {answer.rank}{quality}{boxes}", answer.text, "stacked")
    for name, value in label.words.items():
        look.line(f"{name}: {value}")


def how_made(label: LabelView) -> None:
    """What its author saw and did: facts, no judgement."""
    look.line(f"{label.created_at:%d %b %Y, %H:%M} UTC · {label.active_ms / 1000:.0f} s at work")
    if label.kind == "demo":
        edited = f", {label.edit_chars} characters from it" if label.edit_chars else ""
        drafts = {"human": "written without a draft", "accepted": "a draft as it was"}
        origin = drafts.get(label.origin, f"from a draft{edited}")
        look.line(f"{origin} · {label.pasted_chars} characters pasted")
    for shown in label.assists:
        took = ", ".join(f"{action} {part + 1}" for part, action in shown.actions)
        look.line(f"{shown.kind} by {shown.model}, {len(shown.parts)} parts; {took or 'none used'}")
        for number, part in enumerate(shown.parts, 1):
            look.excerpt(f"{number}  {part}")
    for number, text in enumerate(label.earlier, 1):
        look.line(f"{number} before this")
        look.excerpt(text)
