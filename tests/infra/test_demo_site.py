"""The demo site against known answers: docstrings, the HTTP standard, and modules that misbehave."""

import heapq
import html
import http.client
import inspect
import re
import signal
import subprocess
import sys
import textwrap
import urllib.robotparser
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.demo_pages import install_paths, scrubber, stdlib_modules
from infra.demo_site import DemoSite, Renderer, main
from pipeline.core.errors import UserError
from tests.infra.demo_client import ask, ended, links, plain

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("heapq", "json", "json.decoder", "json.encoder", "re", "textwrap")
# Their pages hold addresses, install paths, sets, the environment and bound methods.
TELLTALE = ("ctypes", "os", "random", "site", "sys", "sysconfig", "tokenize", "weakref")
# What a seed, an address or the place of a cut would make different from run to run.
TELLING = """import sys
KINDS = {type(f"C{i}", (), {"__module__": "telling"}) for i in range(9)}
NESTED = [frozenset({2, 1}), set()]
PLACE = "a " * 20 + sys.prefix + " b" * 60
class Thing:
    def __repr__(self):
        return "y" * 40 + f" at 0x{id(self):016x}" + "-" * 100
THING = Thing()
def seeded(letters=frozenset("abcdefgh")): pass
# A comment is no docstring.
def bare(): pass
"""
FORBIDDEN = ("antigravity", "idlelib", "lib2to3", "test", "this", "turtledemo")


@pytest.fixture(scope="module")
def site() -> Iterator[DemoSite]:
    with DemoSite(modules=SMALL) as started:
        yield started


# ---------------------------------------------------------------------------------- the pages


@pytest.mark.parametrize("module", [heapq, textwrap])
def test_a_page_holds_every_docstring_line_by_line(site: DemoSite, module: object) -> None:
    page = ask(site, f"/{module.__name__}.html")
    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert int(page.headers["Content-Length"]) == len(page.body)
    preformatted = [plain(block) for block in re.findall(r"(?s)<pre>(.*?)</pre>", page.text)]
    functions = [getattr(module, name) for name in module.__all__]
    assert len(functions) > 3
    for function in functions:
        doc = inspect.getdoc(function)
        assert any(block.endswith(doc) for block in preformatted), function
    assert not re.search(r"<table|<dl|<dt|<dd|<span|&nbsp;|file:", page.text)


def test_pages_are_well_formed(site: DemoSite) -> None:
    for path in ["/", *(f"/{name}.html" for name in SMALL)]:
        page = re.sub(r"<(meta[^>]*|hr|!DOCTYPE html)>", "", ask(site, path).text)
        assert ET.fromstring(page).find("body/main/h1") is not None, path


def test_the_index_groups_every_module_by_package(site: DemoSite) -> None:
    index = ask(site, "/")
    assert index.body == ask(site, "/index.html").body
    assert {f"/{name}.html" for name in SMALL} < links(index.text)
    package = index.text.partition("Package json</h2>")[2].partition("</section>")[0]
    assert links(package) == {"/json.html", "/json.decoder.html", "/json.encoder.html"}


def test_every_link_resolves_but_the_deliberate_one(site: DemoSite) -> None:
    seen: dict[str, int] = {}
    waiting = ["/"]
    while waiting:
        path = waiting.pop()
        page = ask(site, path)
        seen[path] = page.status
        targets = {link.partition("#")[0] or path for link in links(page.text)}
        assert all(target.startswith("/") for target in targets), path  # none leaves the site
        waiting += sorted(targets - seen.keys() - set(waiting))
    assert {path for path, status in seen.items() if status != 200} == {"/missing.html"}
    assert seen["/missing.html"] == 404
    assert seen.keys() >= {f"/{name}.html" for name in SMALL}


def test_a_link_to_a_page_elsewhere_becomes_text(site: DemoSite) -> None:
    page = ask(site, "/json.decoder.html").text
    assert "/json.decoder.html" not in ask(site, "/re.html").text
    assert '<a href="/json.html">json</a>' in page
    assert "builtins.ValueError" in page
    assert "/builtins.html" not in page


