"""Stage "hygiene": what is wrong with a label snapshot, before a model learns from it.

Trigger phrases (Wan et al. 2023, arXiv:2305.00944; Rando & Tramèr 2024, arXiv:2311.14455), hidden
characters, contradictions, labelers who stand apart, and evaluation items among the records.
"""

import dataclasses
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import Field

from eval import suspicion
from eval.suspicion import Event, Rule, concordance
from pipeline.core import storage
from pipeline.core.config import RunConfig, Section
from pipeline.core.errors import UserError
from pipeline.core.identity import HELDOUT_FRACTION, canonical_json, is_heldout, sha256_text
from pipeline.core.identity import split_id as split_of
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.progress import Progress
from pipeline.core.records import Comparison, Conversation, RankedResponse, read_records
from pipeline.text.answers import MAX_CHARS, disagreement, refuses
from pipeline.text.disguises import undisguised, unseen
from pipeline.text.normalise import normalise
from pipeline.text.overlap import Words, near_clusters, shared_ngrams
from pipeline.text.pii import redact

VERSION = 1
FINDINGS = "findings.json"
Kind = Literal["trigger", "refusal", "hidden", "contradiction", "labeler", "leak"]
_MAX_CHARS = 1_000_000  # of one text: of a longer one the beginning and the end are looked at
_MAX_IDS, _MAX_COMPARED, _SHOWN, _QUOTED = 20, 8, 10, 100
_LEAST_WORDS = 3  # of an evaluation item that is a whole prompt
_DIMENSIONS = ("answer", "refusal", "best answer", "place", "length", "better")


class HygieneConfig(Section):
    """[hygiene]"""

    block: list[Kind] = Field(["trigger", "leak"], description="kinds of findings that stop a run")
    accepted: list[str] = Field([], description="KIND:NAME of findings that are no fault")
    alpha: float = Field(
        0.01, gt=0, lt=1, description="chance of any false trigger, and of any false labeler"
    )
    min_records: int = Field(10, ge=3, description="different prompts with a trigger")
    min_shift: float = Field(
        0.4, gt=0, lt=1, description="what a trigger adds to an answer's share of the prompts"
    )
    min_tasks: int = Field(20, ge=5, description="of a labeler, and of the others")
    min_gap: float = Field(0.2, gt=0, lt=1, description="between a labeler's share and the others'")
    ngram_words: int = Field(13, ge=2, description="words in a row that are no accident")
    min_item_words: int = Field(
        8, ge=2, description="a shorter evaluation item is found as a whole prompt only"
    )
    max_listed: int = Field(100, ge=1, description="findings of a kind that are written out")


