"""The earlier dedupe outputs that a new crawl is deduplicated against, checked and laid out."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest, read_manifest
from pipeline.dedupe_files import Place

_SIGNER = ("bands", "rows", "seed", "shingle_words")


def read_earlier(
    urls: Sequence[str], stage: str, version: int, config: Mapping[str, Any]
) -> list[Manifest]:
    """The outputs of these URLs and, before each, all that it was deduplicated against itself; each
    once. Raises UserError for one that cannot be compared with."""
    found: dict[str, Manifest] = {}
    for url in urls:
        _read(url, stage, version, config, found)
    return list(found.values())


def _read(
    url: str, stage: str, version: int, config: Mapping[str, Any], found: dict[str, Manifest]
) -> None:
    manifest = read_manifest(url)
    if manifest.key in found:
        return
    if (manifest.stage, manifest.version) != (stage, version):
        raise UserError(
            f"dedupe.against: {url} is {manifest.stage} version {manifest.version}, not {stage}"
            f" version {version}; run that corpus's dedupe again"
        )
    for name in _SIGNER:
        if manifest.config[name] != config[name]:
            raise UserError(
                f"dedupe.against: {url} was signed with {name} = {manifest.config[name]}, this run"
                f" has {config[name]}; set dedupe.{name} to the same"
            )
    manifest.check_files()
    for before in manifest.run["against"]:
        _read(before, stage, version, config, found)
    found[manifest.key] = manifest


def places_of(corpus: int, earlier: Manifest) -> list[Place]:
    """Its shards. Raises UserError if its documents are no longer where they were."""
    docs = read_manifest(earlier.run["docs"])
    if docs.content_hash != earlier.parents["docs"]:
        raise UserError(
            f"dedupe.against: {docs.url} is not what {earlier.url} was made from; run its dedupe"
            " again"
        )
    docs.check_files()
    return [
        Place(
            corpus=corpus,
            number=number,
            folder=earlier.url,
            docs_url=docs.file_url(text.name),
            sidecar_url=earlier.file_url(sidecar.name),
            rows=sidecar.num_rows,
        )
        for number, (text, sidecar) in enumerate(zip(docs.files, earlier.files, strict=True))
    ]
