"""Teams: projects, memberships, sessions, reviews, the LLM's help, vendors.

The old tables step aside, the new ones are made, and every row moves over; names leave the log."""

import hmac

import sqlalchemy as sa
from alembic import op

from labeling_app.schema import refuse_changes

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)

_APPEND_ONLY = (
    "instruction_versions",
    "instruction_acks",
    "qualifications",
    "prompts",
    "responses",
    "task_responses",
    "demonstrations",
    "comparisons",
    "comparison_items",
    "assists",
    "assist_actions",
    "reviews",
    "feedback",
    "events",
)
# In an order in which each stands after those it points to.
_OLD = (
    "schema_version",
    "secrets",
    "users",
    "sign_in_attempts",
    "instruction_versions",
    "instruction_acks",
    "prompts",
    "tasks",
    "responses",
    "task_responses",
    "slots",
    "leases",
    "drafts",
    "demonstrations",
    "comparisons",
    "comparison_items",
    "feedback",
    "events",
)
# What moves as it is, and the values of its new columns. Project 1 is the one that there was.
_MOVES: dict[str, str] = {
    "secrets": "name, value",
    "sign_in_attempts": "id, name, at",
    "memberships": "1 AS project_id, id AS user_id, role, '[]' AS skills, 0 AS extra_tries, active",
    "instruction_versions": "id, 1 AS project_id, n, body_md, sha256, {false} AS requalify,"
    " published_at",
    "instruction_acks": "user_id, version_id, at",
    "prompts": "id, 1 AS project_id, prompt_id, messages, content_sha256, {no_bytes} AS signature",
    "tasks": "id, 1 AS project_id, key, prompt_id, kind, 'work' AS purpose, '' AS skill, source,"
    " overlap, priority, state, created_at",
    "responses": "id, prompt_id, model, text, sha256",
    "task_responses": "task_id, position, response_id",
    "leases": "id, slot_id, task_id, user_id, version_id, token, 'work' AS purpose,"
    " {false} AS assisted, shown_order, acquired, expires, released, outcome, reason",
    "drafts": "task_id, user_id, rev, body, saved_at",
    "demonstrations": "id, task_id, slot_id, user_id, version_id, messages, origin,"
    " {false} AS assisted, 0 AS pasted_chars, 0 AS active_ms, '' AS vendor, content_sha256,"
    " idem_key, created_at",
    "comparisons": "id, task_id, slot_id, user_id, version_id, shown_order, '' AS not_rankable,"
    " confidence, '' AS comment, {false} AS assisted, 0 AS active_ms, '' AS vendor,"
    " content_sha256, idem_key, created_at",
    "comparison_items": "comparison_id, position, rank, '[]' AS flags",
    "feedback": "feedback_id, 1 AS project_id, prompt_id, messages, model_id, rating, comment,"
    " created_at, task_id",
}


def upgrade() -> None:
    bind = op.get_bind()
    _step_aside(bind)
    _create()
    _move(bind)
    _drop_old(bind)
    refuse_changes(bind, _APPEND_ONLY)