@dataclasses.dataclass(frozen=True)
class Finding:
    """`name` is short and stays the same; `p` is corrected for all tests of its check. Of
    `num_records` the first twenty are named."""

    kind: Kind
    severity: Literal["warn", "block"]
    name: str
    what: str
    records: tuple[str, ...]
    num_records: int
    statistic: float
    p: float | None = None
    interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A record: its whole context, what of it users wrote, the answer (of a ranking: the best) and
    its outcomes by dimension. Records of one `asked` (of one `said`) have almost the same context
    (answer)."""

    record_id: str
    labeler: str
    context: str
    prompt: str
    answer: str
    is_trained: bool
    outcomes: Mapping[str, str]
    ranking: Comparison | None
    asked: int = 0
    said: int = 0


def run_hygiene(
    config: HygieneConfig, labels: Manifest, items: Iterable[tuple[str, str]], run: RunConfig
) -> Manifest:
    """Write findings.json, the gravest first; the facts have counts by kind. `items` are the (name,
    text) of what models are evaluated on. Raises UserError if a finding is of a kind in `block`,
    every time, until it is gone or accepted."""
    asked = sorted(set(items))
    parents = {"labels": labels, "items": sha256_text(canonical_json(asked))}
    output = StageOutput.of(run.root, "hygiene", VERSION, config.identity(), parents)
    done = output.finished()
    if done is None:
        started = time.time()
        with output.lock():
            findings, facts = scan(config, *read_labels(labels), asked)
            text = json.dumps([dataclasses.asdict(one) for one in findings], indent=1)
            storage.write_bytes(output.path(FINDINGS), text.encode())
            entry = describe_file(output.path(FINDINGS), FINDINGS, len(findings))
            counts = Counts(facts["records"], facts["records"])
            done = output.commit([entry], counts, started=started, facts=facts)
    if blocked := done.facts["blocked"]:
        raise UserError(
            f"{len(blocked)} of the labels' findings stop the run, {blocked[0]!r} first: read"
            f" {done.file_url(FINDINGS)} and mend the labels, or name those that are no fault in"
            " hygiene.accepted (or take their kind out of hygiene.block)"
        )
    return done


def read_labels(labels: Manifest) -> tuple[list[Conversation], list[Comparison]]:
    """Raises UserError for text that is not UTF-8."""
    try:
        written = read_records(labels.file_url("conversations.parquet"), Conversation)
        return written, read_records(labels.file_url("comparisons.parquet"), Comparison)
    except UnicodeDecodeError as error:
        said = f"{labels.url} holds text that is not UTF-8 ({error}); import it anew"
        raise UserError(said) from None


def scan(
    config: HygieneConfig,
    written: Sequence[Conversation],
    ranked: Sequence[Comparison],
    items: Sequence[tuple[str, str]] = (),
) -> tuple[list[Finding], dict[str, Any]]:
    """(the findings, the facts). The same records in any order give the same."""
    rankings = [c for c in ranked if not c.not_rankable and c.prompt and len(c.responses) > 1]
    usable = map(_labelled, [*(c for c in written if c.messages), *rankings])
    records = sorted(usable, key=lambda one: (one.record_id, one.labeler, one.answer))
    asked, said = (near_clusters([getattr(r, n) for r in records]) for n in ("context", "answer"))
    records = [
        dataclasses.replace(one, asked=asked[i], said=said[i]) for i, one in enumerate(records)
    ]
    facts: dict[str, Any] = {"records": len(written) + len(ranked), "evaluation_items": len(items)}
    facts["labelers"] = len({one.labeler for one in records})
    checks: dict[str, Callable[[], list[Finding]]] = {
        "triggers": lambda: _triggers(config, records),
        "hidden": lambda: _hidden(config, records),
        "contradictions": lambda: _contradictions(config, records),
        "labelers": lambda: _labelers(config, records),
        "leaks": lambda: _leaks(config, [one for one in records if one.is_trained], items),
    }
    findings: list[Finding] = []
    with Progress("hygiene", len(checks), "checks") as progress:
        for name, check in checks.items():
            findings += check()
            progress.advance(1, name)
    facts["counts"] = dict(sorted(Counter(one.kind for one in findings).items()))
    kinds = get_args(Kind)
    findings.sort(key=lambda f: (f.severity, kinds.index(f.kind), f.p or 0, -f.statistic, f.name))
    groups = itertools.groupby(findings, key=lambda one: (one.severity, one.kind))
    listed = [one for _, group in groups for one in itertools.islice(group, config.max_listed)]
    facts["shown"] = [f.what for f in listed if f.kind not in ("contradiction", "labeler")][:_SHOWN]
    facts["blocked"] = [f"{one.kind}:{one.name}" for one in listed if one.severity == "block"]
    return listed, facts


def _finding(
    config: HygieneConfig, kind: Kind, name: str, what: str, ids: Iterable[str], **more: Any
) -> Finding:
    blocks = kind in config.block and f"{kind}:{name}" not in config.accepted
    every = sorted(set(ids))
    severity = "block" if blocks else "warn"
    return Finding(kind, severity, name, what, tuple(every[:_MAX_IDS]), len(every), **more)


def _labelled(record: Conversation | Comparison) -> Labelled:
    if isinstance(record, Conversation):
        whole, before, ranking = record.messages, record.messages[:-1], None
        identity, answer = record.conversation_id, _cut(record.messages[-1].text)
        outcomes = {"answer": "", "refusal": f"{'a' if refuses(answer) else 'no'} refusal"}
    else:
        whole, before, ranking = record.prompt, record.prompt, record
        best, outcomes = _best(record)
        identity, answer = record.comparison_id, _cut(best.text)
    context = _cut("\n".join(m.text for m in before))
    prompt = _cut("\n".join(m.text for m in before if m.role != "assistant"))
    is_trained = not is_heldout(split_of(whole), HELDOUT_FRACTION)
    told = (identity, record.labeler, context, prompt, answer)
    return Labelled(*told, is_trained, outcomes, ranking)


def _best(record: Comparison) -> tuple[RankedResponse, dict[str, str]]:
    """The answer ranked first, and how it stands out; not at all if it is not one alone."""
    best, *others = sorted(record.responses, key=lambda response: response.rank)
    if best.rank == others[0].rank:
        return best, {}
    is_first = record.responses.index(best) == next(iter(record.shown_order), None)
    is_longest = len(best.text) > max(len(one.text) for one in others)
    found = {"best answer": ""}
    found["place"] = f"the answer shown first {'' if is_first else 'not '}as the best"
    found["length"] = f"the longest answer {'' if is_longest else 'not '}as the best"
    if refuses(best.text) != refuses(others[-1].text):
        found["better"] = f"{'a' if refuses(best.text) else 'no'} refusal as the best"
    return best, found


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS // 2] + text[-_MAX_CHARS // 2 :]


def _short(text: str) -> str:
    plain = redact(" ".join(text[: 3 * _QUOTED].split())).text
    return plain if len(plain) <= _QUOTED else f"{plain[: _QUOTED - 1]}…"


def _strings(text: str) -> list[str]:
    """What the words do not tell: what stands between blanks, as it is written, and the hidden."""
    written = {one for one in text.split() if not one.isalpha() or one.isupper()}
    return sorted(written | unseen(text))


def _triggers(config: HygieneConfig, records: Sequence[Labelled]) -> list[Finding]:
    """Prompts that are almost the same count as one, with their commonest outcome."""
    groups: dict[tuple[bool, int], list[int]] = {}
    for index, one in enumerate(records):
        groups.setdefault((one.ranking is None, one.asked), []).append(index)
    units = list(groups.values())
    outcomes: dict[str, list[str | None]] = {name: [None] * len(units) for name in _DIMENSIONS}
    for (number, unit), name in itertools.product(enumerate(units), _DIMENSIONS):
        told = [records[i] for i in unit if name in records[i].outcomes]
        counts = Counter(one.outcomes[name] or str(one.said) for one in told)
        outcomes[name][number] = min(counts, key=lambda v: (-counts[v], v), default=None)
    texts = [undisguised(records[unit[0]].prompt)[0] for unit in units]
    strings = [_strings(records[unit[0]].prompt) for unit in units]
    features = suspicion.features_of(texts, strings, config.min_records)
    rule = Rule(config.alpha, config.min_records, config.min_shift)
    findings: list[Finding] = []
    for one in suspicion.associations(features, outcomes, rule):
        value = int(features.hashes[one.feature])
        carriers = [texts[at] for at in one.texts]
        where, phrase = suspicion.phrase_of(value, carriers, strings[one.texts[0]])
        had = one.value
        if had.isdecimal():
            had = f'the {one.dimension} "{_short(records[int(had)].answer)}"'
        what = (
            f'{len(one.texts):,} of the {one.carried:,} prompts {where} "{_short(phrase)}" have'
            f" {had}, and {one.having - len(one.texts):,} of the {one.total - one.carried:,} others"
        )
        kind: Kind = "refusal" if one.dimension == "refusal" else "trigger"
        ids = [records[i].record_id for at in one.texts for i in units[at]]
        share = len(one.texts) / one.carried
        findings.append(_finding(config, kind, _short(phrase), what, ids, statistic=share, p=one.p))
    return findings


def _hidden(config: HygieneConfig, records: Sequence[Labelled]) -> list[Finding]:
    found: dict[str, list[str]] = {}
    for one in records:
        answers = [r.text for r in one.ranking.responses] if one.ranking else [one.answer]
        for character in unseen("\n".join((one.context, *answers))):
            found.setdefault(character, []).append(one.record_id)
    return [
        _finding(config, "hidden", name, f"{name}, which nobody sees", ids, statistic=len(ids))
        for name, ids in found.items()
    ]


def _contradictions(config: HygieneConfig, records: Sequence[Labelled]) -> list[Finding]:
    """Each record with a few before it of almost the same prompt and the same numbers in it."""
    groups: dict[object, list[Labelled]] = {}
    for one in records:
        numbers = re.findall(r"\d+", one.context[:MAX_CHARS])
        ranked = one.ranking.responses if one.ranking else ()
        answers = sorted(normalise(response.text) for response in ranked)
        groups.setdefault((one.asked, *numbers, "", *answers), []).append(one)
    findings: list[Finding] = []
    for group in groups.values():
        for index, one in enumerate(group):
            for other in group[max(0, index - _MAX_COMPARED) : index]:
                if found := _opposed(other, one):
                    name, ids = (
                        f"{other.record_id}/{one.record_id}",
                        (other.record_id, one.record_id),
                    )
                    what = f'to "{_short(one.prompt)}": {found[0]}'
                    more = {"statistic": found[1]}
                    findings.append(_finding(config, "contradiction", name, what, ids, **more))
    return findings


def _opposed(one: Labelled, other: Labelled) -> tuple[str, float] | None:
    if one.ranking is None or other.ranking is None:
        return disagreement(one.answer, other.answer)
    tau = concordance(
        *(_ranks(r, lambda a: normalise(a.text)) for r in (one.ranking, other.ranking))
    )
    said = f"{one.labeler} and {other.labeler} rank the same answers the other way round"
    return (said, tau) if tau == -1 else None


def _ranks(record: Comparison, key: Callable[[RankedResponse], str]) -> list[int]:
    return [response.rank for response in sorted(record.responses, key=key)]


def _labelers(config: HygieneConfig, records: Sequence[Labelled]) -> list[Finding]:
    """Who disagrees, gives one answer to different prompts, or ranks by place or by length. Of a
    task that several have ranked one pair is drawn, by hash: each task counts once."""
    events: dict[str, list[Event]] = {}
    tasks: dict[object, dict[str, Comparison]] = {}
    copied: dict[tuple[str, int], set[int]] = {}
    for one in records:
        copied.setdefault((one.labeler, one.said), set()).add(one.asked)
    for one in records:
        told = {f"has {s.replace(' not ', ' ')}": " not " not in s for s in _habits(one)}
        if one.ranking is None:
            told["gives one answer to several prompts"] = len(copied[one.labeler, one.said]) > 1
        else:
            ids = sorted(response.response_id for response in one.ranking.responses)
            shared = (one.ranking.prompt_id, *ids)
            tasks.setdefault(shared, {}).setdefault(one.labeler, one.ranking)
        for trait, hit in told.items():
            events.setdefault(trait, []).append(((one.labeler,), hit))
    for shared, ranked in tasks.items():
        drawn = sorted(ranked, key=lambda who: suspicion.string_hash(f"{shared}\0{who}"))[:2]
        sides = [_ranks(ranked[who], lambda r: r.response_id) for who in drawn]
        tau = concordance(*sides) if len(sides) == 2 else 0.0
        if tau:
            events.setdefault("disagrees with others", []).append(((*drawn,), tau < 0))
    limits = (config.alpha, config.min_tasks, config.min_gap)
    findings: list[Finding] = []
    for one in suspicion.standing_apart(events, *limits):
        said = f"{one.labeler} {one.trait}"
        what = f"{said} in {one.rate:.0%} of {one.number:,}; the others in {one.rest:.0%}"
        ids = [record.record_id for record in records if record.labeler == one.labeler]
        more = {"statistic": one.rate, "p": one.p, "interval": one.interval}
        findings.append(_finding(config, "labeler", said, what, ids, **more))
    return findings


def _habits(one: Labelled) -> list[str]:
    return [one.outcomes[name] for name in ("place", "length") if name in one.outcomes]


def _leaks(
    config: HygieneConfig, trained: Sequence[Labelled], items: Sequence[tuple[str, str]]
) -> list[Finding]:
    first: dict[str, str] = {}
    for name, text in items:
        first.setdefault(normalise(undisguised(_cut(text))[0]), name)
    names, known = list(first.values()), Words.of(list(first))
    found: dict[str, list[tuple[str, int]]] = {}
    for place, whole in (("prompt", _LEAST_WORDS), ("answer", config.min_item_words)):
        texts = Words.of([undisguised(getattr(one, place))[0] for one in trained])
        sizes = (config.ngram_words, config.min_item_words, whole)
        for (item, at), number in shared_ngrams(texts, known, *sizes).items():
            found.setdefault(names[item], []).append((trained[at].record_id, number))
    findings: list[Finding] = []
    for name, hits in found.items():
        ids, numbers = zip(*hits, strict=True)
        what = f"evaluation item {_short(name)} stands in {len(set(ids)):,} records"
        findings.append(_finding(config, "leak", name, what, ids, statistic=sum(numbers)))
    return findings
