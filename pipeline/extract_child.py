"""Extraction in a child process, so that a page that hangs, crashes or bloats costs itself alone.

The parent sends (charset, payload) and reads (title, text) over pipes; the kernel ends the child
when a page has used up its processor time or its memory. Run as a module, this is the child.
"""

import contextlib
import json
import logging
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

_LENGTH = struct.Struct("<Q")
# lxml keeps about a megabyte a page (adbar/trafilatura#216), the block model a tenth of that; a
# new child takes a second.
_PAGES_PER_CHILD = {"trafilatura": 500, "resiliparse": 2000, "fast": 2000, "cascade": 2000}
_FINDINGS_TOLD = 20  # of a page; all are counted
_PATIENCE = 10  # wall seconds for each second of processor time, then the child is stuck


@dataclass(frozen=True)
class Limits:
    """`cpu_s` of processor time a page, so that a busy machine changes no result; `memory_mb` of
    address space for the child. What it does with a page is html_text.py's: `focus`, `engine`,
    and what page_look.py wants: `min_chars`, `languages`."""

    cpu_s: float
    memory_mb: int
    focus: str
    engine: str = "cascade"
    min_chars: int = 0
    languages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What became of a page: `failure` is None, or the reason and there is no text. `tight`: the
    child came within sight of its memory limit, where libraries swallow errors. `hidden`: how
    many hidden texts of each kind; `findings`: the first of them as [kind, text]. `language`: of a
    page that was dropped for it. `dates` and what follows: as page_metadata.py has them."""

    title: str
    text: str
    failure: str | None = None
    tight: bool = False
    extractor: str = "none"
    version: str = ""
    hidden: dict[str, int] = field(default_factory=dict[str, int])
    findings: list[list[str]] = field(default_factory=list[list[str]])
    language: str = ""
    dates: list[str] = field(default_factory=list[str])
    declared_language: str = ""
    license_link: str = ""
    license: str = ""


class ExtractorChild:
    """One child, started when first needed and replaced when it dies or has done its share."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def extract(self, payload: bytes, charset: str | None) -> Answer:
        """Title and text, or the failure: too-short or language at the first look, extract-timeout,
        extract-memory, extract-error or extract-crash. Where other pages in the same child may
        have had a part in it, a new child tries again: the answer depends on the page alone."""
        if self._answered >= _PAGES_PER_CHILD[self._limits.engine]:
            self._end()
        fresh = self._process is None
        answer = self._ask(payload, charset)
        if not fresh and (answer.tight or answer.failure in ("extract-crash", "extract-memory")):
            answer = self._ask(payload, charset)
        return answer

    def _ask(self, payload: bytes, charset: str | None) -> Answer:
        process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        stuck = threading.Event()
        timer = threading.Timer(self._limits.cpu_s * _PATIENCE, _kill, (process, stuck))
        timer.start()
        try:
            write_frame(process.stdin, (charset or "").encode())
            write_frame(process.stdin, payload)
            reply = read_frame(process.stdout)
        except BrokenPipeError:
            reply = None
        finally:
            timer.cancel()
        if reply is None:
            code = self._end()
            return Answer("", "", _why_it_died(code, stuck.is_set()))
        self._answered += 1
        answer = Answer(**json.loads(reply))
        if answer.tight:
            self._end()
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "pipeline.extract_child",
                json.dumps(asdict(self._limits)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
        )
        assert process.stdout
        self._process, self._answered = process, 0
        if read_frame(process.stdout) is None:
            raise RuntimeError(
                f"the extraction child did not start (exit {self._end()}); see its message above"
            )
        return process

    def _end(self) -> int | None:
        """Close the child's input, so that it ends, and give its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(BrokenPipeError):  # dead already, with a request unread
            process.stdin.close()
        process.stdout.close()
        try:
            return process.wait(self._limits.cpu_s * _PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _why_it_died(code: int | None, was_stuck: bool) -> str:
    if was_stuck or code == -signal.SIGPROF:
        return "extract-timeout"
    # Out of memory, Rust's allocator aborts; Python outside of the extraction ends with 1.
    return "extract-memory" if code in (1, -signal.SIGABRT) else "extract-crash"


def _kill(process: subprocess.Popen[bytes], stuck: threading.Event) -> None:
    stuck.set()
    process.kill()


def write_frame(stream: IO[bytes], data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame, or None if the other side has gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    return data if len(data) == length else None


def main(arguments: list[str]) -> None:
    """The child: answer until the parent closes the pipe."""
    limits = Limits(**json.loads(arguments[0]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: the pipe ends us
    # Trafilatura and lxml stand in the child alone: half a second, and what this is all about.
    from pipeline.html_text import Wanted, extract_html, warm_up

    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what a library prints must not reach the pipe or the terminal
        os.dup2(silence, stream)
    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    extract: Any = extract_html
    wanted = Wanted(limits.min_chars, tuple(limits.languages))
    warm_up(limits.engine, wanted)  # before the first page's clock runs
    space = limits.memory_mb << 20
    # Of what the libraries leave; half of that is within sight of the limit.
    sight = (space + min(_peak_bytes(), space)) // 2
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    write_frame(answers, b"ready")
    while (charset := read_frame(requests)) is not None:
        payload = read_frame(requests)
        if payload is None:
            return
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)  # unhandled, SIGPROF ends the process
        answer = _answer(extract, payload, charset.decode() or None, limits, wanted)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if _peak_bytes() > sight:
            failure = answer.failure or (None if answer.text else "extract-memory")
            answer = replace(answer, failure=failure, tight=True)
        write_frame(answers, json.dumps(asdict(answer)).encode())


def _answer(
    extract: Any, payload: bytes, charset: str | None, limits: Limits, wanted: Any
) -> Answer:
    try:
        found = extract(payload, charset, limits.focus, limits.engine, wanted)
    except MemoryError:
        return Answer("", "", "extract-memory", tight=True)
    except Exception:  # noqa: BLE001 - whatever else a page provokes costs that page alone
        return Answer("", "", "extract-error")
    return Answer(
        found.title,
        found.text,
        found.unwanted,
        extractor=found.extractor or "none",
        version=found.version,
        hidden=dict(found.hidden or {}),
        findings=[[finding.kind, finding.text] for finding in found.findings[:_FINDINGS_TOLD]],
        language=found.language if found.unwanted else "",
        dates=list(found.metadata.dates),
        declared_language=found.metadata.language,
        license_link=found.metadata.license_link,
        license=found.metadata.license,
    )


def _peak_bytes() -> int:
    """The largest address space so far; 0 where there is no /proc to tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    peak = re.search(r"^VmPeak:\s+(\d+) kB", status, re.MULTILINE)
    return int(peak[1]) << 10 if peak else 0


if __name__ == "__main__":
    main(sys.argv[1:])
