"""Accounts of people: local passwords (argon2id), roles, and closing an account at once.

Every service call loads the caller's row anew and checks that it is open, that the session is
its newest kind, and that its role may do this: what the browser holds is never trusted.
"""

import base64
import dataclasses
import datetime as dt
import re
from typing import Literal, cast, get_args

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from labeling_app.schema import SignInAttempt, User
from labeling_app.store import Store, record_event
from pipeline.core.errors import UserError

Role = Literal["labeler", "reviewer", "lead", "engineer"]
ROLES: tuple[Role, ...] = get_args(Role)
WORKERS: tuple[Role, ...] = ("labeler", "reviewer", "lead")
MAX_ATTEMPTS = 5
ATTEMPT_WINDOW = dt.timedelta(minutes=15)
MIN_PASSWORD, MAX_PASSWORD = 10, 200

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
_HASHER = PasswordHasher()  # argon2id with the library's (RFC 9106's low-memory) costs
# Verified for an unknown name, so that it takes as long as a known one.
_NOBODY = _HASHER.hash("nobody")


class DeniedError(UserError):
    """The caller may not do this: signed out, closed, of another role, or too many attempts."""


@dataclasses.dataclass(frozen=True)
class Account:
    """Who calls. Only `user_id` and `session_epoch` are believed, and both are checked."""

    user_id: int
    name: str
    role: Role
    simulated: bool
    session_epoch: int
    must_change: bool


def create_account(store: Store, name: str, role: str) -> str:
    """Add a person and return a one-time password, to be replaced at the first sign-in."""
    password = _one_time_password(store)
    _add(store, name, role, pw_hash=_HASHER.hash(password), simulated=False)
    return password


def create_simulated(store: Store, name: str, role: Role) -> None:
    """Add an account that nobody can sign in to; if it is there already, do nothing."""
    with store.read() as session:
        found = session.scalars(select(User).where(User.name == name)).one_or_none()
    if found is None:
        _add(store, name, role, pw_hash=None, simulated=True)
    elif not found.simulated:
        raise UserError(f"account {name!r} is a person's; give the simulated one another name")


def act_as(store: Store, name: str) -> Account:
    """The simulated account `name`, for imports. A person's account is refused."""
    with store.read() as session:
        user = session.scalars(select(User).where(User.name == name)).one_or_none()
        if user is None or not user.simulated:
            raise DeniedError(f"{name!r} is not a simulated account")
        return _account(user)


def reset_password(store: Store, name: str) -> str:
    """A new one-time password; every session of the account ends."""
    password = _one_time_password(store)
    pw_hash = _HASHER.hash(password)
    with store.write() as session:
        user = _person(session, name)
        user.pw_hash, user.must_change = pw_hash, True
        user.session_epoch += 1
        session.execute(delete(SignInAttempt).where(SignInAttempt.name == name))
        record_event(session, store.clock(), name, "password-reset", f"user:{name}")
    return password


def close_account(store: Store, name: str) -> None:
    """End the account and all its sessions now; its labels stay."""
    with store.write() as session:
        user = _person(session, name)
        user.active = False
        user.session_epoch += 1
        record_event(session, store.clock(), name, "account-closed", f"user:{name}")


def sign_in(store: Store, name: str, password: str) -> Account:
    """Raises DeniedError: wrong name or password (not said which), or too many attempts."""
    name = name.strip().lower()
    if not _NAME.fullmatch(name):
        raise DeniedError("name or password is wrong")
    _count_attempt(store, name)
    with store.read() as session:
        user = session.scalars(select(User).where(User.name == name)).one_or_none()
        pw_hash = user.pw_hash if user and user.active and user.pw_hash else None
    if not _verify(pw_hash or _NOBODY, password) or pw_hash is None:
        raise DeniedError("name or password is wrong")
    with store.write() as session:
        user = session.scalars(select(User).where(User.name == name)).one()
        if not user.active or user.pw_hash != pw_hash:  # closed or reset while we verified
            raise DeniedError("name or password is wrong")
        session.execute(delete(SignInAttempt).where(SignInAttempt.name == name))
        record_event(session, store.clock(), name, "signed-in", f"user:{name}")
        return _account(user)


