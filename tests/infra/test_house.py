"""The command line and the cluster file, as a new user meets them."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infra import cli, desk, labels, settings
from pipeline.core.config import load_config
from pipeline.core.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]


def _flywheel(*arguments: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **kwargs,
    )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, json\nfrom infra import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    loaded = set(json.loads(result.stdout.splitlines()[-1]))
    assert not loaded & {"torch", "ray", "streamlit", "transformers", "pyarrow", "pydantic"}


def test_help_names_every_command() -> None:
    text = _flywheel("--help").stdout
    for name in (
        "crawl",
        "corpus",
        "pretrain",
        "labels",
        "app",
        "weekly",
        "serve",
        "chat",
        "report",
        "rollback",
        "demo",
        "site",
    ):
        assert f"\n  {name} " in text
        assert "usage: flywheel" in _flywheel(name, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["corpus", "--config", "nowhere.toml"], "no config file 'nowhere.toml'"),
        (["corpus", "crawl.sedes=[]"], "unknown key crawl.sedes; did you mean 'seeds'?"),
        (["corpus", "sft.epocs=3"], "unknown key sft.epocs; did you mean 'epochs'?"),
        (["corpus", "crawl.seeds=[]"], "give either crawl.seeds or [ingest]"),
        (["corpus", "crawl.seeds=[]", 'ingest.warcs=["/no/such.warc.gz"]'], "/no/such.warc.gz"),
        (["pretrain", "run.root=/tmp/flywheel-no-such-root"], "run `flywheel corpus`"),
        (["chat", "--ask", "hi", "serve.port=9"], "nothing answers at http://127.0.0.1:9"),
        (["chat", "--ask", " "], "--ask is empty"),
        (["chat", "--ask", "hi", "--thumbs-down", ""], "--thumbs-down is empty"),
        (["rollback", "--reason", ""], "--reason is empty"),
        (["labels", "export", "--to", ""], "--to is empty"),
        (["labels", "queue", "run.root=s3://x/y"], "set labels.store to a database URL"),
        (["corpus", "run.root=foo://x"], "'foo://x/"),
        (["pretrain", "run.root=s3://x/y"], "s3://x/y"),
        (["weekly", "run.root=s3://x/y"], "s3://x/y"),
        (["report", "run.root=s3://x/y"], "s3://x/y"),
        (["serve", "run.root=s3://x/y", "serve.port=0"], "s3://x/y"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert cli.main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.strip().splitlines()) == 1


def test_a_mistake_ends_the_process_with_status_2() -> None:
    result = _flywheel("corpus", "--config", "nowhere.toml")
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "place", ["file", "file/below", "nowhere/\0", "long/" + "x" * 300, "taken"]
)
def test_labels_are_exported_to_a_folder_or_not_at_all(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("here before")
    (tmp_path / "taken" / "conversations.parquet").mkdir(parents=True)
    config = load_config(cli.DEMO_CONFIG, [f"run.root={tmp_path}/data"])
    with pytest.raises(UserError, match=r"cannot write labels to .* name a folder") as caught:
        labels.export_to(config, str(tmp_path / place), (), "", "", False)
    assert repr(str(tmp_path / place)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "here before"


def test_the_app_names_its_address_once_it_has_it(tmp_path: Path, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        overrides = [f"run.root={tmp_path}/data", f"labels.port={port}"]
        with pytest.raises(UserError, match=f"cannot serve the labeling app at 127.0.0.1:{port}"):
            desk.run_app(load_config(cli.DEMO_CONFIG, overrides))
    assert capsys.readouterr().out == ""


def test_ctrl_c_says_how_to_go_on_and_ends_with_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.cli", "site", "site.port=8699"]
    child = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert b"pages at" in child.stdout.readline()
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 130
    assert errors.decode().strip() == "flywheel: stopped; the same command goes on from here"


def test_a_dry_run_does_nothing(tmp_path: Path) -> None:
    result = _flywheel("corpus", "--dry-run", f"run.root={tmp_path}/data")
    assert result.returncode == 0, result.stderr
    assert "next: crawl" in result.stdout
    assert not (tmp_path / "data").exists()


def test_a_full_disk_is_said_in_one_line() -> None:
    code = (
        "import sys, errno; from infra import cli\n"
        "def full(_): raise OSError(errno.ENOSPC, 'no space', 'data/x')\n"
        "cli._report = full\nsys.exit(cli.main(['report']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert result.returncode == 1
    assert "no space left for data/x; free some and rerun" in result.stderr


FULL = """
import resource, sys
from pathlib import Path
import torch
from infra import cli
from finetune.checkpoint import State, save_checkpoint
from finetune.model import ModelConfig, new_model
from finetune.registry import Registry
from finetune.tokenizer import TokenizerConfig, train_bpe
from sqlalchemy import create_engine, text

