"""Train pipeline/main_content.npz, and say by cross-validation what it is worth.

    uv run --no-sync --with lightgbm==4.7.0 python benchmarks/train_extract.py [--folds 4] [--out FOLDER]

WCXB's development pages (CC-BY-4.0 annotations) are split by host, so that no site stands on both
sides. Every part that one model gives another (log odds of words, first chances, page types) is
made for a page by a model that has not seen it. Only weights are kept, no text.
"""

import argparse
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightgbm
import numpy as np
from extract_pages import fold_of
from train_extract_pages import Page, cached_pages

from pipeline.block_features import Measured, measure
from pipeline.boosted_trees import Trees
from pipeline.main_content import MODEL, Model, best_blocks, judge, second_features
from pipeline.page_blocks import MARKUP_BUCKETS, WORD_BUCKETS
from pipeline.page_context import context_of
from pipeline.page_types import PAGE_TYPES, type_features

VERSION = "3"  # of the weights
SEED = 20
SCALES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# On documentation F1 is the same from 0.7 to 1.15: what it costs in precision it gains in recall.
OF_TYPE = {"documentation": 1.15}
BLOCKS = {
    "objective": "cross_entropy", "learning_rate": 0.1, "num_leaves": 31, "min_data_in_leaf": 40,
    "feature_fraction": 0.4, "bagging_fraction": 0.7, "bagging_freq": 1, "lambda_l2": 5,
    "extra_trees": True, "max_bin": 63, "num_threads": 1, "seed": SEED, "deterministic": True, "verbosity": -1,
}  # fmt: skip
TYPES = {
    "objective": "multiclass", "num_class": len(PAGE_TYPES), "learning_rate": 0.06,
    "num_leaves": 8, "min_data_in_leaf": 10, "feature_fraction": 0.3, "bagging_fraction": 0.7,
    "bagging_freq": 1, "lambda_l2": 5, "num_threads": 1, "seed": SEED, "deterministic": True,
    "verbosity": -1,
}  # fmt: skip
ROUNDS = {"first": 150, "second": 130, "types": 80}
INNER = 2  # parts in which the first chances of training pages are made


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A model, and for each page it was fitted on the chances of models that did not see it."""

    model: Model
    first_unseen: list[np.ndarray]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, default=4, help="of the cross-validation; 0: none")
    parser.add_argument("--out", type=Path, help="also keep the folds' models there")
    parser.add_argument("--cache", type=Path, help="file that keeps the parsed pages")
    parser.add_argument("--only-folds", action="store_true", help="leave the bundled model alone")
    arguments = parser.parse_args(argv)
    started = time.time()
    pages = cached_pages(arguments.cache)
    print(f"{len(pages)} pages in {time.time() - started:.0f} s", flush=True)
    scores: dict[str, dict[str, float]] = {"fast": {}, "thorough": {}}
    for fold in range(arguments.folds):
        inside = [page for page in pages if fold_of(page.host, arguments.folds) != fold]
        fitted = fit(inside, f"fold-{fold}")
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(arguments.out / f"fold-{fold}.npz", **fitted.model.to_arrays())
        outside = [page for page in pages if fold_of(page.host, arguments.folds) == fold]
        right = 0
        for page in outside:
            for name, value, kind in judge_page(page, fitted.model):
                scores[name][page.name] = value
                right += kind == page.kind
        print(f"fold {fold}: types right {right / len(outside):.3f}", flush=True)
        for name, values in scores.items():
            print(table(name, values, outside), f"{time.time() - started:.0f} s", flush=True)
    if arguments.folds:
        for name, values in scores.items():
            print(table(name, values, pages))
    if not arguments.only_folds:
        np.savez_compressed(MODEL, **fit(pages, VERSION).model.to_arrays())
        print(f"{MODEL.stat().st_size:,} bytes in {MODEL}, {time.time() - started:.0f} s")
    return 0


def judge_page(page: Page, model: Model) -> Iterator[tuple[str, float, str]]:
    """(engine, F1, page type) as the pipeline judges."""
    measured = measure(page.tree, page.blocks, page.inherited, model.markup_odds, model.word_odds)
    for name, thorough in (("fast", False), ("thorough", True)):
        if not len(page.words):
            yield name, 0.0, ""
            continue
        judged = judge(page.tree, page.blocks, measured, model, thorough=thorough)
        yield name, score(page, judged.likely, judged.scale), judged.page_type


def table(name: str, scores: dict[str, float], pages: Sequence[Page]) -> str:
    parts = [f"{name:9s} {np.mean([scores[page.name] for page in pages]):.4f}"]
    for kind in PAGE_TYPES:
        values = [scores[page.name] for page in pages if page.kind == kind]
        parts.append(f"{kind} {np.mean(values):.3f}" if values else f"{kind} -")
    return "  ".join(parts)


# ------------------------------------------------------------------------------------ fitting


def fit(pages: Sequence[Page], version: str) -> Fitted:
    parts = np.random.default_rng(SEED).integers(0, INNER, len(pages))
    measured, odds = measure_unseen(pages)
    first_unseen: list[np.ndarray] = [np.zeros(0)] * len(pages)
    for part in range(INNER):
        inside = [n for n in range(len(pages)) if parts[n] != part]
        booster = boost([pages[n] for n in inside], [measured[n].features for n in inside], "first")
        for n in np.flatnonzero(parts == part):
            first_unseen[n] = predict(booster, measured[n].features)
    first = boost(pages, [one.features for one in measured], "first")
    scale = best_scale(pages, first_unseen)
    types, type_shares, by_type = fit_types(pages, measured, first_unseen)
    rows = [
        second_features(
            one.features,
            context_of(chance, page.words, page.blocks.parent, page.tree.parent, one.forms, one.up),
            shares,
        )
        for page, one, chance, shares in zip(
            pages, measured, first_unseen, type_shares, strict=True
        )
    ]
    second = boost(pages, rows, "second")
    model = Model(
        odds[0], odds[1], by_type, to_trees(first), to_trees(second), to_trees(types),
        np.array([OF_TYPE.get(kind, scale) for kind in PAGE_TYPES]), version,
    )  # fmt: skip
    return Fitted(model, first_unseen)


def measure_unseen(pages: Sequence[Page]) -> tuple[list[Measured], tuple[np.ndarray, np.ndarray]]:
    """Features by log odds of other pages; and the log odds of all."""
    parts = np.random.default_rng(SEED + 1).integers(0, 5, len(pages))
    found: list[Measured | None] = [None] * len(pages)
    for part in range(5):
        odds = log_odds([page for page, p in zip(pages, parts, strict=True) if p != part])
        for n in np.flatnonzero(parts == part):
            page = pages[n]
            found[n] = measure(page.tree, page.blocks, page.inherited, *odds)
    return [one for one in found if one is not None], log_odds(pages)


def log_odds(pages: Sequence[Page], prior: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Of main content, by bucket of markup words and of text words; each page has one vote."""
    markup = np.zeros((2, MARKUP_BUCKETS))
    texts = np.zeros((2, WORD_BUCKETS))
    for page in pages:
        blocks, tree = page.blocks, page.tree
        if not len(page.words):
            continue
        mass = np.zeros((2, len(tree.tag) + 1))
        np.add.at(mass[0], blocks.parent + 1, page.goal * page.words)
        np.add.at(mass[1], blocks.parent + 1, (1 - page.goal) * page.words)
        sums = np.cumsum(mass, axis=1)
        inside = sums[:, tree.end] - sums[:, :-1]
        element = np.repeat(np.arange(len(tree.tag)), np.diff(blocks.markup_at))
        vote(markup, blocks.markup, inside[:, element])
        short = page.words <= blocks.words.shape[1]
        buckets = blocks.words[short]
        goals = np.broadcast_to(page.goal[short][:, None], buckets.shape)[buckets >= 0]
        vote(texts, buckets[buckets >= 0], np.stack([goals, 1 - goals]))
    results = []
    for votes in (markup, texts):
        share = votes[0].sum() / votes.sum()
        ratio = (votes[0] + prior * share) / (votes[1] + prior * (1 - share))
        results.append((np.log(ratio) - np.log(share / (1 - share))).astype(np.float16))
    return results[0].astype(np.float32), results[1].astype(np.float32)


