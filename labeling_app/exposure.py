"""What of an LLM's drafts a person saw and took, and how far their answer is from it."""

from rapidfuzz.distance import Levenshtein
from sqlalchemy import select
from sqlalchemy.orm import Session

from labeling_app.schema import Assist, AssistAction, Demonstration, Lease

# Of longer texts the first so many characters are compared: the cost grows with the square.
MAX_COMPARED = 20_000


def provenance(session: Session, lease: Lease, answer: str) -> tuple[str, int | None]:
    """(origin, edit distance in characters) of an answer: human and None where no part of a draft
    was taken, accepted where all of it was and nothing else, else edited.

    What counts is all that was taken for this task by its person, in any of their leases, and by
    the authors of the labels that it replaces: a text keeps its origin when it is corrected. The
    distance is Levenshtein's, from the parts taken, in the order they were taken, to the answer.
    """
    taken = session.execute(
        select(Assist.output, AssistAction.part)
        .join(AssistAction, AssistAction.assist_id == Assist.id)
        .join(Lease, Lease.id == Assist.lease_id)
        .where(
            Lease.task_id == lease.task_id,
            Lease.user_id.in_(_authors(session, lease)),
            Assist.kind == "draft",
            AssistAction.action == "take",
        )
        .order_by(AssistAction.id)
    ).all()
    if not taken:
        return "human", None
    base = "\n\n".join(str(row.output[row.part]["text"]) for row in taken)
    distance = edit_distance(base.strip(), answer.strip())
    return ("accepted" if distance == 0 else "edited"), distance


def _authors(session: Session, lease: Lease) -> set[int]:
    """The lease's person, and those of the answers that theirs would replace."""
    found, label = {lease.user_id}, lease.corrects
    while label is not None:
        row = session.get_one(Demonstration, label)
        found.add(row.user_id)
        label = row.supersedes_id
    return found


def edit_distance(one: str, other: str) -> int:
    """Levenshtein distance of the first MAX_COMPARED characters, plus the rest of the longer."""
    tails = one[MAX_COMPARED:], other[MAX_COMPARED:]
    rest = max(abs(len(tails[0]) - len(tails[1])), int(tails[0] != tails[1]))
    return int(Levenshtein.distance(one[:MAX_COMPARED], other[:MAX_COMPARED])) + rest