folder = Path(sys.argv[2])
tokenizer = train_bpe(iter(["a text to learn from"] * 9), TokenizerConfig(vocab_size=512))
model = new_model(ModelConfig(), tokenizer, 0)
def checkpoint(_):
    save_checkpoint(folder, State(1, model.state_dict(), {}, {}, {}))
def publish(_):
    Registry(str(folder)).publish(model, tokenizer, {})
def store(_):
    with create_engine(f"sqlite:///{folder}/labels.db").begin() as connection:
        connection.execute(text("PRAGMA max_page_count = 4"))
        connection.execute(text("CREATE TABLE t AS SELECT zeroblob(100000)"))
# Of the process's own limits, the one that a write meets as it meets a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
cli._report = globals()[sys.argv[1]]
sys.exit(cli.main(["report"]))
"""


@pytest.mark.parametrize("writer", ["checkpoint", "publish", "store"])
def test_a_library_that_meets_a_full_disk_gives_one_line_too(writer, tmp_path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FULL, writer, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert "no space left for" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    left = [p for p in tmp_path.rglob("*") if p.is_file() and "labels.db" not in p.name]
    assert left == []


def test_config_tells_every_key() -> None:
    result = _flywheel("config", "--section", "crawl", "crawl.max_pages=7")
    assert result.returncode == 0, result.stderr
    assert re.search(r"max_pages +7 ", result.stdout)
    assert "[crawl]" in result.stdout
    assert "[sft]" not in result.stdout
    assert "no section [crwl]" in _flywheel("config", "--section", "crwl").stderr


def test_every_key_says_what_it_means() -> None:
    silent = [
        f"{name}.{key}"
        for name in settings.SECTIONS
        for key, field in settings.model_of(name).model_fields.items()
        if not field.description
    ]
    assert silent == []


def test_a_misspelt_key_of_a_section_that_is_not_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        '[crawl]\nseeds = ["http://127.0.0.1:1/"]\n[shard]\nbots = 1'
    )
    result = _flywheel("site", "--config", str(tmp_path / "run.toml"))
    assert result.returncode == 2, result.stderr
    assert "unknown key shard.bots" in result.stderr


def test_the_cluster_file_passes_rays_own_validation(monkeypatch) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(REPOSITORY)
    config = yaml.safe_load((REPOSITORY / "infra/cluster.yaml").read_text())
    validate_config(prepare_config(config))
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert any("ray start" in line for line in config[commands])  # never Ray's defaults
    with pytest.raises(Exception, match="max_wrkers"):
        validate_config(prepare_config({**config, "max_wrkers": 2}))


def test_no_module_shadows_the_standard_library() -> None:
    ours = {
        p.stem
        for room in ("pipeline", "labeling_app", "finetune", "eval", "infra")
        for p in (REPOSITORY / room).rglob("*.py")
    } - {"__init__"}
    assert not ours & sys.stdlib_module_names


def test_the_readmes_map_names_every_file_and_no_other() -> None:
    text = (REPOSITORY / "README.md").read_text()
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in tracked:
        if (
            name.endswith(".py")
            and not name.startswith("tests/")
            and Path(name).name != "__init__.py"
        ):
            assert f"`{Path(name).name}`" in text, f"{name} is not in README's map"
