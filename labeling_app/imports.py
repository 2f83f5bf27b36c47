"""Labels from JSONL files, brought in through the very calls that the app makes.

Lines are written answers or rankings by simulated accounts. A file is read and checked whole
before its first label is stored; a rerun finds what is there by its keys and adds the rest. A line
that cannot be used stops the file, or, with `keep_good`, is told by number beside the others.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from labeling_app import auth, guidelines
from labeling_app.assignment import taken
from labeling_app.auth import Account, require
from labeling_app.label_files import IMPORTER, Label, LabelLine, Written, read_label_file
from labeling_app.store import MAX_NAME, Store
from labeling_app.submissions import recorded, submit_comparison, submit_demonstration
from labeling_app.tasks import add_task, known_task
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from pipeline.core.identity import sha256_text

_LINES = 100  # of one transaction: people go on working meanwhile


@dataclasses.dataclass(frozen=True)
class FileReport:
    """`already`: labels of this file that an earlier run had stored. `refused`: why lines were left
    out, each with its number."""

    name: str
    lines: int
    demonstrations: int
    comparisons: int
    already: int
    refused: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ImportReport:
    files: tuple[FileReport, ...]

    @property
    def demonstrations(self) -> int:
        return sum(file.demonstrations for file in self.files)

    @property
    def comparisons(self) -> int:
        return sum(file.comparisons for file in self.files)

    @property
    def already(self) -> int:
        return sum(file.already for file in self.files)


def import_labels(
    store: Store,
    files: Sequence[str | Path],
    overlap: int = 2,
    project: str = "default",
    keep_good: bool = False,
) -> ImportReport:
    """Bring in JSONL files of labels; each comparison asks for `overlap` rankings or as many as
    the file holds, whichever is more.

    A label that is there already is not touched. Raises UserError naming file, line and mend for
    a line that cannot be used, and then nothing of that file is stored; with `keep_good` only that
    line is not.
    """
    parsed = [(Path(file), *read_label_file(Path(file), overlap, keep_good)) for file in files]
    guidelines.publish_default(store, project=project)
    return ImportReport(tuple(_store(store, project, *each, keep_good) for each in parsed))


def _store(
    store: Store,
    project: str,
    path: Path,
    lines: Sequence[LabelLine],
    refused: list[str],
    keep_good: bool,
) -> FileReport:
    kept = refused if keep_good else None
    there, lines = _already_there(store, project, lines, kept)
    importer = _importer(store, project)
    lines = _without_clashes(store, importer, lines, kept)
    labels = [label for line in lines for label in line.labels]
    people = {
        name: _labeler(store, project, name) for name in sorted({label.labeler for label in labels})
    }
    new: list[Label] = []
    for start in range(0, len(lines), _LINES):
        some = lines[start : start + _LINES]
        tokens = _reserved(store, project, importer, people, some, there)
        for line in some:
            for label in line.labels:
                key = _idem_key(project, label)
                if key in there:
                    continue
                if tokens[key] is None and key in recorded(store, [key]):
                    there.add(key)  # by another run, meanwhile
                    continue
                if tokens[key] is None:
                    full = (
                        f"{line.where}: all labels that {label.task.key!r} asks for are there or in"
                        " hand; import it under a new id, with a higher labels.overlap"
                    )
                    if not keep_good:
                        raise UserError(full)
                    refused.append(full)
                    continue
                _submit(store, people[label.labeler], tokens[key] or "", label, key)
                new.append(label)
    demonstrations = sum(isinstance(label, Written) for label in new)
    already = sum(_idem_key(project, label) in there for label in labels)
    return FileReport(
        path.name,
        len(lines),
        demonstrations,
        len(new) - demonstrations,
        already,
        tuple(refused),
    )


def _already_there(
    store: Store, project: str, lines: Sequence[LabelLine], refused: list[str] | None
) -> tuple[set[str], list[LabelLine]]:
    """The keys of the labels that are there, and the lines that do not contradict them; the others
    go to `refused`, or raise UserError."""
    labels = [label for line in lines for label in line.labels]
    digests = recorded(store, [_idem_key(project, label) for label in labels])
    good: list[LabelLine] = []
    for line in lines:
        if all(
            digests.get(_idem_key(project, label), label.digest) == label.digest
            for label in line.labels
        ):
            good.append(line)
            continue
        changed = (
            f"{line.where}: was imported before with other content; labels are never "
            "changed, so give the line a new id"
        )
        if refused is None:
            raise UserError(changed)
        refused.append(changed)
    return set(digests), good


def _without_clashes(
    store: Store, importer: Account, lines: Sequence[LabelLine], refused: list[str] | None
) -> list[LabelLine]:
    """The lines whose tasks are new or there as they are; of the others, one goes to `refused`, or
    raises UserError."""
    good: list[LabelLine] = []
    with store.read() as session:
        for line in lines:
            try:
                for task in line.tasks.values():
                    known_task(session, importer.project_id, task)
                good.append(line)
            except UserError as error:
                if refused is None:
                    raise UserError(f"{line.where}: {error}") from None
                refused.append(f"{line.where}: {error}")
    return good


def _reserved(
    store: Store,
    project: str,
    importer: Account,
    people: Mapping[str, Account],
    lines: Sequence[LabelLine],
    there: set[str],
) -> dict[str, str | None]:
    """A lease for each label that is not there yet, in the transaction that makes its task: nobody
    else is given the slot. None where no slot is left."""

    def deed(session: Session) -> dict[str, str | None]:
        caller = require(session, importer, "engineer")
        tokens: dict[str, str | None] = {}
        for line in lines:
            for task in line.tasks.values():
                add_task(session, store.clock(), caller.pseudonym, caller.project_id, task)
            for label in line.labels:
                key = _idem_key(project, label)
                if key not in there:
                    work = taken(store, session, people[label.labeler], label.task.key)
                    tokens[key] = work.token if work else None
        return tokens

    return store.transact(deed)


def _submit(store: Store, who: Account, token: str, label: Label, key: str) -> None:
    if isinstance(label, Written):
        submit_demonstration(store, who, token, label.answer, key)
    else:
        submit_comparison(store, who, token, Verdict(label.ranks), key)


def _idem_key(project: str, label: Label) -> str:
    """The keys of all projects are of one space."""
    key = f"{label.labeler}:{label.task.key}"
    key = key if project == "default" else f"{project}/{key}"
    return key if len(key) <= MAX_NAME else f"{label.labeler}:{sha256_text(key)}"


def _importer(store: Store, project: str) -> Account:
    auth.create_simulated(store, IMPORTER, "engineer", project)
    return auth.act_as(store, IMPORTER, project)


def _labeler(store: Store, project: str, name: str) -> Account:
    auth.create_simulated(store, name, "labeler", project)
    who = auth.act_as(store, name, project)
    guidelines.acknowledge(store, who, guidelines.newest(store, who).n)
    return who