def vote(votes: np.ndarray, buckets: np.ndarray, weights: np.ndarray) -> None:
    sums = [np.bincount(buckets, weights=row, minlength=votes.shape[1]) for row in weights]
    total = sums[0] + sums[1]
    seen = total > 0
    votes[0, seen] += sums[0][seen] / total[seen]
    votes[1, seen] += sums[1][seen] / total[seen]


def weights_of(page: Page) -> np.ndarray:
    """Long blocks count more, long pages a little more than short ones."""
    roots = np.sqrt(page.words) + 0.3
    return roots / max(1.0, roots.sum()) ** 0.7


def boost(pages: Sequence[Page], features: Sequence[np.ndarray], name: str) -> lightgbm.Booster:
    data = lightgbm.Dataset(
        np.concatenate(features),
        np.clip(np.concatenate([page.goal for page in pages]), 0, 1),
        weight=np.concatenate([weights_of(page) for page in pages]),
    )
    return lightgbm.train(BLOCKS, data, ROUNDS[name])


def predict(booster: lightgbm.Booster, features: np.ndarray) -> np.ndarray:
    return booster.predict(features) if len(features) else np.zeros(0)


def best_scale(pages: Sequence[Page], chances: Sequence[np.ndarray]) -> float:
    means = [
        np.mean([score(page, chance, scale) for page, chance in zip(pages, chances, strict=True)])
        for scale in SCALES
    ]
    print("scale", {s: round(float(m), 4) for s, m in zip(SCALES, means, strict=True)}, flush=True)
    return SCALES[int(np.argmax(means))]


