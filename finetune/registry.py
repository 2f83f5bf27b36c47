"""Models as immutable folders named by their content, and three pointers to them.

{root}/models/{model_id}/ is a Hugging Face checkpoint with a lineage.json;
{root}/pointers/{champion,challenger,previous} name one each, and history.jsonl says why.
"""

import datetime as dt
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer
from transformers import PreTrainedModel

from finetune.model import quiet
from finetune.tokenizer import as_hugging_face
from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json, model_id
from pipeline.core.manifest import describe_file

PointerName = Literal["champion", "challenger", "previous"]
LINEAGE = "lineage.json"
ABANDONED_S = 24 * 3600


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Registry:
    """The models under a local root. Raises UserError for a root that is not a local folder."""

    def __init__(self, root: str, clock: Callable[[], dt.datetime] = _now) -> None:
        if not storage.is_local(root):
            raise UserError(f"run.root = {root!r}: models are kept in a local folder")
        self.root = storage.local_path(root)
        self.clock = clock

    def publish(self, model: PreTrainedModel, tokenizer: Tokenizer, lineage: dict[str, Any]) -> str:
        """Write the checkpoint under the name of its content and return that name."""
        quiet()
        models = self.root / "models"
        models.mkdir(parents=True, exist_ok=True)
        _sweep(models)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=models) as name:
            folder = Path(name) / "model"
            model.save_pretrained(str(folder))
            as_hugging_face(tokenizer).save_pretrained(str(folder))
            (folder / LINEAGE).write_text(canonical_json(lineage), encoding="utf-8")
            identity = folder_model_id(folder)
            if not (models / identity).exists():
                _fsync_tree(folder)
                folder.rename(models / identity)
                storage.fsync(models)
        return identity

    def folder(self, identity: str) -> Path:
        """The model's folder. Raises UserError if the registry does not hold it."""
        path = self.root / "models" / identity
        if not (path / "config.json").exists():
            raise UserError(f"no model {identity!r} in {self.root / 'models'}")
        return path

    def verify(self, identity: str) -> None:
        """Raises UserError if a file of the model is not what was published."""
        if (found := folder_model_id(self.folder(identity))) != identity:
            raise UserError(f"model {identity} was changed on disk: its content is now {found}")

    def lineage(self, identity: str) -> dict[str, Any]:
        return json.loads((self.folder(identity) / LINEAGE).read_text(encoding="utf-8"))

    def pointer(self, name: PointerName) -> str | None:
        try:
            return (self.root / "pointers" / name).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def point(self, name: PointerName, identity: str, reason: str) -> None:
        """Repoint, in one step that a reader sees wholly or not at all. The history is written
        first: a kill in between leaves a line that says what was about to be."""
        self.folder(identity)
        entry = {"at": self.clock().isoformat(), "pointer": name, "model": identity, "why": reason}
        self._append(canonical_json(entry))
        storage.write_bytes(str(self.root / "pointers" / name), identity.encode())

    def _append(self, line: str) -> None:
        path = self.root / "pointers" / "history.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            torn = file.seek(0, os.SEEK_END) > 0 and _last_byte(path) != b"\n"
            file.write((b"\n" if torn else b"") + line.encode() + b"\n")
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
        self.point("champion", previous, reason)
        self.point("previous", champion, reason)
        return previous

    def history(self) -> list[dict[str, Any]]:
        path = self.root / "pointers" / "history.jsonl"
        if not path.exists():
            return []
        found: list[dict[str, Any]] = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:  # a power cut tore it; its pointer had not moved yet
                continue
        return found


def folder_model_id(folder: Path) -> str:
    """The content's name: sha256 over the sorted (path, sha256) list of the folder's files."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return model_id((name, describe_file(str(folder / name), name).sha256) for name in names)


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def _sweep(models: Path) -> None:
    """Remove what a killed `publish` left behind: half-written folders of yesterday or before."""
    for folder in models.glob(".new-*"):
        if folder.stat().st_mtime < time.time() - ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)


def _fsync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        storage.fsync(path)
