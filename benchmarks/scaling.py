"""A scaling law on books, and its prediction of a run of four times the compute, checked.

    .venv/bin/python benchmarks/scaling.py                 # ten minutes and more on two cores
    .venv/bin/python benchmarks/scaling.py --dry-run       # each run, and its time here
    .venv/bin/python benchmarks/scaling.py --tiny          # half a minute; records nothing

Text: FLYWHEEL_DATA's text/books.tar.xz, every eighth book held out, in pieces of a page that are
shuffled: of whole books a run would know best the one it read last. Interrupted, the same command
goes on (--root).
"""

import argparse
import datetime as dt
import os
import random
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from rows import DOCS, record_table

from eval.scaling import ScalingConfig, planned_runs, read_scaling, run_scaling
from finetune.model import ModelConfig
from finetune.pretrain import PretrainConfig
from finetune.tokenizer import TokenizerConfig, run_tokenizer
from infra import scaling_view
from pipeline.core.config import RunConfig
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.records import Document, to_table, write_table

PAGE = 2000  # characters
REPOSITORY = Path(__file__).resolve().parents[1]
WHEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
TITLE = "A scaling law on books, and what it foretold"
FULL = ScalingConfig(depths=(1, 2, 3), num_tokens=(200_000, 400_000, 800_000, 1_600_000))
TINY = ScalingConfig(depths=(1, 2, 3), num_tokens=(8_000, 16_000, 40_000), replicates=40)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", default="data/bench-scaling", help="where the runs are kept")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(argv)
    settings, mega = (TINY, 1) if options.tiny else (FULL, 24)
    words = TokenizerConfig(vocab_size=512 if options.tiny else 2048)
    pretrain = PretrainConfig(row_length=64 if options.tiny else 256, evaluate_every=10**9)
    run = RunConfig(root=options.root)
    if options.dry_run:
        scaling_view.print_plan(planned_runs(settings, pretrain, ModelConfig(), words.vocab_size),
                                words.vocab_size)  # fmt: skip
        return 0
    shards = book_shards(run.root, mega * 1_000_000, 30_000 * (1 if options.tiny else 20))
    tokenizer = run_tokenizer(words, shards, run)
    manifest = run_scaling(settings, pretrain, ModelConfig(), shards, tokenizer, run)
    scaling_view.write(manifest, run.root)
    scaling_view.show(manifest)
    if not options.tiny:
        found = read_scaling(manifest)
        (DOCS / "scaling.svg").write_bytes(scaling_view.picture_file(found))
        picture = "![Held-out loss against compute](scaling.svg)"
        record_table("scaling", TITLE, f"{scaling_view.markdown(found)}\n\n{picture}")
    return 0


def book_shards(root: str, train_bytes: int, heldout_bytes: int) -> Manifest:
    """A `shard` output of pieces of books to train on, shuffled, and of pieces of others."""
    config = {"books": train_bytes, "heldout": heldout_bytes, "page": PAGE}
    output = StageOutput.of(root, "shard", 1, config, {})
    if done := output.finished():
        return done
    pages: dict[str, list[tuple[str, str]]] = {"train": [], "heldout": []}
    for number, (name, text) in enumerate(sorted(_books())):
        pages["train" if number % 8 else "heldout"] += _pages(name, text)
    files, facts = [], {}
    for split, most in (("train", train_bytes), ("heldout", heldout_bytes)):
        random.Random(0).shuffle(pages[split])
        texts = _up_to(pages[split], most)
        name = f"{split}-00000.parquet"
        write_table(to_table([_document(*page) for page in texts], Document), output.path(name))
        files.append(describe_file(output.path(name), name, len(texts)))
        size = sum(len(text.encode()) for _, text in texts)
        facts[split] = {"docs": len(texts), "bytes": size}
    number = sum(part["docs"] for part in facts.values())
    return output.commit(files, Counts(number, number), started=0.0, facts=facts)


def _pages(name: str, text: str) -> Iterator[tuple[str, str]]:
    """Whole lines, PAGE characters of them or a line more."""
    page, size, number = list[str](), 0, 0
    for line in text.splitlines(keepends=True):
        page.append(line)
        size += len(line)
        if size >= PAGE:
            yield f"{name}#{number}", "".join(page)
            page, size, number = [], 0, number + 1
    if page:
        yield f"{name}#{number}", "".join(page)


def _books() -> Iterator[tuple[str, str]]:
    data = REPOSITORY / os.environ.get("FLYWHEEL_DATA", "../shared/data")
    with tarfile.open(data / "text" / "books.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(".md"):
                yield member.name, archive.extractfile(member).read().decode()


def _up_to(books: Sequence[tuple[str, str]], num_bytes: int) -> list[tuple[str, str]]:
    kept, room = [], num_bytes
    for name, text in books:
        kept.append((name, text[:room]))
        room -= len(text)
        if room <= 0:
            return kept
    return kept


def _document(name: str, text: str) -> Document:
    return Document(
        doc_id=name, url=f"file:///{name}", fetched_at=WHEN, warc_file="",
        warc_offset=0, payload_sha256="", http_status=200, content_type="text/markdown",
        extractor="benchmark", extractor_version="1", title=name, text=text,
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("THREADS", os.cpu_count() or 1)))
    sys.exit(main())