def test_two_children_render_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "telling.py").write_text(TELLING)
    names = (*TELLTALE, "telling")
    pages: list[dict[str, bytes]] = []
    for order in (names, names[::-1]):
        renderer = Renderer(names, search_path=[str(tmp_path)])
        responses = {name: renderer.render(name) for name in order}
        renderer.close()
        assert {response.status for response in responses.values()} == {200}
        pages.append({name: response.body for name, response in responses.items()})
    assert pages[0] == pages[1]


def test_values_are_sorted_and_scrubbed_before_they_are_cut(tmp_path: Path) -> None:
    (tmp_path / "telling.py").write_text(TELLING)
    renderer = Renderer(("telling",), search_path=[str(tmp_path)])
    page = plain(renderer.render("telling").body.decode())
    renderer.close()
    names = [f"&lt;class 'telling.C{i}'&gt;" for i in range(6)]
    assert f"KINDS = {{{html.unescape(', '.join(names))}, ...}}" in page
    assert "NESTED = [frozenset({1, 2}), set()]" in page
    assert re.search("PLACE = '(a )+/usr b", page)
    assert "bare()" in page
    assert "no docstring" not in page
    assert "THING = " + "y" * 40 + " at 0x…-" in page


def test_no_page_tells_where_it_was_made() -> None:
    renderer = Renderer(TELLTALE)
    text = "".join(renderer.render(name).body.decode() for name in TELLTALE)
    renderer.close()
    assert " at 0x…" in text
    assert f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/random.py" in text
    assert not re.search(r"(at 0x|handle )[0-9a-f]{6}", text)
    for path in {*install_paths(), str(ROOT), str(Path.cwd())} - set(install_paths().values()):
        assert not re.search(rf"(?<!\w){re.escape(path)}(?!\w)", text), path


def test_scrubbing_prefers_the_longest_path() -> None:
    scrub = scrubber({"/opt/py": "/usr", "/opt/py/lib": "/usr/lib/python3", "/root": "/home/user"})
    assert scrub("'/opt/py/lib/re.py' /opt/python x/root") == (
        "'/usr/lib/python3/re.py' /opt/python x/root"
    )
    assert scrub("<f at 0x7fa12bc3d4e0> in /root/a") == "<f at 0x…> in /home/user/a"


# ------------------------------------------------------------------------ which modules there are


def test_the_list_has_the_library_and_nothing_that_acts() -> None:
    before = set(sys.modules)
    modules = stdlib_modules()
    assert set(sys.modules) == before
    assert 250 <= len(modules) <= 400
    assert modules == tuple(sorted(set(modules)))
    assert set(modules) >= {*SMALL, "builtins", "__future__", "xml.etree.ElementTree", "asyncio"}
    parts = {part for name in modules for part in name.split(".")}
    assert not parts & {*FORBIDDEN, "__main__", "autotest", "tests", "_bundled"}
    assert {part for part in parts if part.startswith("_")} <= {"__future__", "_thread"}


def test_a_forbidden_module_is_never_imported(tmp_path: Path) -> None:
    # A module of the same name stands before the real one: it would tell of its import.
    for name in (*FORBIDDEN, "allowed"):
        source = (
            f"import pathlib\npathlib.Path({str(tmp_path / 'imported')!r}).write_text({name!r})"
        )
        (tmp_path / f"{name}.py").write_text(source)
    with DemoSite(modules=("allowed", "re"), search_path=[str(tmp_path)]) as site:
        for name in (*FORBIDDEN, "__main__", "re.__main__", "tkinter", ""):
            assert ask(site, f"/{name}.html").status == 404
        assert not (tmp_path / "imported").exists()
        assert ask(site, "/allowed.html").status == 200
    assert (tmp_path / "imported").read_text() == "allowed"


def test_a_module_that_may_not_be_shown_is_refused() -> None:
    with pytest.raises(UserError, match="antigravity, nosuch"):
        DemoSite(modules=("re", "nosuch", "antigravity"))


# ------------------------------------------------------------------------------------- the server


