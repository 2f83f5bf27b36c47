"""Users' thumbs on deployed answers; a thumb down puts the bad answer into the queue, once."""

import dataclasses

from sqlalchemy.orm import Session

from labeling_app.auth import ROLES, Account, project_id, require
from labeling_app.schema import FeedbackRow
from labeling_app.store import Store, check_name, check_text, record_event
from labeling_app.tasks import NewAnswer, NewTask, add_task, check_task, messages_json
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json, sha256_text
from pipeline.core.records import Feedback

SOURCE = "feedback"
PRIORITY = 100


@dataclasses.dataclass(frozen=True)
class FeedbackReceipt:
    """`task_id` is set for a thumb down; `repeated`: this click was stored before."""

    repeated: bool
    task_id: int | None


def record_feedback(
    store: Store, feedback: Feedback, who: Account | None = None, project: str = "default"
) -> FeedbackReceipt:
    """Store a click once by its `feedback_id`; the first one stands.

    A rating of -1 becomes one task of kind demo that shows the rated answer; further thumbs down
    on the same answer of the same model are stored and lead to that same task. `who` is the
    person at the chat page, None for feedback from the served endpoint. Raises UserError.
    """
    _check(feedback)
    task = _task(feedback)
    check_task(task)
    now = store.clock()

    def deed(session: Session) -> FeedbackReceipt:
        caller = require(session, who, *ROLES) if who else None
        actor = caller.pseudonym if caller else SOURCE
        number = caller.project_id if caller else project_id(session, project)
        old = session.get(FeedbackRow, (number, feedback.feedback_id))
        if old is not None and old.prompt_id != feedback.prompt_id:
            raise UserError(
                f"feedback key {feedback.feedback_id!r} stands for another question already; give"
                " each bad answer a key of its own"
            )
        if old is not None:
            return FeedbackReceipt(repeated=True, task_id=old.task_id)
        task_id = add_task(session, now, actor, number, task)[0] if feedback.rating < 0 else None
        session.add(
            FeedbackRow(
                feedback_id=feedback.feedback_id,
                project_id=number,
                prompt_id=feedback.prompt_id,
                messages=messages_json(feedback.messages),
                model_id=feedback.model_id,
                rating=feedback.rating,
                comment=feedback.comment,
                created_at=feedback.created_at,
                task_id=task_id,
            )
        )
        target = f"feedback:{feedback.feedback_id}"[:200]
        session.flush()
        record_event(session, now, actor, "rated", target, rating=feedback.rating)
        return FeedbackReceipt(repeated=False, task_id=task_id)

    return store.transact(deed)


def _check(feedback: Feedback) -> None:
    check_name(feedback.feedback_id, "the feedback's id")
    check_name(feedback.model_id, "the feedback's model")
    if feedback.comment:
        check_text(feedback.comment, "the feedback's comment")
    if feedback.rating not in (1, -1):
        raise UserError(f"feedback rating {feedback.rating!r}; 1 or -1 will do")
    if len(feedback.messages) < 2 or feedback.messages[-1].role != "assistant":
        raise UserError(
            f"feedback {feedback.feedback_id!r}: the messages must end with the rated answer"
        )


def _task(feedback: Feedback) -> NewTask:
    content = canonical_json([feedback.model_id, messages_json(feedback.messages)])
    rated = feedback.messages[-1].text
    return NewTask(
        key=f"{SOURCE}:{sha256_text(content)}",
        kind="demo",
        prompt=feedback.messages[:-1],
        source=SOURCE,
        answers=(NewAnswer(feedback.model_id, rated),) if rated.strip() else (),
        priority=PRIORITY,
    )
