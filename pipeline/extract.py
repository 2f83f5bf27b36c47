"""WARC files to documents: one Parquet file per WARC file, one row per response, in WARC order.

A WET file's text is taken as it is. What is dropped keeps its row, with its reason and no text.
Records that cannot be read are counted by reason. `flywheel corpus` runs this after the source.
"""

import dataclasses
import datetime as dt
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Literal, Protocol

import ada_url
from pydantic import Field

from pipeline.core.config import RunConfig, Section
from pipeline.core.identity import doc_id
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.records import Document, to_table, write_table
from pipeline.core.remote import Runtime
from pipeline.core.shard_tasks import ShardResult, map_shards
from pipeline.extract_child import Answer, ExtractorChild, Limits
from pipeline.ranges import USER_AGENT, RangeClient
from pipeline.text.normalise import without_long_marks
from pipeline.warc import WarcDamage, WarcResponse, iter_responses

VERSION = 7
WET_VERSION = "1"  # of the way in which a WET file's text is taken over
DAMAGE_NAMED = 20  # places of one file
HIDDEN_NAMED = 50  # findings of one file
TOO_SHORT = "too-short"  # page_look.py says so as well, in the child
_MAX_URL = 500  # characters
_EARLIEST = 1990  # an earlier time of fetching is not known
_AHEAD = dt.timedelta(hours=14)  # UTC+14 has the date first
_NUMBER = re.compile(r"\d[\d,]*")
_HTML = ("text/html", "application/xhtml+xml")


class ExtractConfig(Section):
    engine: Literal["cascade", "fast", "trafilatura", "resiliparse"] = Field(
        "cascade",
        description="what finds the main text: the block model of our own, with a second judgement"
        " by the page's type where the first is not sure (cascade), or without (fast), or"
        " trafilatura, which takes four times as long for less, or resiliparse's main content",
    )
    focus: Literal["balanced", "precision", "recall"] = Field(
        "balanced", description="trafilatura's leaning, where it has to choose"
    )
    min_chars: int = Field(
        50,
        ge=0,
        description="visible characters (no white space) of a page, menus and all; one with fewer"
        " is dropped before extraction: too-short. 0 keeps all. What passes meets quality's rules",
    )
    languages: list[str] = Field(
        default_factory=list,
        description="ISO 639 codes; a page whose visible text is surely in another language is"
        " dropped before extraction: language. Empty keeps all; else name what quality.languages"
        " names, which judges the extracted text",
    )
    max_bytes: int = Field(20_000_000, ge=1, description="a larger page is dropped unread")
    timeout_s: float = Field(20.0, gt=0, le=3600, description="processor seconds for one page")
    memory_mb: int = Field(
        2048,
        ge=1024,
        le=1 << 20,
        description="address space of the extraction process; libraries take 500",
    )


@dataclasses.dataclass(frozen=True)
class ExtractTask:
    source_url: str
    source_name: str
    output_url: str
    output_name: str
    config: ExtractConfig
    user_agent: str = USER_AGENT  # for a source behind HTTP


class Extractor(Protocol):
    """An ExtractorChild, or its stand-in."""

    def extract(self, payload: bytes, charset: str | None) -> Answer: ...


def run_extract(
    config: ExtractConfig, source: Manifest, run: RunConfig, runtime: Runtime
) -> Manifest:
    """Documents of all WARC files of `source` (of crawl or ingest): `docs-NNNNN.parquet` each.

    `facts["damaged"]` names what could not be read, at most DAMAGE_NAMED places of a file: its
    name, the offset and the reason. All of them are in the counts. `facts["hidden"]`: texts that
    a person would not see, at most HIDDEN_NAMED of a file: its name, the offset, the kind and the
    first 80 characters; a document's signals `hidden_KIND` count all of its own.
    """
    output = StageOutput.of(run.root, "extract", VERSION, config.identity(), {"source": source})
    if done := output.finished():
        return done
    started = time.time()
    tasks: dict[str, ExtractTask] = {}
    for index, entry in enumerate(source.files):
        name = f"docs-{index:05d}.parquet"
        url = source.file_url(entry.name)
        agent = str(source.run.get("user_agent", USER_AGENT))
        tasks[name] = ExtractTask(url, entry.name, output.path(name), name, config, agent)
    with output.lock():
        results = map_shards(runtime, output, "extract", extract_file, tasks)
        return output.commit(
            [entry for result in results for entry in result.files],
            Counts.total([result.counts for result in results]),
            started=started,
            record=Document.NAME,
            facts={
                name: [one for result in results for one in result.facts[name]]
                for name in ("damaged", "hidden")
            },
        )


