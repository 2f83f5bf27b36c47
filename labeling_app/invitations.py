"""Invitations: a link, good once and for some days, by which a person joins a project."""

import dataclasses
import datetime as dt
import re

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from labeling_app import auth
from labeling_app.auth import LOCAL, Account, DeniedError, checked_skills, require
from labeling_app.schema import Invitation, Membership, Project, User
from labeling_app.sessions import token_digest
from labeling_app.store import PSEUDONYM_KEY, Store, check_text, record_event
from pipeline.core.errors import UserError

LASTS = dt.timedelta(days=7)
MAX_NOTE = 200


@dataclasses.dataclass(frozen=True)
class Invited:
    """What an invitation offers; `open` False: it was used, or its time is over."""

    project: str
    role: str
    open: bool


def invite(
    store: Store,
    who: Account,
    role: str,
    skills: tuple[str, ...] = (),
    note: str = "",
    lasts: dt.timedelta = LASTS,
) -> str:
    """A new invitation's token, told this once; `note` says to the lead whom it is for."""
    auth.check_role(role)
    if len(note) > MAX_NOTE:
        raise UserError(f"the note has {len(note)} characters; at most {MAX_NOTE} are taken")
    if note:
        check_text(note, "the note")
    skills = checked_skills(skills)
    if not dt.timedelta(minutes=1) <= lasts <= dt.timedelta(days=365):
        raise UserError(f"an invitation lasts from a minute to a year, not {lasts}")
    now, token = store.clock(), store.token() + store.token()
    with store.write() as session:
        caller = require(session, who, "lead")
        row = Invitation(
            project_id=caller.project_id,
            role=role,
            skills=list(skills),
            note=note,
            token_sha256=token_digest(token),
            created_by=caller.id,
            created_at=now,
            expires=now + lasts,
        )
        session.add(row)
        session.flush()
        record_event(session, now, caller.pseudonym, "invited", f"invitation:{row.id}", role=role)
    return token


@dataclasses.dataclass(frozen=True)
class Pending:
    id: int
    role: str
    note: str
    expires: dt.datetime


def pending(store: Store, who: Account) -> list[Pending]:
    """Invitations into the caller's project that can still be accepted, the newest first."""
    with store.read() as session:
        caller = require(session, who, "lead")
        rows = session.scalars(
            select(Invitation)
            .where(
                Invitation.project_id == caller.project_id,
                Invitation.used_at.is_(None),
                Invitation.expires > store.clock(),
            )
            .order_by(Invitation.id.desc())
        )
        return [
            Pending(row.id, row.role, row.note, row.expires)
            for row in rows
            if _leads_still(session, row)
        ]


def revoke(store: Store, who: Account, number: int) -> None:
    """The invitation is good no longer. Raises UserError for one that was accepted."""
    with store.write() as session:
        caller = require(session, who, "lead")
        row = session.get(Invitation, number, with_for_update={"key_share": True})
        if row is None or row.project_id != caller.project_id:
            raise UserError(f"no invitation {number} in this project")
        if row.used_at is not None:
            raise UserError("somebody has accepted this invitation; remove the person instead")
        now = store.clock()
        row.expires = min(row.expires, now)
        record_event(session, now, caller.pseudonym, "invitation-revoked", f"invitation:{row.id}")


def look_up(store: Store, token: str) -> Invited:
    """Raises DeniedError for a token that is no invitation's."""
    with store.read() as session:
        row = _row(session, token)
        project = session.get_one(Project, row.project_id)
        return Invited(project.name, row.role, row.used_at is None and row.expires > store.clock())


def accept(store: Store, token: str, name: str, password: str) -> Account:
    """Make a local account of this name and password. Raises DeniedError for an invitation that
    is over, UserError for a name or password that will not do; then it stays open."""
    name = name.strip().lower()
    auth.check_password(password)
    with store.read() as session:  # to hash a password takes time: not for nobody
        _open(store, session, token, lock=False)
    pw_hash = auth.hash_password(password)
    key = store.key(PSEUDONYM_KEY)
    try:
        with store.write() as session:
            row = _open(store, session, token)
            user = auth.new_user(session, store, key, name, pw_hash)
            return _join(store, session, row, user)
    except IntegrityError:
        raise UserError(f"the name {name!r} is taken; choose another") from None


