"""`flywheel whatif` and `flywheel train-quality`: thresholds and labels tried out."""

from collections.abc import Sequence

from infra import settings
from infra.corpus import stored_signals
from infra.corpus_inputs import agreeing
from infra.tables import table
from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.records import read_table
from pipeline.quality import SIGNALS, SIGNALS_VERSION
from pipeline.quality_rules import QualityConfig, what_if
from pipeline.train_quality import Recipe, evaluate, read_labelled, train


def show_what_if(path: str, overrides: Sequence[str]) -> None:
    """What the rules would drop if [quality] said so, beside what they dropped; from the stored
    signals, without a run. Raises UserError."""
    changes = [override for override in overrides if override.startswith("quality.")]
    if not changes:
        raise UserError(
            "say what of [quality] would be otherwise, as in flywheel whatif quality.min_words=100"
        )
    rest = [override for override in overrides if override not in changes]
    _, changed = agreeing(settings.load_run(path, overrides))
    for key in ("classifier", "blocked_domains_file"):
        if any(change.startswith(f"quality.{key}=") for change in changes):
            raise UserError(
                f"quality.{key} is a signal to measure: write it into {path}, run flywheel corpus,"
                " then ask again with other thresholds"
            )
    config = settings.load_run(path, rest)
    stored = stored_signals(config)
    before = {"kept": stored.counts.rows_out, **stored.counts.dropped}
    after = what_if(
        (
            read_table(stored.file_url(entry.name), SIGNALS, SIGNALS_VERSION)
            for entry in stored.files
        ),
        changed,
    )
    rows = [
        (reason, before.get(reason, 0), after.get(reason, 0), _signed(before, after, reason))
        for reason in ["kept", *sorted({*before, *after} - {"kept"})]
    ]
    print(table(("what became of it", "now", "then", "change"), rows))
    if stored.config != config.section("quality", QualityConfig).identity():
        print(f"\nnow: by the rules of the newest run, {stored.url}; not by those of {path}")


def _signed(before: dict[str, int], after: dict[str, int], reason: str) -> str:
    return f"{after.get(reason, 0) - before.get(reason, 0):+d}"


def train_classifier(sources: Sequence[str], target: str) -> None:
    """Write a classifier of the labelled texts to `target`, and say how good it is."""
    labelled = read_labelled(sources)
    recipe = Recipe()
    found = evaluate(labelled, recipe)
    storage.write_bytes(target, train(labelled, recipe).to_bytes())
    rows = [
        ("classifier, by cross-validation", f"{found.classifier:.3f}"),
        ("the rules' decision to keep", f"{found.heuristics:.3f}"),
        (f"best single signal ({found.best_signal_name})", f"{found.best_signal:.3f}"),
    ]
    print(table((f"AUC on {found.examples:,} labelled texts", "0.5 is chance"), rows))
    print(f"\nwrote {target}; use it with quality.classifier={target}")