def _create() -> None:
    op.create_table(
        "events",
        sa.Column("id", _ID, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("verb", sa.String(length=32), nullable=False),
        sa.Column("target", sa.String(length=200), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "projects",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "sign_in_attempts",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_sign_in_attempts_at", "sign_in_attempts", ["at"], unique=False)
    op.create_index("sign_in_attempts_of_name", "sign_in_attempts", ["name", "at"], unique=False)
    op.create_table(
        "users",
        sa.Column("id", _ID, nullable=False),
        sa.Column("issuer", sa.String(length=200), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("pseudonym", sa.String(length=64), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("pw_hash", sa.Text(), nullable=True),
        sa.Column("must_change", sa.Boolean(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("session_epoch", sa.Integer(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("erased_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("issuer", "subject"),
        sa.UniqueConstraint("name"),
        sa.UniqueConstraint("pseudonym"),
    )
    op.create_table(
        "api_tokens",
        sa.Column("id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires", _TIME, nullable=False),
        sa.Column("ended_at", _TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("token_sha256"),
    )
    op.create_table(
        "instruction_versions",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("body_md", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("requalify", sa.Boolean(), nullable=False),
        sa.Column("published_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("project_id", "n"),
    )
    op.create_table(
        "invitations",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("skills", sa.JSON(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_by", _ID, nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires", _TIME, nullable=False),
        sa.Column("used_by", _ID, nullable=True),
        sa.Column("used_at", _TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["created_by"],
            ["users.id"],
        ),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.ForeignKeyConstraint(
            ["used_by"],
            ["users.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("token_sha256"),
    )
    op.create_table(
        "memberships",
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("skills", sa.JSON(), nullable=False),
        sa.Column("extra_tries", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
        ),
        sa.PrimaryKeyConstraint("user_id", "project_id"),
    )
    op.create_index("ix_memberships_project_id", "memberships", ["project_id"], unique=False)
    op.create_table(
        "prompts",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("prompt_id", sa.String(length=32), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("project_id", "content_sha256"),
    )
    op.create_index("ix_prompts_prompt_id", "prompts", ["prompt_id"], unique=False)
    op.create_table(
        "review_claims",
        sa.Column("target_kind", sa.String(length=16), nullable=False),
        sa.Column("target_id", sa.Integer(), nullable=False),
        sa.Column("reviewer_id", _ID, nullable=False),
        sa.Column("expires", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["reviewer_id"],
            ["users.id"],
        ),
        sa.PrimaryKeyConstraint("target_kind", "target_id"),
    )
    op.create_index("ix_review_claims_reviewer_id", "review_claims", ["reviewer_id"], unique=False)
    op.create_table(
        "review_requests",
        sa.Column("target_kind", sa.String(length=16), nullable=False),
        sa.Column("target_id", sa.Integer(), nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.PrimaryKeyConstraint("target_kind", "target_id"),
    )
    op.create_index(
        "ix_review_requests_project_id", "review_requests", ["project_id"], unique=False
    )
    op.create_table(
        "reviews",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("target_kind", sa.String(length=16), nullable=False),
        sa.Column("target_id", sa.Integer(), nullable=False),
        sa.Column("reviewer_id", _ID, nullable=False),
        sa.Column("author_id", _ID, nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("clause", sa.String(length=16), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["author_id"],
            ["users.id"],
        ),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.ForeignKeyConstraint(
            ["reviewer_id"],
            ["users.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("target_kind", "target_id"),
    )
    op.create_index("ix_reviews_author_id", "reviews", ["author_id"], unique=False)
    op.create_table(
        "web_sessions",
        sa.Column("id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("session_epoch", sa.Integer(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires", _TIME, nullable=False),
        sa.Column("ended_at", _TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("token_sha256"),
    )
    op.create_index("ix_web_sessions_user_id", "web_sessions", ["user_id"], unique=False)
    op.create_table(
        "instruction_acks",
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["instruction_versions.id"],
        ),
        sa.PrimaryKeyConstraint("user_id", "version_id"),
    )
    op.create_table(
        "qualifications",
        sa.Column("id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("tasks", sa.Integer(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["instruction_versions.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_qualifications_user_id", "qualifications", ["user_id"], unique=False)
    op.create_table(
        "responses",
        sa.Column("id", _ID, nullable=False),
        sa.Column("prompt_id", _ID, nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["prompt_id"],
            ["prompts.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("prompt_id", "model", "sha256"),
    )
    op.create_table(
        "tasks",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("prompt_id", _ID, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("gold", sa.JSON(), nullable=True),
        sa.Column("skill", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("overlap", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.ForeignKeyConstraint(
            ["prompt_id"],
            ["prompts.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("project_id", "key"),
    )
    op.create_index("ix_tasks_prompt_id", "tasks", ["prompt_id"], unique=False)
    op.create_index(
        "tasks_by_priority",
        "tasks",
        [sa.literal_column("priority DESC"), "id"],
        unique=False,
    )
    op.create_index(
        "tasks_by_purpose", "tasks", ["project_id", "purpose", "kind", "state", "id"], unique=False
    )
    op.create_table(
        "vendor_batches",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("vendor", sa.String(length=64), nullable=False),
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("gold_agreement", sa.Double(), nullable=True),
        sa.Column("file_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["instruction_versions.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_vendor_batches_project_id", "vendor_batches", ["project_id"], unique=False)
    op.create_table(
        "drafts",
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("rev", sa.Integer(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("saved_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["tasks.id"],
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
        ),
        sa.PrimaryKeyConstraint("task_id", "user_id"),
    )
    op.create_index("drafts_of_person", "drafts", ["user_id"], unique=False)
    op.create_table(
        "feedback",
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("feedback_id", sa.String(length=200), nullable=False),
        sa.Column("prompt_id", sa.String(length=32), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("model_id", sa.String(length=200), nullable=False),
        sa.Column("rating", sa.Integer(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("task_id", _ID, nullable=True),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["tasks.id"],
        ),
        sa.PrimaryKeyConstraint("project_id", "feedback_id"),
    )
    op.create_table(
        "slots",
        sa.Column("id", _ID, nullable=False),
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("slot_no", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("skill", sa.String(length=64), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["tasks.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("task_id", "slot_no"),
    )
    op.create_index(
        "slots_queue",
        "slots",
        ["project_id", "kind", "skill", sa.literal_column("priority DESC"), "task_id", "slot_no"],
        unique=False,
        sqlite_where=sa.text("state = 'free'"),
        postgresql_where=sa.text("state = 'free'"),
    )
    op.create_table(
        "task_responses",
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("response_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["response_id"],
            ["responses.id"],
        ),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["tasks.id"],
        ),
        sa.PrimaryKeyConstraint("task_id", "position"),
        sa.UniqueConstraint("task_id", "response_id"),
    )
    op.create_table(
        "comparisons",
        sa.Column("id", _ID, nullable=False),
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("slot_id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("supersedes_id", _ID, nullable=True),
        sa.Column("shown_order", sa.JSON(), nullable=False),
        sa.Column("not_rankable", sa.Text(), nullable=False),
        sa.Column("confidence", sa.String(length=16), nullable=True),
        sa.Column("degree", sa.String(length=16), nullable=True),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("assisted", sa.Boolean(), nullable=False),
        sa.Column("active_ms", sa.Integer(), nullable=False),
        sa.Column("vendor", sa.String(length=64), nullable=False),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("idem_key", sa.String(length=200), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["slot_id"],
            ["slots.id"],
        ),
        sa.ForeignKeyConstraint(
            ["supersedes_id"],
            ["comparisons.id"],
        ),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["tasks.id"],
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["instruction_versions.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("idem_key"),
        sa.UniqueConstraint("supersedes_id"),
    )
    op.create_index("comparisons_by_time", "comparisons", ["created_at"], unique=False)
    op.create_index("comparisons_of_person", "comparisons", ["user_id", "created_at"], unique=False)
    op.create_index(
        "comparisons_one_per_person",
        "comparisons",
        ["task_id", "user_id"],
        unique=True,
        sqlite_where=sa.text("supersedes_id IS NULL"),
        postgresql_where=sa.text("supersedes_id IS NULL"),
    )
    op.create_index(
        "comparisons_one_per_slot",
        "comparisons",
        ["slot_id"],
        unique=True,
        sqlite_where=sa.text("supersedes_id IS NULL"),
        postgresql_where=sa.text("supersedes_id IS NULL"),
    )
    op.create_table(
        "demonstrations",
        sa.Column("id", _ID, nullable=False),
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("slot_id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("supersedes_id", _ID, nullable=True),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("origin", sa.String(length=16), nullable=False),
        sa.Column("assisted", sa.Boolean(), nullable=False),
        sa.Column("edit_chars", sa.Integer(), nullable=True),
        sa.Column("pasted_chars", sa.Integer(), nullable=False),
        sa.Column("active_ms", sa.Integer(), nullable=False),
        sa.Column("vendor", sa.String(length=64), nullable=False),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("idem_key", sa.String(length=200), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["slot_id"],
            ["slots.id"],
        ),
        sa.ForeignKeyConstraint(
            ["supersedes_id"],
            ["demonstrations.id"],
        ),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["tasks.id"],
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["instruction_versions.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("idem_key"),
        sa.UniqueConstraint("supersedes_id"),
    )
    op.create_index("demonstrations_by_time", "demonstrations", ["created_at"], unique=False)
    op.create_index(
        "demonstrations_of_person", "demonstrations", ["user_id", "created_at"], unique=False
    )
    op.create_index(
        "demonstrations_one_per_person",
        "demonstrations",
        ["task_id", "user_id"],
        unique=True,
        sqlite_where=sa.text("supersedes_id IS NULL"),
        postgresql_where=sa.text("supersedes_id IS NULL"),
    )
    op.create_index(
        "demonstrations_one_per_slot",
        "demonstrations",
        ["slot_id"],
        unique=True,
        sqlite_where=sa.text("supersedes_id IS NULL"),
        postgresql_where=sa.text("supersedes_id IS NULL"),
    )
    op.create_table(
        "leases",
        sa.Column("id", _ID, nullable=False),
        sa.Column("slot_id", _ID, nullable=False),
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("token", sa.String(length=64), nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("corrects", sa.Integer(), nullable=True),
        sa.Column("assisted", sa.Boolean(), nullable=False),
        sa.Column("shown_order", sa.JSON(), nullable=False),
        sa.Column("acquired", _TIME, nullable=False),
        sa.Column("expires", _TIME, nullable=False),
        sa.Column("released", _TIME, nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["slot_id"],
            ["slots.id"],
        ),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["tasks.id"],
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["instruction_versions.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("token"),
    )
    op.create_index("ix_leases_task_id", "leases", ["task_id"], unique=False)
    op.create_index(
        "leases_expiry",
        "leases",
        ["expires"],
        unique=False,
        sqlite_where=sa.text("released IS NULL"),
        postgresql_where=sa.text("released IS NULL"),
    )
    op.create_index(
        "leases_held",
        "leases",
        ["user_id"],
        unique=False,
        sqlite_where=sa.text("released IS NULL"),
        postgresql_where=sa.text("released IS NULL"),
    )
    op.create_index("leases_history", "leases", ["user_id", "task_id"], unique=False)
    op.create_index(
        "leases_one_per_person",
        "leases",
        ["task_id", "user_id"],
        unique=True,
        sqlite_where=sa.text("released IS NULL"),
        postgresql_where=sa.text("released IS NULL"),
    )
    op.create_index(
        "leases_one_per_slot",
        "leases",
        ["slot_id"],
        unique=True,
        sqlite_where=sa.text("released IS NULL"),
        postgresql_where=sa.text("released IS NULL"),
    )
    op.create_table(
        "vendor_items",
        sa.Column("item", sa.String(length=32), nullable=False),
        sa.Column("batch_id", _ID, nullable=False),
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("slot_id", _ID, nullable=True),
        sa.Column("shown_order", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["vendor_batches.id"],
        ),
        sa.ForeignKeyConstraint(
            ["slot_id"],
            ["slots.id"],
        ),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["tasks.id"],
        ),
        sa.PrimaryKeyConstraint("item"),
    )
    op.create_index("ix_vendor_items_batch_id", "vendor_items", ["batch_id"], unique=False)
    op.create_index(
        "vendor_items_slot",
        "vendor_items",
        ["slot_id"],
        unique=False,
        sqlite_where=sa.text("slot_id IS NOT NULL"),
        postgresql_where=sa.text("slot_id IS NOT NULL"),
    )
    op.create_table(
        "assists",
        sa.Column("id", _ID, nullable=False),
        sa.Column("lease_id", _ID, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("prompt_sha256", sa.String(length=64), nullable=False),
        sa.Column("input_sha256", sa.String(length=64), nullable=False),
        sa.Column("output", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("shown_at", _TIME, nullable=False),
        sa.Column("waited_ms", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["lease_id"],
            ["leases.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_assists_lease_id", "assists", ["lease_id"], unique=False)
    op.create_table(
        "comparison_items",
        sa.Column("comparison_id", _ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("likert", sa.Integer(), nullable=True),
        sa.Column("flags", sa.JSON(), nullable=False),
        sa.CheckConstraint("likert BETWEEN 1 AND 7", name="likert_range"),
        sa.CheckConstraint("rank BETWEEN 1 AND 9", name="rank_range"),
        sa.ForeignKeyConstraint(
            ["comparison_id"],
            ["comparisons.id"],
        ),
        sa.PrimaryKeyConstraint("comparison_id", "position"),
    )
    op.create_table(
        "assist_actions",
        sa.Column("id", _ID, nullable=False),
        sa.Column("assist_id", _ID, nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["assist_id"],
            ["assists.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_assist_actions_assist_id", "assist_actions", ["assist_id"], unique=False)


def _step_aside(bind: sa.Connection) -> None:
    """Rename the old tables; their indexes go, for the new ones bear the same names."""
    for table in _OLD:
        for index in sa.inspect(bind).get_indexes(table):
            if not index.get("duplicates_constraint"):
                op.drop_index(str(index["name"]), table)
        op.rename_table(table, f"v1_{table}")


def _move(bind: sa.Connection) -> None:
    sqlite = bind.dialect.name == "sqlite"
    words = {"false": "0", "no_bytes": "x''"} if sqlite else {"false": "false", "no_bytes": "''"}
    bind.execute(
        sa.text(
            "INSERT INTO projects (id, name, paused, settings, created_at)"
            f" VALUES (1, 'default', {words['false']}, '{{}}', CURRENT_TIMESTAMP)"
        )
    )
    names = _move_users(bind)
    for table, columns in _MOVES.items():
        source = "users" if table == "memberships" else table
        targets = ", ".join(part.split(" AS ")[-1].strip() for part in columns.split(","))
        json_as_text = columns if sqlite else columns.replace("'[]'", "CAST('[]' AS json)")
        bind.execute(
            sa.text(
                f"INSERT INTO {table} ({targets}) SELECT {json_as_text.format(**words)}"
                f" FROM v1_{source}"
            )
        )
        if table == "tasks":
            _move_slots(bind)
    _move_events(bind, names)
    if not sqlite:
        for table in sa.inspect(bind).get_table_names():
            columns = {column["name"] for column in sa.inspect(bind).get_columns(table)}
            if "id" in columns:
                bind.execute(
                    sa.text(
                        f"SELECT setval(pg_get_serial_sequence('{table}', 'id'),"
                        f" (SELECT max(id) FROM {table})) WHERE EXISTS (SELECT 1 FROM {table})"
                    )
                )


def _move_users(bind: sa.Connection) -> dict[str, str]:
    """Returns each name's pseudonym: the one that earlier exports had."""
    key = bind.scalar(sa.text("SELECT value FROM v1_secrets WHERE name = 'pseudonym-key'"))
    rows = bind.execute(sa.text("SELECT id, name, simulated FROM v1_users")).all()
    names: dict[str, str] = {}
    for row in rows:
        digest = hmac.new(bytes(key), row.name.encode(), "sha256").hexdigest()[:16]
        names[row.name] = f"{'simulated' if row.simulated else 'person'}-{digest}"
        bind.execute(
            sa.text(
                "INSERT INTO users (id, issuer, subject, name, pseudonym, simulated, pw_hash,"
                " must_change, active, session_epoch, created_at) SELECT id, '', name, name,"
                " :pseudonym, simulated, pw_hash, must_change, active, session_epoch, created_at"
                " FROM v1_users WHERE id = :id"
            ),
            {"pseudonym": names[row.name], "id": row.id},
        )
    return names


def _move_slots(bind: sa.Connection) -> None:
    bind.execute(
        sa.text(
            "INSERT INTO slots (id, task_id, slot_no, state, project_id, kind, skill, priority)"
            " SELECT s.id, s.task_id, s.slot_no, CASE WHEN s.filled THEN 'filled'"
            " WHEN EXISTS (SELECT 1 FROM v1_leases l WHERE l.slot_id = s.id"
            " AND l.released IS NULL) THEN 'leased' ELSE 'free' END, 1, t.kind, '', t.priority"
            " FROM v1_slots s JOIN v1_tasks t ON t.id = s.task_id"
        )
    )


_EVENT = ("id", "at", "actor", "verb", "target", "payload")


def _move_events(bind: sa.Connection, names: dict[str, str]) -> None:
    columns = {"at": _TIME, "payload": sa.JSON()}
    events, old = (
        sa.table(name, *(sa.column(each, columns.get(each)) for each in _EVENT))
        for name in ("events", "v1_events")
    )
    for row in bind.execute(sa.select(old).order_by(old.c.id)).all():
        kind, _, name = row.target.partition(":")
        target = f"user:{names[name]}" if kind == "user" and name in names else row.target
        actor = names.get(row.actor, row.actor)
        bind.execute(
            sa.insert(events).values(
                **{**dict(zip(_EVENT, row, strict=True)), "target": target, "actor": actor}
            )
        )


def _drop_old(bind: sa.Connection) -> None:
    for table in reversed(_OLD):
        op.drop_table(f"v1_{table}")
