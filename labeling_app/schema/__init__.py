"""The tables of the labeling store; migrations/ brings older stores to them.

What a person wrote is never updated or deleted: the tables named in `APPEND_ONLY` refuse it. That
no answer is collected twice and no slot is held by two people is said by UNIQUE constraints here.
"""

from sqlalchemy import Connection, text

from labeling_app.schema.base import Base, EventRow, Secret, UtcDateTime
from labeling_app.schema.care import (
    Assist,
    AssistAction,
    FeedbackRow,
    Review,
    ReviewClaim,
    ReviewRequest,
    VendorBatch,
    VendorItem,
)
from labeling_app.schema.people import (
    ApiToken,
    InstructionAck,
    InstructionVersion,
    Invitation,
    Membership,
    Project,
    Qualification,
    SignInAttempt,
    User,
    WebSession,
)
from labeling_app.schema.work import (
    Demonstration,
    Draft,
    Lease,
    Prompt,
    RankedItem,
    RankedSet,
    Response,
    Slot,
    Task,
    TaskResponse,
)

__all__ = [
    "APPEND_ONLY",
    "ApiToken",
    "Assist",
    "AssistAction",
    "Base",
    "Demonstration",
    "Draft",
    "EventRow",
    "FeedbackRow",
    "InstructionAck",
    "InstructionVersion",
    "Invitation",
    "Lease",
    "Membership",
    "Project",
    "Prompt",
    "Qualification",
    "RankedItem",
    "RankedSet",
    "Response",
    "Review",
    "ReviewClaim",
    "ReviewRequest",
    "Secret",
    "SignInAttempt",
    "Slot",
    "Task",
    "TaskResponse",
    "User",
    "UtcDateTime",
    "VendorBatch",
    "VendorItem",
    "WebSession",
    "refuse_changes",
]

APPEND_ONLY = tuple(
    model.__tablename__
    for model in (
        InstructionVersion,
        InstructionAck,
        Qualification,
        Prompt,
        Response,
        TaskResponse,
        Demonstration,
        RankedSet,
        RankedItem,
        Assist,
        AssistAction,
        Review,
        FeedbackRow,
        EventRow,
    )
)


def refuse_changes(connection: Connection, tables: tuple[str, ...]) -> None:
    """Make the database refuse every UPDATE and DELETE on these tables."""
    if connection.dialect.name == "sqlite":
        for table in tables:
            for deed in ("update", "delete"):
                connection.execute(
                    text(
                        f"CREATE TRIGGER {table}_no_{deed} BEFORE {deed} ON {table} "
                        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                    )
                )
        return
    connection.execute(
        text(
            "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger AS $$ BEGIN "
            "RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$ LANGUAGE plpgsql"
        )
    )
    for table in tables:
        connection.execute(
            text(
                f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE "
                f"ON {table} FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
            )
        )
