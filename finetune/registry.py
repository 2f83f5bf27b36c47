"""Models as immutable folders named by their content, and three pointers to them.

{root}/models/{model_id}/ is a Hugging Face checkpoint with a lineage.json;
{root}/pointers/{champion,challenger,previous} name one each, and history.jsonl says why.
"""

import datetime as dt
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast, get_args

from tokenizers import Tokenizer
from transformers import PreTrainedModel

from finetune.card import CARD, Made, card_text
from finetune.model import check_finite, quiet
from finetune.tokenizer import as_hugging_face
from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json, model_id
from pipeline.core.manifest import MANIFEST, Manifest, describe_file, is_planning

PointerName = Literal["champion", "challenger", "previous"]
LINEAGE = "lineage.json"
HISTORY = "history.jsonl"
ABANDONED_S = 24 * 3600
_IDENTITY = re.compile(r"[0-9a-f]{64}")
# What makes the models of a stage anew, and what sets a pointer anew.
_STAGES = dict.fromkeys(("sft", "reward", "dpo", "grpo"), "weekly") | {"pretrain": "pretrain"}
_POINTERS: dict[PointerName, str] = {"champion": "pretrain", "challenger": "weekly"}

_State = tuple[tuple[str, int, int, int], ...]
_intact: dict[Path, _State] = {}  # folders whose content this process has hashed, as they were


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Registry:
    """The models under a local root. Raises UserError for a root that is not a local folder."""

    def __init__(self, root: str, clock: Callable[[], dt.datetime] = _now) -> None:
        if not storage.is_local(root):
            raise UserError(f"run.root = {root!r}: models are kept in a local folder")
        self.root = storage.local_path(root)
        self.clock = clock

    def publish(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        lineage: dict[str, Any],
        card: str | None = None,
    ) -> str:
        """Write the checkpoint under the name of its content and return that name. `card` is of
        finetune/card.py; without one the lineage's alone is written. Raises UserError for a
        tokenizer that does not fit the model."""
        check_finite(model, "the model to publish")
        size = max(tokenizer.get_vocab().values(), default=-1) + 1
        known = int(model.config.vocab_size)
        if size > known:
            raise UserError(
                f"the tokenizer has {size:,} tokens and the model knows {known:,}: they are not of"
                " one model; take its own tokenizer"
            )
        quiet()
        models = self.root / "models"
        models.mkdir(parents=True, exist_ok=True)
        _sweep(models)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=models) as name:
            folder = Path(name) / "model"
            model.save_pretrained(str(folder))
            as_hugging_face(tokenizer).save_pretrained(str(folder))
            (folder / LINEAGE).write_text(canonical_json(lineage), encoding="utf-8")
            told = card_text(Made(lineage)) if card is None else card
            (folder / CARD).write_text(told, encoding="utf-8")
            identity = folder_model_id(folder)
            target = models / identity
            if target.exists() and folder_model_id(target) != identity:
                target.rename(Path(name) / "damaged")  # goes with the temporary folder
            if not target.exists():
                _fsync_tree(folder)
                folder.rename(target)
                storage.fsync(models)
        return identity

    def folder(self, identity: str) -> Path:
        """The model's folder, its files unread. Raises UserError if it is not there."""
        path = self.root / "models" / identity
        if not (path / "config.json").exists():
            raise UserError(f"no model {identity!r} in {path.parent}; {self._mend(identity)}")
        return path

    def whole_id(self, beginning: str) -> str:
        """The id of the one model that begins so. Raises UserError."""
        folder = self.root / "models"
        known = sorted(p.name for p in folder.glob("*") if re.fullmatch("[0-9a-f]{64}", p.name))
        matching = [identity for identity in known if beginning and identity.startswith(beginning)]
        if len(matching) != 1:
            what = f"{len(matching)} models begin with" if matching else "no model is called"
            some = ", ".join(identity[:12] for identity in (matching or known)[:5]) or "none"
            raise UserError(
                f"{what} {beginning!r} in {folder}; name a pointer, or more of an id ({some})"
            )
        return matching[0]

    def verified(self, identity: str) -> Path:
        """The model's folder, to load from: its files are what was published. Each is read through
        once in a process, and again if it was touched. Raises UserError with the mend."""
        folder = self.folder(identity)
        state = _state_of(folder)
        if _intact.get(folder) != state:
            if (found := folder_model_id(folder)) != identity:
                raise UserError(
                    f"model {identity} was changed on disk: its content is now {found[:12]};"
                    f" {self._mend(identity)}"
                )
            _intact[folder] = state
        return folder

    def with_model(self, finished: Manifest) -> Manifest:
        """The manifest of a training stage, if the model that it names is there and, but under
        `planning()`, whole. Raises UserError with the mend."""
        identity = finished.facts["model_id"]
        _ = self.folder(identity) if is_planning() else self.verified(identity)
        return finished

    def lineage(self, identity: str) -> dict[str, Any]:
        """What the model was made of, `kind` among it. Raises UserError if it cannot be read."""
        path = self.folder(identity) / LINEAGE
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{path} cannot be read; {self._mend(identity)}")
        return cast(dict[str, Any], found)

    def kind(self, identity: str) -> str:
        """base, sft, reward, dpo or grpo. Raises UserError if the lineage does not say."""
        if not isinstance(kind := self.lineage(identity).get("kind"), str):
            path = self.folder(identity) / LINEAGE
            raise UserError(f"{path} names no kind of model; {self._mend(identity)}")
        return kind

    def pointer(self, name: PointerName) -> str | None:
        """The model that it names, which need not be there. Raises UserError for what is no name
        of a model."""
        path = self._pointers / name
        try:
            text = path.read_bytes().decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}); {_anew(path, name)}") from None
        if not _IDENTITY.fullmatch(text):
            raise UserError(f"{path} holds {text[:70]!r}, no name of a model; {_anew(path, name)}")
        return text

    @property
    def _pointers(self) -> Path:
        return self.root / "pointers"

    def _mend(self, identity: str) -> str:
        """What brings the model back, or leads away from it."""
        for stage, command in _STAGES.items():
            for path in sorted((self.root / stage).glob(f"*/{MANIFEST}")):
                if _model_of(path) == identity:
                    return f"delete {path} and rerun `flywheel {command}`, which makes it again"
        for name in get_args(PointerName):
            path = self._pointers / name
            if path.is_file() and path.read_bytes().strip() == identity.encode():
                return _anew(path, name)
        return "name one that is there"

    def point(self, name: PointerName, identity: str, reason: str) -> None:
        """Repoint, in one step that a reader sees wholly or not at all. The history is written
        first: a kill in between leaves a line that says what was about to be."""
        self.folder(identity)
        entry = {"at": self.clock().isoformat(), "pointer": name, "model": identity, "why": reason}
        self._append(canonical_json(entry))
        storage.write_bytes(str(self._pointers / name), identity.encode())

    def _append(self, line: str) -> None:
        path = self._pointers / HISTORY
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = _whole_lines(path.read_bytes() if path.exists() else b"")
        with path.open("a+b") as file:
            file.truncate(len(whole))  # what a power cut tore: its pointer had not moved yet
            unended = bool(whole) and not whole.endswith(b"\n")
            file.write((b"\n" if unended else b"") + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def promote(self, identity: str, reason: str) -> None:
        """Make it the champion; the one before it becomes `previous`. Twice is once."""
        before = self.pointer("champion")
        if before == identity:
            return
        if before is not None:
            self.point("previous", before, f"was champion until: {reason}")
        self.point("champion", identity, reason)

    def rollback(self, reason: str) -> str:
        """Champion and previous change places. Raises UserError if there is no previous."""
        champion, previous = self.pointer("champion"), self.pointer("previous")
        if champion is None or previous is None:
            raise UserError("nothing to roll back to: no model was replaced yet")
        self.verified(previous)
        self.point("champion", previous, reason)
        self.point("previous", champion, reason)
        return previous

    def history(self) -> list[dict[str, Any]]:
        """Every repointing, oldest first: `at`, `pointer`, `model` and `why`. A last line that a
        power cut tore is left out; raises UserError for any other that cannot be read."""
        path = self._pointers / HISTORY
        try:
            lines = _whole_lines(path.read_bytes()).splitlines()
        except FileNotFoundError:
            return []
        found: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            if (entry := _entry_or_none(line)) is None:
                raise UserError(
                    f"{path}:{number} is damaged; put the line back as it was, or delete it and"
                    " check with `flywheel report` who was champion"
                )
            found.append(entry)
        return found


def _whole_lines(data: bytes) -> bytes:
    """The history without the beginning of a line that its end may have."""
    ended = data.rfind(b"\n") + 1
    return data if _entry_or_none(data[ended:]) else data[:ended]


def _entry_or_none(line: bytes) -> dict[str, Any] | None:
    try:
        entry: Any = json.loads(line.decode())
        names = (entry["pointer"], entry["model"])
    except (ValueError, KeyError, TypeError):
        return None
    known = names[0] in get_args(PointerName) and isinstance(names[1], str)
    return cast(dict[str, Any], entry) if known else None


def _anew(path: Path, name: PointerName) -> str:
    """How a damaged pointer is mended."""
    if name in _POINTERS:
        return (
            f"write the model into it that {path.with_name(HISTORY)} names last for {name}, or"
            f" delete it and rerun `flywheel {_POINTERS[name]}`"
        )
    return f"delete {path}: then there is nothing to roll back to"


def _model_of(path: Path) -> str | None:
    """The model that a stage's manifest names, however the manifest looks."""
    try:
        return json.loads(path.read_bytes())["content"]["facts"]["model_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _state_of(folder: Path) -> _State:
    """What changes when a file of the folder does: sizes, times and inodes."""
    found = [(str(path.relative_to(folder)), path.stat()) for path in folder.rglob("*")]
    return tuple(sorted((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in found))


def folder_model_id(folder: Path) -> str:
    """The content's name: sha256 over the sorted (path, sha256) list of the folder's files."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return model_id((name, describe_file(str(folder / name), name).sha256) for name in names)


def _sweep(models: Path) -> None:
    """Remove what a killed `publish` left behind: half-written folders of yesterday or before."""
    for folder in models.glob(".new-*"):
        if folder.stat().st_mtime < time.time() - ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)


def _fsync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        storage.fsync(path)
