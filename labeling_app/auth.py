"""Accounts of people: local passwords (argon2id), roles, and closing an account at once.

Every service call loads the caller's row anew and checks that it is open, that the session is
its newest kind, and that its role in the project may do this: what the browser holds is never
trusted.
"""

import base64
import dataclasses
import datetime as dt
import hmac
import re
from typing import Literal, cast, get_args

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from labeling_app.schema import ApiToken, Invitation, Membership, Project, SignInAttempt, User
from labeling_app.store import KEPT, PSEUDONYM_KEY, Store, check_name, record_event
from pipeline.core.errors import UserError

Role = Literal["labeler", "reviewer", "lead", "engineer"]
ROLES: tuple[Role, ...] = get_args(Role)
WORKERS: tuple[Role, ...] = ("labeler", "reviewer", "lead")
REVIEWERS: tuple[Role, ...] = ("reviewer", "lead")
MAX_ATTEMPTS = 5
MAX_ATTEMPTS_OF_ADDRESS = 60
ATTEMPT_WINDOW = dt.timedelta(minutes=15)
MIN_PASSWORD, MAX_PASSWORD = 10, 200
LOCAL = ""  # the issuer of accounts with passwords

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
_PSEUDONYM = re.compile(r"(person|simulated)-[0-9a-f]{16}")
_RESERVED = re.compile(r"command|(sim|vendor)-.*")
_HASHER = PasswordHasher()  # argon2id with the library's (RFC 9106's low-memory) costs
# Verified for an unknown name, so that it takes as long as a known one.
_NOBODY = _HASHER.hash("nobody")


class DeniedError(UserError):
    """The caller may not do this: signed out, closed, of another role, or too many attempts."""


@dataclasses.dataclass(frozen=True)
class Account:
    """Who calls, and in which project. Only the ids and the epoch are believed, and checked."""

    user_id: int
    name: str
    project_id: int
    role: Role
    simulated: bool
    session_epoch: int
    must_change: bool


@dataclasses.dataclass(frozen=True)
class Caller:
    """Who calls, as the store has them in this transaction."""

    id: int
    name: str
    pseudonym: str
    project_id: int
    role: Role
    skills: tuple[str, ...]
    simulated: bool


def create_account(store: Store, name: str, role: str, project: str = "default") -> str:
    """Add a person and return a one-time password, to be replaced at the first sign-in."""
    password = one_time_password(store)
    add_user(store, name, role, pw_hash=_HASHER.hash(password), project=project)
    return password


def create_simulated(store: Store, name: str, role: Role, project: str = "default") -> None:
    """Add an account that nobody can sign in to; if it is there already, do nothing."""
    with store.read() as session:
        found = session.scalars(select(User).where(User.name == name)).one_or_none()
        member = found and session.get(Membership, (found.id, project_id(session, project)))
    if found is not None and not found.simulated:
        raise UserError(f"account {name!r} is a person's; give the simulated one another name")
    if found is None:
        add_user(store, name, role, pw_hash=None, simulated=True, project=project)
    elif member is None:
        with store.write() as session:
            add_membership(session, found.id, project_id(session, project), role, ())


def act_as(store: Store, name: str, project: str = "default") -> Account:
    """The simulated account `name`, for imports. A person's account is refused."""
    with store.read() as session:
        user = session.scalars(select(User).where(User.name == name)).one_or_none()
        if user is None or not user.simulated:
            raise DeniedError(f"{name!r} is not a simulated account")
        return account(session, user, project_id(session, project))


def command_line(store: Store, project: str = "default") -> Account:
    """Who acts where a person with the machine's own rights gives a command: a lead that nobody
    can sign in to."""
    create_simulated(store, "command", "lead", project)
    return act_as(store, "command", project)


def reset_password(store: Store, name: str) -> str:
    """A new one-time password; every session of the account ends."""
    password = one_time_password(store)
    pw_hash = _HASHER.hash(password)
    with store.write() as session:
        user = person(session, name)
        if user.issuer != LOCAL:
            raise UserError(f"{name!r} signs in at {user.issuer}; their password is there")
        user.pw_hash, user.must_change = pw_hash, True
        user.session_epoch += 1
        session.execute(delete(SignInAttempt).where(SignInAttempt.name == name))
        record_event(session, store.clock(), user.pseudonym, "password-reset", target(user))
    return password


def close_account(store: Store, name: str) -> None:
    """End the account and all its sessions now; its labels stay."""
    with store.write() as session:
        user = person(session, name)
        user.active = False
        user.session_epoch += 1
        record_event(session, store.clock(), user.pseudonym, "account-closed", target(user))


