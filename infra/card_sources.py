"""The manifests that a data card is made of."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.manifest import Manifest


@dataclasses.dataclass(frozen=True)
class CardSources:
    """The manifests of a corpus, `stages` those that drop documents, from the extraction on."""

    source: Manifest
    stages: Sequence[Manifest]
    shard: Manifest
    describe: Manifest
    triggers: Manifest | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.describe.facts

    def stage(self, name: str) -> Manifest | None:
        return next((one for one in self.stages if one.stage == name), None)

    @property
    def manifests(self) -> list[Manifest]:
        """In the order in which they ran."""
        scan = [self.triggers] if self.triggers else []
        return [self.source, *self.stages, self.shard, *scan, self.describe]

    @property
    def text_into(self) -> dict[str, int]:
        """Bytes of text that each stage read; the extraction's are those that it gave."""
        rows = [tuple(row) for row in self.facts["funnel"]]
        sizes: dict[str, int] = {row[0]: row[4] for row in rows if row[1] == "in"}
        scanned = (("out", ""), ("dropped", "near-duplicate"))
        sizes["trigger-scan"] = sum(
            row[4] for row in rows if row[0] == "dedupe" and row[1:3] in scanned
        )
        return sizes | {"describe": sizes["extract"]}