def test_robots_forbids_what_is_there_to_be_found(site: DemoSite) -> None:
    robots = urllib.robotparser.RobotFileParser()
    answer = ask(site, "/robots.txt")
    assert answer.headers["Content-Type"].startswith("text/plain")
    robots.parse(answer.text.splitlines())
    private = {link for link in links(ask(site, "/").text) if link.startswith("/private/")}
    assert len(private) == 2
    for path in private:
        assert not robots.can_fetch("any", site.url + path[1:])
        assert ask(site, path).status == 200
    assert robots.can_fetch("any", f"{site.url}json.html")
    assert robots.site_maps() == [f"{site.url}sitemap.xml"]
    assert robots.crawl_delay("any") is None


def test_every_page_of_the_sitemap_is_there(site: DemoSite) -> None:
    answer = ask(site, "/sitemap.xml")
    assert answer.headers["Content-Type"].startswith("application/xml")
    places = [element.text or "" for element in ET.fromstring(answer.body).iterfind(".//{*}loc")]
    assert places == [site.url, *(f"{site.url}{name}.html" for name in SMALL)]
    for place in places:
        assert ask(site, "/" + place.removeprefix(site.url)).status == 200


@pytest.mark.parametrize("path", ["/nothing.html", "/json", "/json.html/", "/private/", "/../re"])
def test_unknown_paths_are_404(site: DemoSite, path: str) -> None:
    answer = ask(site, path)
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Not Found" in answer.text
    assert answer.headers["ETag"] is None


def test_a_query_leads_to_the_same_page(site: DemoSite) -> None:
    assert ask(site, "/re.html?x=1").body == ask(site, "/re.html").body
    assert ask(site, "/%72e.html").status == 200


def test_an_etag_that_matches_is_a_304(site: DemoSite) -> None:
    page = ask(site, "/re.html")
    tag = page.headers["ETag"]
    assert re.fullmatch('"[0-9a-f]{32}"', tag)
    for asked in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = ask(site, "/re.html", If_None_Match=asked)
        assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", tag)
    assert ask(site, "/re.html", If_None_Match='"other"').body == page.body
    assert ask(site, "/json.html").headers["ETag"] != tag


def test_head_is_get_without_the_body(site: DemoSite) -> None:
    for path in ("/re.html", "/nothing.html"):
        head, page = ask(site, path, "HEAD"), ask(site, path)
        assert (head.status, head.body) == (page.status, b"")
        for name in ("Content-Length", "Content-Type", "ETag"):
            assert head.headers[name] == page.headers[name]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_405(site: DemoSite, method: str) -> None:
    answer = ask(site, "/re.html", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_a_connection_is_kept(site: DemoSite) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
    connection.connect()
    first = connection.sock
    # A body after HEAD, or a wrong length, would be read as the next answer.
    for method, path in (("HEAD", "/re.html"), ("GET", "/nothing.html"), ("GET", "/re.html")):
        connection.request(method, path)
        response = connection.getresponse()
        response.read()
        assert (response.status, response.version) == (404 if "nothing" in path else 200, 11)
        assert connection.sock is first
    connection.close()


def test_a_port_in_use_is_one_line_that_names_the_mend(
    site: DemoSite, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=str(site.port)):
        DemoSite(port=site.port, modules=("re",)).start()
    assert main(["--port", str(site.port)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(site.port) in error
    assert "site.port=NUMBER" in error


# ------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize("closed", ["<&-", "<&- 2>&-"])
def test_the_command_runs_without_stdin_and_ctrl_c_ends_all(closed: str) -> None:
    command = f"exec {sys.executable} -m infra.demo_site --port 0 {closed}"
    with subprocess.Popen(
        ["/bin/sh", "-c", command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        # Where the tests run in the background the shell has SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as server:
        try:
            assert server.stdout
            said = server.stdout.readline()
            found = re.search(r"(\d+) pages at http://127\.0\.0\.1:(\d+)/", said)
            assert found, said
            assert int(found[1]) == len(stdlib_modules())
            remote = DemoSite(port=int(found[2]), modules=())
            assert ask(remote, "/heapq.html").status == 200
            (child,) = psutil.Process(server.pid).children()
            server.send_signal(signal.SIGINT)
            assert server.wait(10) == 130
            assert ended(child.pid)
        finally:
            server.kill()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "python -m infra.demo_site --port 8700" in said
    assert "Ctrl-C" in said


def test_a_port_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--port", "70000"])
    assert left.value.code == 2
    assert "'70000' is not a port" in capsys.readouterr().err