def erase_account(store: Store, name: str) -> str:
    """Close the account and forget who it was: name, sign-in and password are gone, its labels
    stay under the pseudonym that they always had, which is returned."""
    with store.write() as session:
        user = person(session, name)
        session.execute(delete(SignInAttempt).where(SignInAttempt.name == user.name))
        user.name = user.subject = user.pseudonym
        user.issuer, user.pw_hash, user.active = LOCAL, None, False
        user.erased_at = store.clock()
        # What others wrote down to tell who it was.
        session.execute(update(Invitation).where(Invitation.used_by == user.id).values(note=""))
        session.execute(update(ApiToken).where(ApiToken.user_id == user.id).values(name="erased"))
        user.session_epoch += 1
        record_event(session, store.clock(), user.pseudonym, "erased", target(user))
        return user.pseudonym


def sign_in(store: Store, name: str, password: str, address: str = "") -> Account:
    """Raises DeniedError: wrong name or password (not said which), or too many attempts for this
    name or from this network address."""
    name = name.strip().lower()
    if address:
        count_attempt(store, f"address:{address}"[:64], MAX_ATTEMPTS_OF_ADDRESS)
    if not _NAME.fullmatch(name):
        raise DeniedError("name or password is wrong")
    count_attempt(store, name, MAX_ATTEMPTS)
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
        record_event(session, store.clock(), user.pseudonym, "signed-in", target(user))
        return account(session, user, first_project(session, user.id))


def set_password(store: Store, who: Account, password: str) -> Account:
    """Replace the caller's password; their other sessions end."""
    check_password(password)
    with store.read() as session:
        old_hash = _load(session, who).pw_hash
    if old_hash is None:
        raise DeniedError(f"{who.name!r} has no password here")
    if _verify(old_hash, password):
        raise UserError("that is the password you have; choose another")
    pw_hash = hash_password(password)
    with store.write() as session:
        user = _load(session, who)
        user.pw_hash, user.must_change = pw_hash, False
        user.session_epoch += 1
        record_event(session, store.clock(), user.pseudonym, "password-set", target(user))
        return account(session, user, who.project_id)


def check_password(password: str) -> None:
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise UserError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")


def hash_password(password: str) -> str:
    return _HASHER.hash(password.encode("utf-8", "surrogatepass"))


def current(store: Store, who: Account) -> Account:
    """The account as it is now. Raises DeniedError once it is closed or its sessions ended."""
    with store.read() as session:
        return account(session, _load(session, who), who.project_id)


def require(session: Session, who: Account, *roles: Role) -> Caller:
    """The caller, if the account is open and of one of `roles` in its project. Raises
    DeniedError."""
    kept: dict[Account, Caller] | None = session.info.get(KEPT)
    found = kept.get(who) if kept else None
    if found is None:
        found = _caller(session, who)
        if kept is not None:
            kept[who] = found
    if found.role not in roles:
        raise DeniedError(f"{found.name!r} is a {found.role}; this is for: {', '.join(roles)}")
    return found


def _caller(session: Session, who: Account) -> Caller:
    user = session.execute(
        select(
            User.name,
            User.pseudonym,
            User.simulated,
            User.active,
            User.session_epoch,
            User.must_change,
            Membership.role,
            Membership.skills,
        )
        .outerjoin(
            Membership,
            (Membership.user_id == User.id)
            & (Membership.project_id == who.project_id)
            & Membership.active,
        )
        .where(User.id == who.user_id)
    ).one_or_none()
    if user is None or not user.active or user.session_epoch != who.session_epoch:
        raise _ended()
    if user.must_change:
        raise DeniedError("replace the one-time password first")
    if user.role is None:
        raise DeniedError(f"{user.name!r} is not in this project")
    return Caller(
        who.user_id,
        user.name,
        user.pseudonym,
        who.project_id,
        user.role,
        tuple(user.skills),
        user.simulated,
    )


def account(session: Session, user: User, project: int) -> Account:
    """Raises DeniedError if the user is not in the project."""
    member = session.get(Membership, (user.id, project))
    if member is None or not member.active:
        raise DeniedError("you are not in this project; ask its lead for an invitation")
    return Account(
        user_id=user.id,
        name=user.name,
        project_id=project,
        role=cast(Role, member.role),
        simulated=user.simulated,
        session_epoch=user.session_epoch,
        must_change=user.must_change,
    )


def first_project(session: Session, user_id: int) -> int:
    """The oldest project that the person is in. Raises DeniedError if there is none."""
    found = session.scalars(
        select(Membership.project_id)
        .where(Membership.user_id == user_id, Membership.active)
        .order_by(Membership.project_id)
        .limit(1)
    ).one_or_none()
    if found is None:
        raise DeniedError("you are in no project; ask a lead for an invitation")
    return found


def project_id(session: Session, name: str) -> int:
    found = session.scalars(select(Project.id).where(Project.name == name)).one_or_none()
    if found is None:
        raise UserError(f"no project {name!r}; `flywheel labels project` makes one")
    return found


def target(user: User) -> str:
    return f"user:{user.pseudonym}"


