"""Signed-in browsers and programs: opaque tokens, of which the store keeps a digest alone.

A browser holds its token in a cookie that scripts cannot read; its pages get a page token, which
is derived from the session, for the requests that they make themselves.
"""

import dataclasses
import datetime as dt
import hashlib
import hmac
import re
from typing import Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from labeling_app.auth import Account, DeniedError, account, require
from labeling_app.schema import ApiToken, Membership, User, WebSession
from labeling_app.store import PAGE_KEY, Store, check_name, record_event
from pipeline.core.errors import UserError

SESSION = dt.timedelta(days=7)
API_TOKEN = dt.timedelta(days=90)
Scope = Literal["import", "export", "progress"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_PAGE_TOKEN = re.compile(r"(\d{1,18})\.(\d{1,18})\.([0-9a-f]{64})")


@dataclasses.dataclass(frozen=True)
class NewToken:
    """`token` is told this once."""

    id: int
    token: str
    expires: dt.datetime


def start_session(store: Store, who: Account, token: str = "") -> NewToken:
    """Sign a browser in; who may have to change the password first. `token`: one that stands for
    a sign-in elsewhere."""
    now, token = store.clock(), token or store.token() + store.token()
    with store.write() as session:
        row = WebSession(
            user_id=who.user_id,
            token_sha256=token_digest(token),
            session_epoch=who.session_epoch,
            created_at=now,
            expires=now + SESSION,
        )
        session.add(row)
        session.flush()
        return NewToken(row.id, token, row.expires)


def find_session(store: Store, token: str) -> int | None:
    """The id of the live session of this token."""
    with store.read() as session:
        row = session.scalars(
            select(WebSession).where(WebSession.token_sha256 == token_digest(token))
        ).one_or_none()
        return row.id if row and _user(session, store, row) else None


def account_of(store: Store, session_id: int, project: int | None = None) -> Account:
    """Who sits at the browser, in this project or else their oldest. Raises DeniedError once the
    session, the account or the membership has ended."""
    member = (Membership.user_id == User.id) & Membership.active
    if project:
        member &= Membership.project_id == project
    with store.read() as session:
        row = session.execute(
            select(
                User.id,
                User.name,
                User.simulated,
                User.session_epoch,
                User.must_change,
                Membership.project_id,
                Membership.role,
            )
            .join(WebSession, WebSession.user_id == User.id)
            .outerjoin(Membership, member)
            .where(
                WebSession.id == session_id,
                WebSession.ended_at.is_(None),
                WebSession.expires > store.clock(),
                WebSession.session_epoch == User.session_epoch,
                User.active,
            )
            .order_by(Membership.project_id)
            .limit(1)
        ).one_or_none()
    if row is None:
        raise DeniedError("your session has ended; sign in again")
    if row.role is None:
        where = "not in this project" if project else "in no project"
        raise DeniedError(f"you are {where}; ask a lead for an invitation")
    return Account(
        user_id=row.id,
        name=row.name,
        project_id=row.project_id,
        role=row.role,
        simulated=row.simulated,
        session_epoch=row.session_epoch,
        must_change=row.must_change,
    )


def end_session(store: Store, session_id: int) -> None:
    with store.write() as session:
        row = session.get(WebSession, session_id)
        if row is not None and row.ended_at is None:
            row.ended_at = store.clock()


def page_token(store: Store, session_id: int, project: int) -> str:
    """What a page of this session and project shows with its own requests."""
    return f"{session_id}.{project}.{_mac(store, session_id, project)}"


def account_of_page(store: Store, token: str) -> Account:
    """Raises DeniedError for a token that this store did not give, or whose session has ended."""
    parts = _PAGE_TOKEN.fullmatch(token)
    if parts is None:
        raise DeniedError("this page's token is not one of ours; reload the page")
    session_id, project = int(parts[1]), int(parts[2])
    if not hmac.compare_digest(parts[3], _mac(store, session_id, project)):
        raise DeniedError("this page's token is not one of ours; reload the page")
    return account_of(store, session_id, project)


def create_api_token(
    store: Store, who: Account, name: str, scopes: tuple[str, ...], lasts: dt.timedelta = API_TOKEN
) -> NewToken:
    """A program's token for the caller's project. Raises UserError for an unknown scope."""
    check_name(name, "the token's name")
    for scope in scopes:
        if scope not in SCOPES:
            raise UserError(f"scope {scope!r} is unknown; known are {', '.join(SCOPES)}")
    if not scopes:
        raise UserError(f"a token without scopes can do nothing; name some of {', '.join(SCOPES)}")
    if not dt.timedelta(minutes=1) <= lasts <= dt.timedelta(days=3650):
        raise UserError(f"a token lasts from a minute to ten years, not {lasts}")
    now, token = store.clock(), "fw_" + store.token() + store.token()
    with store.write() as session:
        caller = require(session, who, "lead", "engineer")
        row = ApiToken(
            user_id=caller.id,
            project_id=caller.project_id,
            name=name,
            scopes=sorted(set(scopes)),
            token_sha256=token_digest(token),
            created_at=now,
            expires=now + lasts,
        )
        session.add(row)
        session.flush()
        record_event(
            session, now, caller.pseudonym, "token-made", f"token:{row.id}", scopes=row.scopes
        )
        return NewToken(row.id, token, row.expires)


def account_of_api(store: Store, token: str, scope: Scope) -> Account:
    """Raises DeniedError for an unknown, ended or expired token, and for another scope."""
    with store.read() as session:
        row = session.scalars(
            select(ApiToken).where(ApiToken.token_sha256 == token_digest(token))
        ).one_or_none()
        if not token:
            raise DeniedError("no API token; send the header Authorization: Bearer fw_…")
        if row is None or row.ended_at is not None or row.expires <= store.clock():
            raise DeniedError("this API token is unknown or has ended")
        if scope not in row.scopes:
            raise DeniedError(f"this API token is for {', '.join(row.scopes)}, not for {scope}")
        user = session.get_one(User, row.user_id)
        if not user.active:
            raise DeniedError("the account of this API token is closed")
        return account(session, user, row.project_id)


def end_api_token(store: Store, who: Account, token_id: int) -> None:
    now = store.clock()
    with store.write() as session:
        caller = require(session, who, "lead", "engineer")
        row = session.get(ApiToken, token_id)
        if row is None or row.project_id != caller.project_id:
            raise UserError(f"no API token {token_id} in this project")
        if row.ended_at is None:
            row.ended_at = now
            record_event(session, now, caller.pseudonym, "token-ended", f"token:{row.id}")


def api_tokens(store: Store, who: Account) -> list[tuple[int, str, list[str], dt.datetime, bool]]:
    """Id, name, scopes, expiry, and whether it still works, of the project's tokens."""
    with store.read() as session:
        caller = require(session, who, "lead", "engineer")
        rows = session.execute(
            select(ApiToken, User, Membership)
            .join(User, User.id == ApiToken.user_id)
            .join(
                Membership,
                (Membership.user_id == ApiToken.user_id)
                & (Membership.project_id == ApiToken.project_id),
            )
            .where(ApiToken.project_id == caller.project_id)
            .order_by(ApiToken.id)
        )
        now = store.clock()
        return [
            (
                row.id,
                row.name,
                row.scopes,
                row.expires,
                row.ended_at is None and row.expires > now and user.active and member.active,
            )
            for row, user, member in rows
        ]


def token_digest(token: str) -> str:
    """What is kept of a token. Any string has one, for any string may be sent."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _user(session: Session, store: Store, row: WebSession) -> User | None:
    if row.ended_at is not None or row.expires <= store.clock():
        return None
    user = session.get_one(User, row.user_id)
    return user if user.active and user.session_epoch == row.session_epoch else None


def _mac(store: Store, session_id: int, project: int) -> str:
    message = f"page {session_id} {project}".encode()
    return hmac.new(store.key(PAGE_KEY), message, "sha256").hexdigest()
