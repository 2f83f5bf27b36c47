"""Who is at this browser, and what somebody sees who has not signed in."""

import hmac

import streamlit as st
from sqlalchemy.exc import IntegrityError

from labeling_app import invitations, running, sessions
from labeling_app.auth import Account, DeniedError
from labeling_app.sign_in_pages import INVITATION_COOKIE
from labeling_app.store import PAGE_KEY, Store
from labeling_app.views import look
from pipeline.core.errors import UserError


def signed_in(store: Store) -> Account | None:
    """The person of this browser, checked against the store on every run."""
    session_id = _session_id(store)
    if session_id is None:
        return None
    try:
        who = sessions.account_of(store, session_id, st.session_state.get("project"))
    except DeniedError as error:
        st.session_state.clear()
        st.session_state["ended"] = str(error)
        return None
    st.session_state["session"] = session_id
    return who


def page_token(store: Store, who: Account) -> str:
    """What this page's own requests show."""
    return sessions.page_token(store, int(st.session_state["session"]), who.project_id)


def _session_id(store: Store) -> int | None:
    """The gate's word, bound to this connection; or, with an OIDC issuer, a session made for whom
    it vouches for."""
    given = st.user.get("flywheel_session")
    if given:
        return int(str(given))
    held: int | None = st.session_state.get("session")
    if held is not None or running.settings().oidc is None or not st.user.get("is_logged_in"):
        return held
    # One session for one sign-in at the issuer, however many pages are opened.
    said = f"{st.user.get('iss')} {st.user.get('sub')} {st.user.get('iat')} {st.user.get('nonce')}"
    token = hmac.new(store.key(PAGE_KEY), said.encode(), "sha256").hexdigest()
    if (found := sessions.find_session(store, token)) is not None:
        return found
    who = _known_to_issuer(store)
    try:
        return sessions.start_session(store, who, token).id if who else None
    except IntegrityError:  # ended, or made by another page meanwhile
        return sessions.find_session(store, token)


def sign_out_of_oidc(store: Store) -> None:
    """End the session here, then at the issuer's cookie."""
    session_id: int | None = st.session_state.get("session")
    if session_id is not None:
        sessions.end_session(store, session_id)
    st.logout()


def _known_to_issuer(store: Store) -> Account | None:
    issuer, subject = str(st.user.get("iss") or ""), str(st.user.get("sub") or "")
    token = st.context.cookies.get(INVITATION_COOKIE, "")
    try:
        return invitations.sign_in_as(store, issuer, subject)
    except DeniedError as error:
        if not token:
            st.session_state["ended"] = str(error)
            return None
    name = str(st.user.get("preferred_username") or st.user.get("email") or "person")
    try:
        return invitations.accept_as(store, token, issuer, subject, name)
    except UserError as error:
        st.session_state["ended"] = str(error)
        return None


def signed_out_page(_store: Store) -> None:
    with st.container(key="narrow"):
        st.title("Flywheel", anchor=False)
        if ended := st.session_state.get("ended", ""):
            st.info(f"{ended[:1].upper()}{ended[1:]}.")
        if running.settings().oidc is None:
            look.link("/sign-in", "Sign in", "sign-in")
        elif st.user.get("is_logged_in"):
            st.button("Sign out", key="oidc-out", on_click=st.logout)
        else:
            st.button("Sign in", key="oidc-in", type="primary", on_click=st.login)


def password_page() -> None:
    with st.container(key="narrow"):
        st.title("Choose your password", anchor=False)
        st.write("The one-time password has done its work.")
        look.link("/password", "Choose a password", "choose-password")