def add_user(
    store: Store,
    name: str,
    role: str,
    *,
    pw_hash: str | None,
    simulated: bool = False,
    project: str = "default",
) -> None:
    """A local account that has to change its password, or one that has none."""
    check_role(role)
    key = store.key(PSEUDONYM_KEY)
    try:
        with store.write() as session:
            row = new_user(
                session, store, key, name, pw_hash, simulated=simulated, must_change=not simulated
            )
            add_membership(session, row.id, project_id(session, project), role, ())
            record_event(
                session, store.clock(), row.pseudonym, "account-created", target(row), role=role
            )
    except IntegrityError:
        raise UserError(f"account {name!r} exists; choose another name") from None


def new_user(
    session: Session,
    store: Store,
    key: bytes,
    name: str,
    pw_hash: str | None,
    *,
    issuer: str = LOCAL,
    subject: str | None = None,
    simulated: bool = False,
    must_change: bool = False,
) -> User:
    """Within a transaction. Raises UserError for a name that is no account's."""
    if not _NAME.fullmatch(name):
        raise UserError(f"account name {name!r}: use 1 to 40 of a-z, 0-9, dot, dash and underscore")
    if _PSEUDONYM.fullmatch(name):
        raise UserError(f"account name {name!r} looks like a pseudonym of an export; take another")
    if not simulated and is_reserved(name):
        raise UserError(
            f"account name {name!r}: command, sim-… and vendor-… are the program's; take another"
        )
    row = User(
        issuer=issuer,
        subject=subject or name,
        name=name,
        pseudonym=_free_pseudonym(session, key, name, simulated),
        simulated=simulated,
        pw_hash=pw_hash,
        must_change=must_change,
        active=True,
        session_epoch=1,
        created_at=store.clock(),
    )
    session.add(row)
    session.flush()
    return row


def is_reserved(name: str) -> bool:
    """Whether the program's own accounts are called so; a person's would stand in their way."""
    return bool(_RESERVED.fullmatch(name) or _PSEUDONYM.fullmatch(name))


def add_membership(
    session: Session, user_id: int, project: int, role: str, skills: tuple[str, ...]
) -> None:
    """Within a transaction; a former member is one again."""
    row = session.get(Membership, (user_id, project))
    if row is None:
        row = Membership(user_id=user_id, project_id=project)
        session.add(row)
    row.role, row.skills, row.active = role, list(skills), True
    session.flush()


def pseudonym(key: bytes, name: str, simulated: bool) -> str:
    """The same for one person in all exports of a store; only the store's key leads back."""
    digest = hmac.new(key, name.encode(), "sha256").hexdigest()[:16]
    return f"{'simulated' if simulated else 'person'}-{digest}"


def _free_pseudonym(session: Session, key: bytes, name: str, simulated: bool) -> str:
    """A name that an erased person had is free again; what their labels are called is not."""
    found = pseudonym(key, name, simulated)
    number = 1
    while session.scalars(select(User.id).where(User.pseudonym == found)).one_or_none():
        if session.scalars(select(User.id).where(User.name == name)).one_or_none():
            break  # the name itself is taken: the caller is told that
        number += 1
        found = pseudonym(key, f"{name}\0{number}", simulated)
    return found


def checked_skills(skills: tuple[str, ...]) -> tuple[str, ...]:
    """Sorted and without doubles. Raises UserError for one that cannot be stored."""
    named = {check_name(skill.strip(), "a skill") for skill in skills}
    if long := [skill for skill in named if len(skill) > 64]:
        raise UserError(f"skill {long[0]!r} has {len(long[0])} characters; at most 64 are taken")
    return tuple(sorted(named))


def check_role(role: str) -> None:
    if role not in ROLES:
        raise UserError(f"role {role!r} is unknown; known are {', '.join(ROLES)}")


def person(session: Session, name: str) -> User:
    user = session.scalars(select(User).where(User.name == name)).one_or_none()
    if user is None or user.simulated:
        raise UserError(f"no person's account {name!r}")
    return user


def _load(session: Session, who: Account) -> User:
    user = session.get(User, who.user_id)
    if user is None or not user.active or user.session_epoch != who.session_epoch:
        raise _ended()
    return user


def _ended() -> DeniedError:
    return DeniedError("your session has ended; sign in again")


def count_attempt(store: Store, name: str, limit: int) -> None:
    """Counted before the password is looked at: attempts at the same moment all count. Raises
    DeniedError when `limit` were made within the window."""
    now = store.clock()
    with store.write() as session:
        store.lock(session, f"sign-in {name}")
        session.execute(delete(SignInAttempt).where(SignInAttempt.at <= now - ATTEMPT_WINDOW))
        mine = SignInAttempt.name == name
        count, oldest = session.execute(
            select(func.count(), func.min(SignInAttempt.at)).where(mine)
        ).one()
        if count < limit:
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


def one_time_password(store: Store) -> str:
    return base64.b32encode(store.random_bytes(10)).decode().lower()
