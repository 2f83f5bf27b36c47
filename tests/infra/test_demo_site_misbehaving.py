"""The demo site's modules that hang, die or print cost their own page alone."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.demo_site import DemoSite, Renderer
from tests.infra.demo_client import Answer, ask, ended

MISBEHAVING = {
    "hangs": "import time\ntime.sleep(60)",
    "raises": "raise ValueError('no')",
    "leaves": "raise SystemExit(0)",
    "dies": "import os\nos._exit(3)",
    "crashes": "import os\nos.abort()",
    "loud": "'''Loud.'''\nimport os, sys\nprint('{}')\nos.write(1, b'{}\\n')\n"
    "READ = sys.stdin.read() + str(os.read(0, 9))",
    "counts": "'''Counts.'''\nopen(__file__ + '.log', 'a').write('x')",
}


@pytest.fixture(scope="module")
def misbehaving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoSite]:
    folder = tmp_path_factory.mktemp("modules")
    for name, source in MISBEHAVING.items():
        (folder / f"{name}.py").write_text(source)
    names = (*MISBEHAVING, "re")
    with DemoSite(modules=names, search_path=[str(folder)]) as started:
        yield started


def test_a_page_over_the_time_limit_is_503_and_the_next_one_is_there(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    names = ("hangs", "re", "string")
    with DemoSite(modules=names, render_timeout_s=2.5, search_path=[str(tmp_path)]) as site:
        assert ask(site, "/re.html").status == 200
        child = site.renderer.pid
        began = time.monotonic()
        answer = ask(site, "/hangs.html")
        assert 2.5 <= time.monotonic() - began < 10
        assert (answer.status, answer.headers["ETag"]) == (503, None)
        assert "Service Unavailable" in answer.text
        hanging = int((tmp_path / "pid").read_text())
        assert ended(child)
        assert ended(hanging)
        assert ask(site, "/string.html").status == 200
        assert site.renderer.pid not in {child, None}
        last = site.renderer.pid
    assert ended(last)


@pytest.mark.parametrize(
    ("name", "status"),
    [("raises", 404), ("leaves", 404), ("dies", 500), ("crashes", 500)],
)
def test_a_misbehaving_module_costs_its_own_page_alone(
    misbehaving: DemoSite, name: str, status: int
) -> None:
    answer = ask(misbehaving, f"/{name}.html")
    assert answer.status == status
    assert answer.headers["ETag"] is None
    assert "<h1>" in answer.text
    assert ask(misbehaving, "/re.html").status == 200


def test_what_a_module_prints_or_reads_stays_in_the_child(
    misbehaving: DemoSite, capfd: pytest.CaptureFixture[str]
) -> None:
    page = ask(misbehaving, "/loud.html")
    assert page.status == 200
    assert "<pre>Loud.</pre>" in page.text
    assert "<strong>READ</strong> = \"b''\"" in page.text
    assert capfd.readouterr() == ("", "")


def test_a_page_is_rendered_once(misbehaving: DemoSite) -> None:
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(misbehaving, "/counts.html")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    path = re.search(r"<code>(.*counts\.py)</code>", answers[0].text)
    assert path
    assert Path(f"{path[1]}.log").read_text() == "x"


def test_stopping_ends_the_child_in_the_middle_of_a_page(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(MISBEHAVING["hangs"])
    renderer = Renderer(("hangs", "re"), timeout_s=30, search_path=[str(tmp_path)])
    renderer.render("re")
    child = renderer.pid
    statuses: list[int] = []
    waiting = threading.Thread(target=lambda: statuses.append(renderer.render("hangs").status))
    waiting.start()
    time.sleep(0.3)
    began = time.monotonic()
    renderer.close()
    waiting.join()
    assert time.monotonic() - began < 5
    assert statuses == [503]
    assert ended(child)
    assert renderer.render("hangs").status == 503
    assert renderer.pid is None
