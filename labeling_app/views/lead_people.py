"""For the lead: who is here, in which role and with which skills; invitations."""

import urllib.parse

import streamlit as st

from labeling_app import invitations, projects, qualification
from labeling_app.auth import ROLES, Account
from labeling_app.store import Store
from labeling_app.views import look
from pipeline.core.errors import UserError


def page(store: Store, who: Account) -> None:
    with st.container(key="column"):
        _invite(store, who)
        _pending(store, who)
        st.subheader("People", anchor=False)
        for member in projects.members(store, who):
            _member(store, who, member)


def _invite(store: Store, who: Account) -> None:
    st.subheader("Invite somebody", anchor=False)
    with st.form("invite"):
        role = st.selectbox("Role", ROLES, key="invite-role")
        skills = st.text_input("Skills, with commas", key="invite-skills", max_chars=300)
        note = st.text_input("For whom (only leads see it)", key="invite-note", max_chars=200)
        if not st.form_submit_button("Make a link", type="primary"):
            return
    try:
        token = invitations.invite(store, who, role, _skills(skills), note)
    except UserError as error:
        st.error(f"{error}.")
        return
    st.write("Good once, for seven days. It is shown only now:")
    here = urllib.parse.urlsplit(st.context.url or "")
    origin = f"{here.scheme}://{here.netloc}" if here.netloc else ""
    st.code(f"{origin}/invitation?token={token}", language=None)


def _pending(store: Store, who: Account) -> None:
    for each in invitations.pending(store, who):
        with st.container(horizontal=True, vertical_alignment="center"):
            whom = each.note or "nobody named"
            look.line(f"Invited: {whom} · {each.role} · good until {each.expires:%d %b %Y}")
            if st.button("Take back", key=f"revoke-{each.id}"):
                invitations.revoke(store, who, each.id)
                st.rerun()


def _member(store: Store, who: Account, member: projects.Member) -> None:
    with st.container(border=True, key=f"member-{member.user_id}"):
        program = "a vendor" if member.name.startswith("vendor-") else "simulated"
        kind = f" · {program}" if member.simulated else ""
        gone = "" if member.active else " · gone"
        look.line(f"{member.name} · {member.pseudonym}{kind}{gone}")
        if member.simulated or not member.active:
            return
        with st.container(horizontal=True, vertical_alignment="bottom"):
            role = st.selectbox(
                "Role", ROLES, index=ROLES.index(member.role), key=f"role-{member.user_id}"
            )
            skills = st.text_input(
                "Skills", ", ".join(member.skills), key=f"skills-{member.user_id}"
            )
            keep = st.button("Keep", key=f"keep-{member.user_id}")
            grant = member.role == "labeler" and st.button(
                "Another try", key=f"grant-{member.user_id}"
            )
            remove = st.button("Remove", key=f"remove-{member.user_id}")
        try:
            if keep:
                projects.assign(store, who, member.name, role, _skills(skills))
                st.toast(f"{member.name} is a {role} from their next step on.")
            elif grant:
                qualification.grant_try(store, who, member.name)
                st.toast(f"{member.name} may try the qualification once more.")
            elif remove:
                projects.remove_member(store, who, member.name)
                st.rerun()
        except UserError as error:
            st.error(f"{error}.")


def _skills(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
