"""The demo site's pages: pydoc's, made the same on every machine and easy to extract text from.

`stdlib_modules` says which there are; `work` is the child process that renders them, since
importing a module may hang, print or crash.
"""

import fcntl
import importlib
import importlib.machinery
import inspect
import json
import os
import pkgutil
import pydoc
import re
import signal
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

# ------------------------------------------------------------------------- which pages there are

# Importing one of these opens a browser, prints, starts a program or runs tests.
_FORBIDDEN = frozenset({"__main__", "_bundled", "antigravity", "this", "test", "tests", "autotest"})
_FORBIDDEN_PACKAGES = frozenset({"idlelib", "lib2to3", "turtledemo"})
_PUBLIC_UNDERSCORE = frozenset({"__future__", "_thread"})
# A hundred codecs with one and the same text, and a package that warns and that 3.12 drops.
_PACKAGE_PAGE_ONLY = frozenset({"encodings", "distutils"})
# Modules that fail to import where Python was built without the extension they stand on.
_NEEDS = {
    "asyncio.windows_events": "_overlapped",
    "asyncio.windows_utils": "_winapi",
    "bz2": "_bz2",
    "crypt": "_crypt",
    "ctypes": "_ctypes",
    "curses": "_curses",
    "dbm.gnu": "_gdbm",
    "dbm.ndbm": "_dbm",
    "lzma": "_lzma",
    "msilib": "_msi",
    "multiprocessing.popen_spawn_win32": "msvcrt",
    "sqlite3": "_sqlite3",
    "ssl": "_ssl",
    "tkinter": "_tkinter",
    "turtle": "_tkinter",
}


def _find(name: str) -> importlib.machinery.ModuleSpec | None:
    """Where the standard library itself has a top-level module; imports nothing."""
    stdlib = sysconfig.get_path("stdlib")
    builtin = importlib.machinery.BuiltinImporter.find_spec(name)
    return builtin or importlib.machinery.PathFinder.find_spec(
        name, [stdlib, str(Path(stdlib, "lib-dynload"))]
    )


def _walk(name: str, paths: Sequence[str]) -> Iterator[str]:
    """A module and all below it that may be shown. pkgutil.walk_packages would import them."""
    last = name.rpartition(".")[2]
    private = last.startswith("_") and name not in _PUBLIC_UNDERSCORE
    if (
        private
        or last in _FORBIDDEN | _FORBIDDEN_PACKAGES
        or (name in _NEEDS and _find(_NEEDS[name]) is None)
    ):
        return
    yield name
    for module in pkgutil.iter_modules([] if name in _PACKAGE_PAGE_ONLY else list(paths)):
        inside = [str(Path(path, module.name)) for path in paths] if module.ispkg else []
        yield from _walk(f"{name}.{module.name}", inside)


def stdlib_modules() -> tuple[str, ...]:
    """Public modules of this Python's standard library whose import is harmless, sorted."""
    specs = {name: _find(name) for name in sys.stdlib_module_names}
    places = {n: spec.submodule_search_locations or [] for n, spec in specs.items() if spec}
    return tuple(sorted(name for top, paths in places.items() for name in _walk(top, paths)))


# -------------------------------------------------------- rendering, inside the child process

Scrub = Callable[[str], str]
_ADDRESS = re.compile(r"\b(at 0x|handle )[0-9a-fA-F]{6,16}\b")


def install_paths() -> dict[str, str]:
    """This machine's own paths → the ones that the pages show instead."""
    lib = "/usr/lib/python{}.{}".format(*sys.version_info)
    shown = dict.fromkeys((sys.prefix, sys.base_prefix), "/usr")
    shown[os.path.expanduser("~")] = "/home/user"  # noqa: PTH111 - Path.home() raises without one
    shown |= dict.fromkeys(map(sysconfig.get_path, ("stdlib", "platstdlib")), lib)
    shown |= dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib")), f"{lib}/site-packages")
    shown |= {os.path.realpath(path): instead for path, instead in shown.items()}
    return {path: instead for path, instead in shown.items() if len(path) > 1}


