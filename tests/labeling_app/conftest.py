"""A store per test, a clock that tests turn, people with roles, and tasks to hand out."""

import datetime as dt
import secrets
import sys
from collections.abc import Callable, Iterator

import pytest

from labeling_app import auth, guidelines
from labeling_app.auth import Account
from labeling_app.store import Store
from labeling_app.tasks import NewAnswer, NewTask, add_tasks
from pipeline.core.records import Message
from tests.labeling_app.stores import EmptyStores

PASSWORD = "correct horse battery"
# On PostgreSQL with the long tests: what lies above the services, and what asks of its database
# only that rows are written and read. Keys, races, locks, kills and migrations are tried on both.
EMBEDDED_WILL_DO = (
    "test_api",
    "test_auth",
    "test_exposure",
    "test_first_days_pages",
    "test_format_runs",
    "test_formats",
    "test_import_doors",
    "test_invitations",
    "test_message_trees",
    "test_qualification",
    "test_reviews",
    "test_sessions",
    "test_vendor_kills",
    "test_verdicts",
    "test_browser_kills",
    "test_browser_lead",
    "test_browser",
    "test_gate",
    "test_oidc",
    "test_page_api",
    "test_sign_in_pages",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in EMBEDDED_WILL_DO and "[postgresql" in item.name:
            item.add_marker(pytest.mark.long)
            if not item.path.stem.startswith("test_browser"):
                item.add_marker(pytest.mark.repeat)


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = dt.datetime(2026, 3, 2, 10, 0, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += dt.timedelta(**by)


def known_key(size: int) -> bytes:
    """The same pseudonym key in every test store, so that exports can be compared; all else is
    random."""
    return b"k" * 32 if size == 32 else secrets.token_bytes(size)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def empty_stores(tmp_path_factory) -> Iterator[EmptyStores]:
    found = EmptyStores(tmp_path_factory.mktemp)
    yield found
    found.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request) -> str:
    """Every test that has a store runs on both databases."""
    return request.param


@pytest.fixture
def new_store(
    empty_stores: EmptyStores, backend: str, clock: Clock
) -> Iterator[Callable[[], Store]]:
    """new_store(): a store of its own, with the default instructions."""
    opened: list[Store] = []

    def make() -> Store:
        store = empty_stores.open(backend, clock, known_key)
        guidelines.publish_default(store)
        opened.append(store)
        return store

    yield make
    for store in opened:
        empty_stores.give_back(store)


@pytest.fixture
def store(new_store) -> Store:
    return new_store()


@pytest.fixture
def person(store: Store) -> Callable[..., Account]:
    """person(name, role): somebody whom the services take for that; read the instructions."""

    def make(name: str, role: str = "labeler", ready: bool = True) -> Account:
        # Simulated accounts skip argon2 (50 ms each); test_auth.py signs real people in.
        auth.create_simulated(store, name, role)  # type: ignore[arg-type]
        who = auth.act_as(store, name)
        if ready and role != "engineer":
            guidelines.acknowledge(store, who, guidelines.newest(store, who).n)
        return who

    return make


@pytest.fixture
def lead(person) -> Account:
    return person("lead", "lead")


@pytest.fixture
def tasks(store: Store, lead: Account) -> Callable[..., None]:
    """tasks(count, kind, overlap, priority): tasks t0, t1 … of two or `k` answers."""

    def make(
        count: int,
        kind="demo",
        overlap: int = 1,
        priority: int = 0,
        k: int = 4,
        key: str = "t",
        **more,
    ) -> None:
        add_tasks(
            store,
            lead,
            [
                NewTask(
                    f"{key}{number}",
                    kind,
                    (Message.of("user", f"Question {key} {number}?"),),
                    "test",
                    tuple(NewAnswer(f"m{i}", f"Answer {i}.") for i in range(k))
                    if kind == "compare"
                    else (),
                    overlap,
                    priority,
                    **more,
                )
                for number in range(count)
            ],
        )

    return make


@pytest.fixture(autouse=True)
def _keep_main():
    """Streamlit's AppTest puts the app's script in the place of `__main__`; a pool spawned by a
    later test would run it in every worker."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main