def accept_signed_in(store: Store, token: str, who: Account) -> Account:
    """Somebody who has an account joins one more project with it."""
    with store.write() as session:
        row = _open(store, session, token)
        user = session.get(User, who.user_id)
        if user is None or not user.active or user.session_epoch != who.session_epoch:
            raise DeniedError("your session has ended; sign in again")
        return _join(store, session, row, user)


def accept_as(store: Store, token: str, issuer: str, subject: str, name: str) -> Account:
    """The same for somebody whom an OIDC issuer vouches for; an account that they have joins."""
    if not issuer or not subject or len(issuer) > 200 or len(subject) > 200:
        raise DeniedError("the sign-in service names no person")
    key = store.key(PSEUDONYM_KEY)
    with store.write() as session:
        row = _open(store, session, token)
        user = find_person(session, issuer, subject)
        if user is not None and not user.active:
            raise DeniedError("your account is closed")
        if user is None:
            store.lock(session, "account names")
            free = _free_name(session, name)
            user = auth.new_user(session, store, key, free, None, issuer=issuer, subject=subject)
        return _join(store, session, row, user)


def sign_in_as(store: Store, issuer: str, subject: str) -> Account:
    """The account of somebody whom an OIDC issuer vouches for. Raises DeniedError."""
    with store.read() as session:
        user = find_person(session, issuer, subject)
        if user is None:
            raise DeniedError("you have no account here yet; ask a lead for an invitation")
        if not user.active:
            raise DeniedError("your account is closed")
        return auth.account(session, user, auth.first_project(session, user.id))


def find_person(session: Session, issuer: str, subject: str) -> User | None:
    if issuer == LOCAL:
        return None
    return session.scalars(
        select(User).where(User.issuer == issuer, User.subject == subject)
    ).one_or_none()


def _row(session: Session, token: str, *, lock: bool = False) -> Invitation:
    query = select(Invitation).where(Invitation.token_sha256 == token_digest(token))
    row = session.scalars(query.with_for_update(key_share=True) if lock else query).one_or_none()
    if row is None:
        raise DeniedError("this is no invitation of ours; ask for a new one")
    return row


def _open(store: Store, session: Session, token: str, *, lock: bool = True) -> Invitation:
    row = _row(session, token, lock=lock)
    if row.used_at is not None:
        raise DeniedError("this invitation was used; sign in, or ask for a new one")
    if row.expires <= store.clock():
        raise DeniedError("this invitation is over; ask for a new one")
    if not _leads_still(session, row):
        raise DeniedError("who invited you leads this project no longer; ask for a new one")
    return row


def _leads_still(session: Session, row: Invitation) -> bool:
    """Whether who made the invitation may still make one."""
    inviter = session.get(User, row.created_by) if row.created_by else None
    member = session.get(Membership, (row.created_by, row.project_id)) if row.created_by else None
    return bool(inviter and inviter.active and member and member.active and member.role == "lead")


def _join(store: Store, session: Session, row: Invitation, user: User) -> Account:
    now = store.clock()
    member = session.get(Membership, (user.id, row.project_id))
    if member is not None and member.active:
        raise DeniedError("you are in this project already; the invitation is still good")
    auth.add_membership(session, user.id, row.project_id, row.role, tuple(row.skills))
    row.used_by, row.used_at = user.id, now
    record_event(session, now, user.pseudonym, "joined", f"invitation:{row.id}", role=row.role)
    return auth.account(session, user, row.project_id)


def _free_name(session: Session, wanted: str) -> str:
    """The issuer's name for the person as an account name, with a number where it is taken."""
    base = (
        re.sub(r"[^a-z0-9._-]+", "-", wanted.split("@", maxsplit=1)[0].lower()).strip("._-")[:30]
        or "person"
    )
    name, number = base, 1
    while (
        auth.is_reserved(name)
        or session.scalars(select(User.id).where(User.name == name)).one_or_none()
    ):
        number += 1
        name = f"id-{base}-{number}" if auth.is_reserved(f"{base}-") else f"{base}-{number}"
    return name