def scrubber(paths: Mapping[str, str]) -> Scrub:
    """A function on text that hides memory addresses and the given paths."""
    longest_first = "|".join(map(re.escape, sorted(paths, key=len, reverse=True)))
    path = re.compile(rf"(?<![\w.])({longest_first})(?!\w)")
    return lambda text: _ADDRESS.sub(r"\1…", path.sub(lambda match: paths[match[1]], text))


class _Repr(pydoc.HTMLRepr):
    """Values are cut to 100 characters, so scrub first: half an address would survive the cut."""

    def __init__(self, scrub: Scrub) -> None:
        super().__init__()
        self._scrub = scrub

    def repr1(self, x: object, level: complex) -> str:
        if hasattr(self, "repr_" + "_".join(type(x).__name__.split())):
            return super().repr1(x, level)
        return self.escape(pydoc.cram(self._scrub(repr(x)), self.maxother))

    def repr_str(self, x: str, level: complex) -> str:
        return super().repr_string(self._scrub(x), level)

    def repr_set(self, x: Collection[Any], level: int) -> str:
        if not x:
            return f"{type(x).__name__}()"
        # reprlib leaves a set that cannot be sorted (of types, say) in the order of addresses.
        shown = sorted(self.repr1(item, level - 1) for item in x) if level > 0 else ["..."]
        more = ["..."] if len(shown) > self.maxset else []
        listed = "{" + ", ".join(shown[: self.maxset] + more) + "}"
        return f"frozenset({listed})" if isinstance(x, frozenset) else listed

    repr_frozenset = repr_set


class _Doc(pydoc.HTMLDoc):
    """pydoc's page with headings, lists and <pre> docstrings in place of layout tables."""

    def __init__(self, scrub: Scrub) -> None:
        self._scrub = scrub
        self.repr = _Repr(scrub).repr

    def heading(self, title: str, extras: str = "", *_: object) -> str:
        return f"<h1>{title}</h1>\n<p>{extras.replace('<br>', ' ')}</p>\n"

    def section(self, *args: Any, **_: Any) -> str:
        title, _cls, contents, _width, prelude = args  # as docclass calls it; bigsection does not
        return f"<section><h3>{title}</h3>\n{prelude}\n{contents}</section>\n"

    def bigsection(self, title: str, *args: Any) -> str:
        contents: str = args[1]
        if title == "Data":
            contents = f"<ul>\n<li>{contents}</li>\n</ul>".replace("<br>\n", "</li>\n<li>")
        return f"<section><h2>{title}</h2>\n{contents}</section>\n"

    def multicolumn(self, *args: Any, **_: Any) -> str:
        items, show = args
        return "<ul>\n" + "".join(f"<li>{show(item)}</li>\n" for item in items) + "</ul>"

    def formattree(self, tree: list[Any], modname: str, parent: type | None = None) -> str:
        marked = super().formattree(tree, modname, parent)
        lists = marked.replace("dl>", "ul>").replace("dd>", "li>").replace("</dt>", "</li>")
        return lists.replace('<dt class="heading-text">', "<li>")

    def filelink(self, url: str, path: str) -> str:
        return f"<code>{self.escape(path)}</code>"

    def getdocloc(self, *_: Any, **__: Any) -> None:
        return None  # a link to docs.python.org: this site stands alone

    def markup(self, text: str, escape: object = None, *args: Any, **links: Any) -> str:
        # `escape` is how pydoc keeps the line breaks, with <br>; <pre> keeps them as well.
        marked = super().markup(self._scrub(text), self.escape, *args, **links)
        return f"<pre>{re.sub('</?strong>', '', marked)}</pre>" if text else ""