def set_password(store: Store, who: Account, password: str) -> Account:
    """Replace the caller's password; their other sessions end."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise UserError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")
    with store.read() as session:
        old_hash = _load(session, who).pw_hash
    if old_hash is None:
        raise DeniedError(f"{who.name!r} is a simulated account; it has no password")
    if _verify(old_hash, password):
        raise UserError("that is the password you have; choose another")
    pw_hash = _HASHER.hash(password.encode("utf-8", "surrogatepass"))
    with store.write() as session:
        user = _load(session, who)
        user.pw_hash, user.must_change = pw_hash, False
        user.session_epoch += 1
        record_event(session, store.clock(), user.name, "password-set", f"user:{user.name}")
        return _account(user)


def current(store: Store, who: Account) -> Account:
    """The account as it is now. Raises DeniedError once it is closed or its sessions ended."""
    with store.read() as session:
        return _account(_load(session, who))


def require(session: Session, who: Account, *roles: Role) -> User:
    """The caller's row, if the account is open and of one of `roles`. Raises DeniedError."""
    user = _load(session, who)
    if user.must_change:
        raise DeniedError("replace the one-time password first")
    if user.role not in roles:
        raise DeniedError(f"{user.name!r} is a {user.role}; this is for: {', '.join(roles)}")
    return user


def _load(session: Session, who: Account) -> User:
    user = session.get(User, who.user_id)
    if user is None or not user.active or user.session_epoch != who.session_epoch:
        raise DeniedError("your session has ended; sign in again")
    return user


def _account(user: User) -> Account:
    return Account(
        user_id=user.id,
        name=user.name,
        role=cast(Role, user.role),
        simulated=user.simulated,
        session_epoch=user.session_epoch,
        must_change=user.must_change,
    )


def _add(store: Store, name: str, role: str, pw_hash: str | None, simulated: bool) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(f"account name {name!r}: use 1 to 40 of a-z, 0-9, dot, dash and underscore")
    if role not in ROLES:
        raise UserError(f"role {role!r} is unknown; known are {', '.join(ROLES)}")
    now = store.clock()
    user = User(
        name=name,
        role=role,
        simulated=simulated,
        pw_hash=pw_hash,
        must_change=not simulated,
        active=True,
        session_epoch=1,
        created_at=now,
    )
    try:
        with store.write() as session:
            session.add(user)
            session.flush()
            record_event(session, now, name, "account-created", f"user:{name}", role=role)
    except IntegrityError:
        raise UserError(f"account {name!r} exists; choose another name") from None


def _person(session: Session, name: str) -> User:
    user = session.scalars(select(User).where(User.name == name)).one_or_none()
    if user is None or user.simulated:
        raise UserError(f"no person's account {name!r}")
    return user


def _count_attempt(store: Store, name: str) -> None:
    """Counted before the password is looked at: attempts at the same moment all count."""
    now = store.clock()
    with store.write() as session:
        session.execute(delete(SignInAttempt).where(SignInAttempt.at <= now - ATTEMPT_WINDOW))
        mine = SignInAttempt.name == name
        count, oldest = session.execute(
            select(func.count(), func.min(SignInAttempt.at)).where(mine)
        ).one()
        if count < MAX_ATTEMPTS:
            session.add(SignInAttempt(name=name, at=now))
            return
    free_at = oldest + ATTEMPT_WINDOW
    raise DeniedError(f"too many attempts; try again after {free_at:%H:%M} UTC")


def _verify(pw_hash: str, password: str) -> bool:
    if len(password) > MAX_PASSWORD:
        return False
    try:
        return _HASHER.verify(pw_hash, password.encode("utf-8", "surrogatepass"))
    except (VerifyMismatchError, InvalidHashError):
        return False


def _one_time_password(store: Store) -> str:
    return base64.b32encode(store.random_bytes(10)).decode().lower()
