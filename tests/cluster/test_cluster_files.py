"""The cluster files: what Ray's own validation accepts, and what it would let pass."""

import copy
import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = ("cluster.yaml", "cluster-local.yaml")
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
# What a command takes from the machine it runs on, and `ray get-auth-token` makes.
MADE_BY_THE_USER = {"~/.ray/auth_token"}

Config = dict[str, Any]


def _load(name: str) -> Config:
    return yaml.safe_load((REPOSITORY / "infra" / name).read_text())


def _faults(config: Config) -> list[str]:
    """What Ray would find out too late, or never."""
    return [
        *_start_faults(config),
        *_mount_faults(config),
        *_node_type_faults(config),
        *_version_faults(config),
    ]


def _start_faults(config: Config) -> Iterator[str]:
    for name, wanted in (
        ("head_start_ray_commands", ("--head", "--num-cpus=0", "--dashboard-host=127.0.0.1")),
        ("worker_start_ray_commands", ("--address=$RAY_HEAD_IP:6379",)),
    ):
        if name not in config:
            yield f"{name} is Ray's own"
            continue
        starts = [line for line in config[name] if "ray start" in line]
        if len(starts) != 1:
            yield f"{name} starts Ray {len(starts)} times"
        for line, word in itertools.product(starts, ("RAY_AUTH_MODE=token ", *wanted)):
            if word not in line:
                yield f"{name} lacks {word}"
    for line in _lines(config):
        if "0.0.0.0" in line:
            yield f"open to everyone: {line}"
    if not any(re.search(r"chmod 600 ~/\.ray/auth_token", line) for line in _lines(config)):
        yield "the token can be read by everyone on the node"


def _mount_faults(config: Config) -> Iterator[str]:
    mounts = config.get("file_mounts", {})
    for place, source in mounts.items():
        if place.rstrip("/") in ("~", "$HOME"):
            yield "a mount straight into ~ would win over the code in ~/app"
        if source not in MADE_BY_THE_USER and not (REPOSITORY / source).exists():
            yield f"no {source} to mount"
    if mounts.get("~/app") != "." or "~/.ray/auth_token" not in mounts:
        yield "code or token is not mounted"
    if not {".git", ".venv", "data"} <= set(config.get("rsync_exclude", ())):
        yield "the history, the environment or the data would travel too"


def _node_type_faults(config: Config) -> Iterator[str]:
    if "head_node" in config or "worker_nodes" in config:
        yield "the old form, which Ray drops or misreads"
    if config["provider"]["type"] == "local":
        return
    types = config.get("available_node_types", {})
    for name, node_type in types.items():
        is_head = name == config["head_node_type"]
        spot = node_type["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        if "CPU" not in node_type.get("resources", {}):
            yield f"{name} does not say its resources"
        if is_head and (node_type.get("resources") != {"CPU": 0} or spot):
            yield f"{name} is the head: no CPU, and not on a spot machine"
        if not is_head and not spot:
            yield f"{name} is not on spot machines"
        if node_type["node_config"].get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield f"{name} gives its credentials to who asks"
    if not 0 < config.get("idle_timeout_minutes", 0) <= 60 or "max_workers" not in config:
        yield "idle machines would stay"


def _version_faults(config: Config) -> Iterator[str]:
    pinned = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split())
    text = "\n".join(_lines(config))
    for name, version in re.findall(r"([\w-]+)==([\w.]+)", text):
        if pinned.get(name, version) != version:
            yield f"{name}=={version} is not what constraints.txt says"
    for line in _lines(config):
        for install in re.findall(r"pip install ([^&|]*)", line):
            if "-c ~/app/constraints.txt" not in install:
                yield f"unpinned: {install.strip()}"
    supported = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    low, high = re.findall(r"3\.(\d+)", supported["requires-python"])
    for minor in re.findall(r"python3\.(\d+)", text):
        if not int(low) <= int(minor) < int(high):
            yield f"python3.{minor} is not {supported['requires-python']}"
    if "ray-wheels" in text or "nightly" in text:
        yield "a nightly Ray"


def _lines(config: Config) -> list[str]:
    return [line for name in COMMANDS for line in config.get(name, ())]


@pytest.mark.parametrize("name", FILES)
def test_ray_and_we_find_no_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(REPOSITORY)  # mounts are looked up from where `ray up` is typed
    config = _load(name)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert _faults(config) == []
    for own in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert prepared[own] == config[own]
    with pytest.raises(Exception, match="max_wrkers"):
        validate_config(prepare_config({**config, "max_wrkers": 2}))


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda c: c.pop("head_start_ray_commands"), "head_start_ray_commands is Ray's own"),
        (lambda c: c.pop("worker_start_ray_commands"), "worker_start_ray_commands is Ray's own"),
        (
            lambda c: c["head_start_ray_commands"].append("ray start --dashboard-host=0.0.0.0"),
            "open to everyone",
        ),
        (
            lambda c: c.update(worker_start_ray_commands=["ray start --address=$RAY_HEAD_IP:6379"]),
            "worker_start_ray_commands lacks RAY_AUTH_MODE=token",
        ),
        (lambda c: c["setup_commands"].pop(0), "the token can be read"),
        (lambda c: c["file_mounts"].update({"~/data": "no-such-folder"}), "no no-such-folder"),
        (lambda c: c["file_mounts"].update({"~/": "."}), "straight into ~"),
        (lambda c: c["file_mounts"].pop("~/app"), "code or token is not mounted"),
        (lambda c: c["rsync_exclude"].remove("data"), "would travel too"),
        (lambda c: c.update(head_node={}), "the old form"),
        (lambda c: c["available_node_types"]["worker"].pop("resources"), "its resources"),
        (lambda c: c["available_node_types"]["head"].update(resources={"CPU": 4}), "no CPU"),
        (
            lambda c: c["available_node_types"]["worker"]["node_config"].pop(
                "InstanceMarketOptions"
            ),
            "not on spot machines",
        ),
        (lambda c: c.update(idle_timeout_minutes=0), "idle machines would stay"),
        (
            lambda c: c["setup_commands"].append("pip install -c ~/app/constraints.txt ray==2.9.0"),
            "ray==2.9.0 is not what constraints.txt says",
        ),
        (lambda c: c["setup_commands"].append("~/venv/bin/pip install boto3"), "unpinned: boto3"),
        (lambda c: c["setup_commands"].append("python3.9 -m venv ~/venv"), "python3.9 is not"),
    ],
)
def test_each_fault_is_found(spoil: Any, fault: str) -> None:
    config = copy.deepcopy(_load("cluster.yaml"))
    spoil(config)
    assert any(fault in found for found in _faults(config)), _faults(config)


@pytest.mark.parametrize("name", FILES)
def test_what_the_comments_tell_to_type_names_files_that_are_there(name: str) -> None:
    text = (REPOSITORY / "infra" / name).read_text()
    named = set(re.findall(r"(?:infra|pipeline|tests)/[\w/.-]+\.(?:yaml|py|toml)", text))
    assert f"infra/{name}" in named
    assert {file for file in named if not (REPOSITORY / file).exists()} == set()