def _resolve(match: re.Match[str], modules: frozenset[str]) -> str:
    """A link of pydoc's made to work here; one that leads off the site becomes plain text."""
    target, text = match.groups()
    module, page, fragment = target.partition(".html")
    if target == ".":
        return f'<a href="/">{text}</a>'
    if target.startswith("#"):
        return f'<a href="{target}">{text}</a>'
    return f'<a href="/{module}{page}{fragment}">{text}</a>' if module in modules else text


def _method_order(match: re.Match[str]) -> str:
    return f"<p>Method resolution order: {', '.join(re.findall('<dd>(.*?)</dd>', match[1]))}</p>"


# Text is escaped by now, so that a tag found here is always one of pydoc's own.
_TIDY: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"</pre><br>&nbsp;", "</pre>"),
    (r"&nbsp;", " "),
    (r"</?span[^>]*>", ""),
    (r"(?s)<p>(<pre>.*?</pre>)?</p>", r"\1"),
    (r"(?s)<dl><dt>Method resolution order:</dt>(.*?)</dl>", _method_order),
    (r"(?s)<dt>(.*?)(?:</dt>|(?=<dd>|</dl>))", r"<p>\1</p>\n"),
    (r"</?d[ld]>", ""),
    (r"(?m)^(.*):<br>$", r"<h4>\1</h4>"),
    (r'<a name="', '<a id="'),
)


def html_page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n</head>\n<body>\n"
        f'<nav><a href="/">All modules</a></nav>\n<main>\n{body}\n</main>\n'
        "<footer>Flywheel's demo site: the docstrings of Python's standard library, "
        "rendered by pydoc.</footer>\n</body>\n</html>\n"
    )


def render_module(name: str, modules: frozenset[str], scrub: Scrub) -> str:
    """The page of a module, which this imports; links lead to `modules` and nowhere else."""
    body = _Doc(scrub).docmodule(importlib.import_module(name))
    for pattern, replacement in _TIDY:
        body = re.sub(pattern, replacement, body)
    body = re.sub(r'(?s)<a href="([^"]*)"[^>]*>(.*?)</a>', partial(_resolve, modules=modules), body)
    return scrub(html_page(f"{name} — Python library", body))


def work(config: Mapping[str, Any]) -> None:
    """The child: a line {"name"} in on stdin, a line {"status", "html", "why"} out on stdout.

    Each page is rendered in a fork of its own, so that no page depends on those before it.
    """
    # Only the standard library can be imported from here on, never a project's module.
    sys.path[:] = [*config["search_path"], *(p for p in sys.path if p != config["root"])]
    sys.path_importer_cache.clear()
    # Where a docstring is missing pydoc reads the comments above: that parses the module's source
    # again for each object, more than half of all the time.
    inspect.getcomments = lambda _: None
    modules, scrub = frozenset(config["modules"]), scrubber(config["paths"])
    # From 3 up: the lower ones are about to be closed to the modules that are imported.
    answers = os.fdopen(fcntl.fcntl(1, fcntl.F_DUPFD, 3), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            # Should the server die meanwhile, nobody is left to end a module that hangs.
            signal.alarm(int(config["timeout_s"]) + 5)
            _answer(json.loads(line)["name"], modules, scrub, answers)
        status = os.waitpid(pid, 0)[1]
        if status:
            crash = {"status": 500, "why": f"wait status {status}"}
            print(json.dumps(crash), file=answers, flush=True)


def _answer(name: str, modules: frozenset[str], scrub: Scrub, answers: IO[str]) -> None:
    """Writes one page and ends the process, whatever the imported module did to it."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 2)
    sys.stdin = os.fdopen(0, encoding="utf-8")  # the old one may hold the next request
    status = HTTPStatus.NOT_FOUND
    try:
        importlib.import_module(name)
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        answer = {"status": 200, "html": render_module(name, modules, scrub)}
    except BaseException as error:  # noqa: BLE001 - a module raises what it likes, SystemExit too
        answer = {"status": status, "why": repr(error)}
    try:
        print(json.dumps(answer), file=answers, flush=True)
    finally:
        os._exit(0)  # no atexit handlers, no waiting for threads
