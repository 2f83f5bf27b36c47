"""Which labels a peer is to read, and why: the queue that reviews.py serves."""

import datetime as dt

from sqlalchemy.orm import Session

from labeling_app.schema import ReviewRequest


def request_review(
    session: Session, project: int, kind: str, label_id: int, why: str, at: dt.datetime
) -> bool:
    """Within a transaction; a label that is asked for already stays asked for, once. Returns
    whether it is new."""
    if session.get(ReviewRequest, (kind, label_id)) is not None:
        return False
    session.add(
        ReviewRequest(target_kind=kind, target_id=label_id, project_id=project, why=why, at=at)
    )
    session.flush()
    return True