def score(page: Page, chances: np.ndarray, scale: float) -> float:
    """F1 of the words of the chosen blocks."""
    if not len(chances):
        return 0.0
    chosen, _ = best_blocks(chances, page.words, scale)
    taken: Counter[str] = Counter()
    for block in np.flatnonzero(chosen):
        taken.update(page.counts[block])
    return word_f1(taken, page.gold)


def word_f1(taken: Counter[str], gold: Counter[str]) -> float:
    shared = sum((taken & gold).values())
    return 2 * shared / (sum(taken.values()) + sum(gold.values())) if shared else 0.0


def fit_types(
    pages: Sequence[Page], measured: Sequence[Measured], chances: Sequence[np.ndarray]
) -> tuple[lightgbm.Booster, np.ndarray, np.ndarray]:
    """The classifier, its answers for pages it did not see, and the log odds of markup by type."""
    parts = np.random.default_rng(SEED + 2).integers(0, 5, len(pages))
    kinds = np.array([PAGE_TYPES.index(page.kind) for page in pages])

    def row(n: int, by_type: np.ndarray) -> np.ndarray:
        page = pages[n]
        return type_features(
            measured[n].features, page.words, chances[n], page.blocks.markup, by_type
        )

    rows: dict[int, np.ndarray] = {}
    for part in range(5):
        by_type = markup_by_type([pages[n] for n in np.flatnonzero(parts != part)])
        for n in np.flatnonzero(parts == part):
            rows[n] = row(n, by_type)
    table = np.array([rows[n] for n in range(len(pages))])
    shares = np.zeros((len(pages), len(PAGE_TYPES)))
    for part in range(5):
        data = lightgbm.Dataset(table[parts != part], kinds[parts != part])
        shares[parts == part] = lightgbm.train(TYPES, data, ROUNDS["types"]).predict(
            table[parts == part]
        )
    booster = lightgbm.train(TYPES, lightgbm.Dataset(table, kinds), ROUNDS["types"])
    return booster, shares, markup_by_type(pages)


def markup_by_type(pages: Sequence[Page]) -> np.ndarray:
    counts = np.zeros((len(PAGE_TYPES), MARKUP_BUCKETS))
    totals = np.zeros(len(PAGE_TYPES))
    for page in pages:
        kind = PAGE_TYPES.index(page.kind)
        counts[kind, np.unique(page.blocks.markup)] += 1
        totals[kind] += 1
    prior = counts.sum(axis=0) / totals.sum()
    smoothed = (counts + 2 * prior + 0.02) / (totals[:, None] + 2.02)
    return (np.log(smoothed) - np.log(prior + 0.01)).astype(np.float16).astype(np.float32)


def to_trees(booster: lightgbm.Booster) -> Trees:
    """The same answers as LightGBM's for float32 features: thresholds are rounded down."""
    nodes: list[tuple[int, float, int, int]] = []
    leaves: list[float] = []
    dump = booster.dump_model()

    def add(tree: dict) -> int:
        if "leaf_value" in tree:
            leaves.append(tree["leaf_value"])
            return -len(leaves)
        number = len(nodes)
        nodes.append((0, 0.0, 0, 0))
        left, right = add(tree["left_child"]), add(tree["right_child"])
        nodes[number] = (tree["split_feature"], tree["threshold"], left, right)
        return number

    roots = [add(tree["tree_structure"]) for tree in dump["tree_info"]]
    thresholds = np.array([node[1] for node in nodes])
    rounded = thresholds.astype(np.float32)
    too_high = rounded.astype(np.float64) > thresholds
    rounded[too_high] = np.nextafter(rounded[too_high], np.float32(-np.inf))
    columns = [np.array([node[k] for node in nodes], np.int16) for k in (0, 2, 3)]
    return Trees(
        columns[0], rounded, columns[1], columns[2], np.array(leaves, np.float32),
        np.array(roots, np.int16), dump["num_class"],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
