"""Models in the tests' own process, and people who get their help."""

import json

import httpx
from sqlalchemy import select

from labeling_app import guidelines, invitations
from labeling_app.app_settings import Assistant
from labeling_app.auth import Account
from labeling_app.chat import ChatClient
from labeling_app.store import Store

DRAFTER = Assistant(endpoint="http://m.test", model="tiny", abilities=("draft",))
CRITIC = Assistant(endpoint="http://m.test", model="critic", abilities=("critique", "rank-check"))


def events(*pieces: str, end: bool = True) -> str:
    lines = [json.dumps({"choices": [{"delta": {"content": piece}}]}) for piece in pieces]
    return "".join(f"data: {line}\n\n" for line in [*lines, *(["[DONE]"] if end else [])])


class Model:
    """Says `reply`, or does what it is given, and keeps what it was asked."""

    def __init__(self, reply: str | bytes | Exception = "", status: int = 200) -> None:
        self.reply, self.status = reply, status
        self.asked: list[dict] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(json.loads(request.content))
        if isinstance(self.reply, Exception):
            raise self.reply
        return httpx.Response(self.status, content=self.reply)

    def client(self, assistant: Assistant) -> ChatClient:
        return ChatClient(assistant.endpoint, transport=httpx.MockTransport(self))

    def prompts(self) -> list[tuple[str, str]]:
        """(the system's words, the user's) of each request."""
        for body in self.asked:
            assert [turn["role"] for turn in body["messages"]] == ["system", "user"]
        return [tuple(turn["content"] for turn in body["messages"]) for body in self.asked]


def human(store: Store, lead: Account, name: str = "kaya") -> Account:
    """A labeler who is not simulated, for those get no help; has read the instructions."""
    token = invitations.invite(store, lead, "labeler")
    who = invitations.accept_as(store, token, "https://issuer.test", name, name)
    guidelines.acknowledge(store, who, guidelines.newest(store, who).n)
    return who


def rows(store, model) -> list:
    with store.read() as session:
        found = session.scalars(select(model).order_by(model.id)).all()
        session.expunge_all()
        return list(found)
