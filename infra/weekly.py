"""`flywheel weekly`: from whatever labels there are to a model that is deployed if it is better.

Every step is a stage keyed by its inputs, so the job resumes where it was stopped and does
nothing when there are no new labels.
"""

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field

from eval.gate import GateConfig, run_gate
from eval.hygiene import HygieneConfig, run_hygiene
from eval.report import gate_rows
from eval.run import EvaluateConfig, evaluation_items, run_evaluate
from eval.win_rate import WinRateConfig, run_win_rate
from finetune.dpo import DpoConfig, run_dpo
from finetune.grpo import GrpoConfig, run_grpo
from finetune.ppo import PpoConfig, run_ppo
from finetune.registry import HISTORY, Registry
from finetune.rejection import RejectionConfig, run_rejection
from finetune.reward import RewardConfig, run_reward
from finetune.sft import SftConfig, run_sft
from infra.base import finished_base
from infra.tables import table
from labeling_app.export import run_labels
from labeling_app.store import LabelsConfig, open_store
from pipeline.core import storage
from pipeline.core.config import Config, Section
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest, WouldRun, is_planning, planning, read_manifest


class WeeklyConfig(Section):
    """[weekly]: which road's model challenges the champion. Fixed beforehand: choosing the best
    of three on the gate's own questions would be choosing noise."""

    challenger: Literal["sft", "rejection", "dpo", "ppo", "grpo"] = Field(
        "grpo", description="which model meets the champion"
    )
    base: str = Field(
        "",
        description="the model to finetune, as `flywheel import` names it; empty: the pretrained",
    )


@dataclasses.dataclass(frozen=True)
class Week:
    """`champion`, `challenger`, `base_scores` and `sft_scores` are evaluations; some may be one."""

    labels: Manifest
    hygiene: Manifest
    sft: Manifest
    reward: Manifest
    dpo: Manifest
    grpo: Manifest
    base_scores: Manifest
    sft_scores: Manifest
    champion: Manifest
    challenger: Manifest
    win_rate: Manifest
    gate: Manifest


def run_weekly(config: Config) -> Week:
    """One week. The champion that is challenged is the one that this candidate met first: a rerun
    after the promotion repeats nothing. Raises UserError."""
    registry = Registry(config.run.root)
    base_id = _base_of(config, registry)
    with _one_at_a_time(config.run.root):
        labels_config = config.section("labels", LabelsConfig)
        place = labels_config.store_url(config.run)
        if is_planning() and "://" not in place and not Path(place).exists():
            raise WouldRun("labels", place)  # opening the store would create it
        store = open_store(place)
        labels = run_labels(labels_config, store, config.run)
        if registry.pointer("champion") is None and not is_planning():
            registry.promote(base_id, "the first champion is the base model")
        week = _week(config, base_id, labels, registry)
        _deploy(registry, week.challenger.facts["model"], week.gate)
    return week


def finished_week(config: Config) -> Week:
    """The last decided week: the one whose candidate the `challenger` pointer names. Looked up and
    nothing more: no lock, no label store, nothing is written. Raises WouldRun if a stage of it is
    not done; UserError if there is no base model."""
    registry = Registry(config.run.root)
    candidate = registry.pointer("challenger")
    if candidate is None:
        raise WouldRun("weekly", storage.join(config.run.root, "gate"))
    digest = _labels_of(registry, candidate)
    with planning():
        base_id = _base_of(config, registry)
        return _week(config, base_id, _snapshot(config.run.root, digest), registry)


def _base_of(config: Config, registry: Registry) -> str:
    """Raises UserError if there is none, or if the model that is named is none."""
    base_id = config.section("weekly", WeeklyConfig).base
    if not base_id:
        return finished_base(config).model_id
    base_id = registry.whole_id(base_id)
    if (kind := registry.kind(base_id)) == "reward":
        raise UserError(f"weekly.base = {base_id} is a {kind} model; name a language model")
    return base_id