def extract_file(task: ExtractTask) -> ShardResult:
    """One WARC file. Memory grows with its text: a WARC of a gigabyte holds some 200 MB."""
    config = task.config
    documents: list[Document] = []
    quarantined: Counter[str] = Counter()
    damaged: list[tuple[str, int, str]] = []
    hidden: list[tuple[str, int, str, str]] = []
    with ExtractorChild(limits_of(config)) as child:
        answers = Answers(config, child)
        for item in iter_responses(task.source_url, client=RangeClient(user_agent=task.user_agent)):
            if isinstance(item, WarcDamage):
                quarantined[_kind_of(item.reason)] += 1
                if len(damaged) < DAMAGE_NAMED:
                    damaged.append((task.source_name, item.offset, item.reason))
                continue
            document, findings = _document(item, task, answers.to(item))
            documents.append(document)
            for kind, text in findings[: HIDDEN_NAMED - len(hidden)]:
                hidden.append((task.source_name, item.offset, kind, text))
    write_table(to_table(documents, Document), task.output_url)
    dropped = Counter(document.drop_reason for document in documents if document.drop_reason)
    kept = len(documents) - dropped.total()
    return ShardResult(
        (describe_file(task.output_url, task.output_name, len(documents)),),
        Counts(len(documents) + quarantined.total(), kept, dict(dropped), dict(quarantined)),
        {"damaged": damaged, "hidden": hidden},
    )


def limits_of(config: ExtractConfig) -> Limits:
    """What an ExtractorChild is to keep to."""
    return Limits(
        config.timeout_s,
        config.memory_mb,
        config.focus,
        config.engine,
        config.min_chars,
        tuple(config.languages),
    )


def _kind_of(reason: str) -> str:
    """What is counted together: a reason without the URL or the sizes that it names."""
    return _NUMBER.sub("N", reason.partition(":")[0])


class Answers:
    """What `child` says of responses: the cheap checks first, and what comes twice in a file is
    extracted once. An answer depends on its response alone."""

    def __init__(self, config: ExtractConfig, child: Extractor) -> None:
        self._config = config
        self._child = child
        self._known: dict[tuple[str, str | None], Answer] = {}

    def to(self, response: WarcResponse) -> Answer:
        unread = _drop_unread(response, self._config)
        if unread:
            return Answer("", "", unread)
        if response.converted:
            text = _plain(response.payload)
            return Answer("", text, extractor="wet", version=WET_VERSION)
        key = response.payload_sha256, response.charset
        answer = self._known.get(key)
        if answer is None:
            answer = self._child.extract(response.payload, response.charset)
            self._known[key] = answer
        return answer


def _document(
    response: WarcResponse, task: ExtractTask, answer: Answer
) -> tuple[Document, list[list[str]]]:
    """The document, and what was hidden on its page."""
    reason = answer.failure or (None if answer.text.strip() else "empty-text")
    document = Document(
        doc_id=doc_id(response.url, response.payload_sha256),
        url=response.url,
        fetched_at=response.fetched_at,
        warc_file=task.source_name,
        warc_offset=response.offset,
        payload_sha256=response.payload_sha256,
        http_status=response.http_status,
        content_type=response.content_type,
        extractor=answer.extractor,
        extractor_version=answer.version,
        title=answer.title,
        text="" if reason else without_long_marks(answer.text),
        published=published_of(answer.dates, response.fetched_at),
        declared_language=answer.declared_language,
        license=license_of(answer.license_link, answer.license, response.url),
        language=answer.language,
        signals={f"hidden_{kind.replace('-', '_')}": float(n) for kind, n in answer.hidden.items()},
        drop_reason=reason,
    )
    return document, answer.findings


def published_of(dates: Sequence[str], fetched_at: dt.datetime) -> str:
    """The first of these dates (ISO 8601) that was not in the future anywhere on Earth when the
    page was fetched, or empty."""
    known = _EARLIEST <= fetched_at.year < dt.MAXYEAR  # 9999 is what some write for unknown
    latest = (fetched_at + _AHEAD).date().isoformat() if known else ""
    return next((date for date in dates if not known or date <= latest), "")


def license_of(link: str, words: str, url: str) -> str:
    """Where the page at `url` says that its licence stands; else what it says in words."""
    try:
        joined = ada_url.join_url(url, link) if link else ""
    except ValueError:
        return words
    is_good = joined.startswith(("http://", "https://")) and len(joined) <= _MAX_URL
    return joined if is_good else words


def _plain(payload: bytes) -> str:
    """A conversion's text: UTF-8 by the WARC standard's custom; NUL has no place in a text."""
    return payload.decode("utf-8", "replace").replace("\0", "").replace("\r\n", "\n").strip("\n")


def _drop_unread(response: WarcResponse, config: ExtractConfig) -> str | None:
    """Why a response is not worth extracting: the cheap checks, first."""
    if response.http_status != 200:
        return f"status-{response.http_status}"
    unlabelled = response.content_type == "" and b"<html" in response.payload[:1024].lower()
    if response.content_type not in _HTML and not unlabelled and not response.converted:
        return "content-type"
    if not response.payload:
        return "empty-text"
    if len(response.payload) > config.max_bytes:
        return "too-large"
    if len(response.payload) < config.min_chars and not response.converted:
        return TOO_SHORT
    return None
