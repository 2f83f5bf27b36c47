"""`flywheel card MODEL`: a model's card, and what was measured of it since it was published."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.report import Table, gate_rows, summary_rows
from finetune.card import CARD, table
from finetune.export import find_model
from finetune.registry import Registry
from infra.serve import ServeConfig
from infra.tables import printable
from pipeline.core.config import Config
from pipeline.core.manifest import MANIFEST, Manifest, read_manifest

_STAGES = ("evaluate", "gate", "win_rate", "arena", "compression")


def show_card(config: Config, name: str) -> None:
    """Raises UserError for a name of no model, or of several."""
    print(printable(whole_card(config, name)), end="")


def whole_card(config: Config, name: str) -> str:
    """`name` is a pointer, an id or its beginning. The outputs that name the model, in the order
    of stages and keys: the same manifests give the same text."""
    registry = Registry(config.run.root)
    identity = find_model(registry, name)
    path = registry.folder(identity) / CARD
    card = path.read_text(encoding="utf-8") if path.exists() else "# A model without a card\n"
    abilities = config.section("serve", ServeConfig).abilities
    parts = [card.rstrip(), f"## Model\n\n`{identity}`"]
    parts.append(f"`serve.abilities` of this config: {', '.join(abilities) or 'none'}.")
    found = [m for m in _outputs(registry.root) if identity in _models_of(m)]
    for manifest in found:
        parts += [f"## {manifest.stage} {manifest.key[:12]}", *_shown(manifest, identity)]
    return "\n\n".join(parts if found else [*parts, "Nothing was measured since."]) + "\n"


def _outputs(root: Path) -> list[Manifest]:
    paths = [path for stage in _STAGES for path in sorted((root / stage).glob(f"*/{MANIFEST}"))]
    return [read_manifest(str(path.parent)) for path in paths]


def _models_of(manifest: Manifest) -> set[Any]:
    roles = ("model", "model_id", "champion", "challenger", "reward", "base")
    told = [*manifest.parents.values(), *(manifest.facts.get(role) for role in roles)]
    return {value for value in told if isinstance(value, str)}


def _shown(manifest: Manifest, identity: str) -> Sequence[str]:
    facts = manifest.facts
    roles = sorted(key for key, value in facts.items() if value == identity)
    if manifest.stage == "evaluate":
        return [_markdown(summary_rows(facts))]
    if manifest.stage == "gate":
        return [f"As {', '.join(roles)}: {facts['verdict']}.", _markdown(gate_rows(facts))]
    simple = [
        (key, value) for key, value in sorted(facts.items()) if isinstance(value, int | float | str)
    ]
    return [table(("fact", "value"), simple)]


def _markdown(found: Table) -> str:
    return table(found.header, found.rows)