def _week(config: Config, base_id: str, labels: Manifest, registry: Registry) -> Week:
    run = config.run
    asked = evaluation_items(labels)
    hygiene = run_hygiene(config.section("hygiene", HygieneConfig), labels, asked, run)
    sft = run_sft(config.section("sft", SftConfig), base_id, labels, run, hygiene)
    sft_id = sft.facts["model_id"]
    reward = run_reward(config.section("reward", RewardConfig), base_id, labels, run, hygiene)
    reward_id = reward.facts["model_id"]
    dpo = run_dpo(config.section("dpo", DpoConfig), sft_id, labels, run, hygiene)
    grpo = run_grpo(config.section("grpo", GrpoConfig), sft_id, reward_id, labels, run, hygiene)
    road = config.section("weekly", WeeklyConfig).challenger
    if road == "ppo":
        section = config.section("ppo", PpoConfig)
        chosen = run_ppo(section, sft_id, reward_id, labels, run, hygiene)
    elif road == "rejection":
        section = config.section("rejection", RejectionConfig)
        best = run_rejection(section, sft_id, reward_id, labels, run)
        chosen = run_sft(config.section("sft", SftConfig), base_id, best, run, hygiene)
    else:
        chosen = {"sft": sft, "dpo": dpo, "grpo": grpo}[road]
    candidate = chosen.facts["model_id"]
    champion_id = _opponent(registry, candidate)
    evaluate = config.section("evaluate", EvaluateConfig)
    base_scores, sft_scores, champion, challenger = (
        run_evaluate(evaluate, model_id, registry, labels, run)
        for model_id in (base_id, sft_id, champion_id, candidate)
    )
    win_rate = run_win_rate(
        config.section("win_rate", WinRateConfig),
        champion_id,
        candidate,
        reward_id,
        registry,
        labels,
        run,
    )
    gate = run_gate(config.section("gate", GateConfig), champion, challenger, win_rate.facts, run)
    return Week(
        labels,
        hygiene,
        sft,
        reward,
        dpo,
        grpo,
        base_scores,
        sft_scores,
        champion,
        challenger,
        win_rate,
        gate,
    )


def _labels_of(registry: Registry, candidate: str) -> str:
    parents = registry.lineage(candidate).get("parents")
    if not isinstance(parents, dict) or "labels" not in parents:
        path = registry.root / "pointers" / "challenger"
        raise UserError(
            f"{path} names {candidate}, which no week has made; delete it and rerun"
            " `flywheel weekly`"
        )
    return str(cast(dict[str, Any], parents)["labels"])


def _snapshot(root: str, digest: str) -> Manifest:
    """The label snapshot with this content, or the one behind the sampled answers that have it;
    raises WouldRun if it is gone."""
    for stage in ("rejection", "labels"):
        for path in sorted((storage.local_path(root) / stage).glob("*/manifest.json")):
            if (found := read_manifest(str(path.parent))).content_hash == digest:
                return found if stage == "labels" else _snapshot(root, found.parents["labels"])
    raise WouldRun("labels", storage.join(root, "labels"))


def _opponent(registry: Registry, candidate: str) -> str:
    """The champion; or, for a candidate that already was champion, the one it replaced."""
    champion = registry.pointer("champion")
    if champion is None:
        raise UserError("there is no champion yet; run `flywheel pretrain` first")
    before: str | None = None
    for entry in registry.history():
        if entry["pointer"] == "champion":
            if entry["model"] == candidate and before is not None:
                return before
            before = entry["model"]
    if champion == candidate:
        path = registry.root / "pointers" / HISTORY
        raise UserError(
            f"{path} does not say which champion {candidate} replaced, so there is nothing to"
            " compare it with; put the file back, or put the one before it back with"
            " `flywheel rollback`"
        )
    return champion


def _deploy(registry: Registry, candidate: str, gate: Manifest) -> None:
    """Promote once: a model that was rolled back does not return without new labels."""
    champions = [e["model"] for e in registry.history() if e["pointer"] == "champion"]
    # The last line may be a promotion that a kill kept from happening: that one is done again.
    once_champion = candidate in champions[:-1] or registry.pointer("champion") == candidate
    if registry.pointer("challenger") != candidate:
        registry.point("challenger", candidate, f"gate: {gate.facts['verdict']}")
    if gate.facts["verdict"] == "promote" and not once_champion:
        registry.promote(candidate, f"gate {gate.key[:12]}: promote")


@contextlib.contextmanager
def _one_at_a_time(root: str) -> Generator[None]:
    path = storage.local_path(root) / ".weekly.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another `flywheel weekly` holds {path}; wait for its end") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def rollback(config: Config, reason: str) -> None:
    if not reason.strip():
        raise UserError("--reason is empty; say why, for who reads the history")
    registry = Registry(config.run.root)
    print(f"champion is now {registry.rollback(reason)[:12]}: {reason}")
    print(f"previous is {str(registry.pointer('previous'))[:12]}; a second rollback puts it back")


def show(week: Week) -> None:
    found = gate_rows(week.gate.facts)
    print(table(found.header, found.rows))
    print(f"\nverdict: {week.gate.facts['verdict']}")
    for reason in week.gate.facts["reasons"]:
        print(f"- {reason}")
    said = f"\nwritten in {week.gate.url}/decision.md"
    if week.gate.facts["verdict"] == "promote":
        said += "; `flywheel rollback` undoes a deployment"
    print(said)
