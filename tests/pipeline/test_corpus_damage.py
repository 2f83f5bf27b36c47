"""A corpus whose files are lost or changed: found by their hashes, made again, never trusted; and
full disks and killed workers."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from infra import cli, settings
from infra.corpus import run_corpus
from pipeline import trigger_scan
from pipeline.core.config import RunConfig
from pipeline.core.manifest import DamagedOutput, read_manifest
from pipeline.core.records import Document, read_table
from pipeline.core.remote import PoolRuntime
from pipeline.extract import ExtractConfig, run_extract
from tests.pipeline.test_corpus_bad_input import page

ROOT = Path(__file__).resolve().parents[2]
Record = Callable[..., bytes]
English = Callable[[int, int], str]


@pytest.fixture(scope="module")
def small(tmp_path_factory, english: English, warc_record: Record) -> tuple[Path, list[str]]:
    """Four WARC files of four pages, and the command that makes a corpus of them but for its
    root."""
    folder = tmp_path_factory.mktemp("small")
    for part in range(4):
        records = [
            warc_record(f"http://a.test/{part}/{n}", page(english(10 * part + n, 150)))
            for n in range(4)
        ]
        (folder / f"{part}.warc.gz").write_bytes(b"".join(records))
    config = str(ROOT / "infra" / "runs" / "laptop.toml")
    command = ["corpus", "--config", config, "run.backend=local", "run.workers=1"]
    command += [f'ingest.warcs=["{folder}/*.warc.gz"]', "quality.rules=[]", "quality.languages=[]"]
    command += ["extract.languages=[]"]
    assert cli.main([*command, f"run.root={folder}/data"]) == 0
    return folder / "data", command


def contents(root: Path) -> dict[str, dict[str, object]]:
    """By stage and key."""
    return {
        f"{path.parent.parent.name}/{path.parent.name}": read_manifest(str(path.parent)).content
        for path in root.glob("*/*/manifest.json")
    }


@pytest.mark.parametrize(
    ("stage", "name", "workers", "harm"),
    [
        ("extract", "docs-00001.parquet", 1, "gone"),
        pytest.param("extract", "docs-00001.parquet", 2, "flipped", marks=pytest.mark.long),
        ("quality", "signals-00002.parquet", 1, "gone"),
        ("quality", "signals-00002.parquet", 1, "flipped"),
        ("dedupe", "dedupe-00003.parquet", 1, "gone"),
        ("dedupe", "dedupe-00003.parquet", 1, "flipped"),
    ],
)
def test_a_corrupt_file_of_an_earlier_stage_is_made_again_and_never_used(
    small: tuple[Path, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    name: str,
    workers: int,
    harm: str,
) -> None:
    undisturbed, command = small
    root = tmp_path / "data"
    shutil.copytree(undisturbed, root)
    [path] = root.glob(f"{stage}/*/{name}")
    whole = path.read_bytes()
    at = whole.index(b"\x28\xb5\x2f\xfd") + 9  # in a page's zstd frame
    path.unlink()
    if harm == "flipped":
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    order = ["extract", "quality", "dedupe", "shard"]
    for later in order[order.index(stage) + 1 :]:
        shutil.rmtree(root / later)
    others = {
        file: file.stat().st_mtime_ns for file in path.parent.glob("*.parquet") if file != path
    }
    assert cli.main([*command, f"run.root={root}", f"run.workers={workers}"]) == 0
    assert f"{name} is missing or changed; it is made again" in capsys.readouterr().err
    assert path.read_bytes() == whole
    assert contents(root) == contents(undisturbed)
    if stage != "dedupe":  # which keeps no receipts once it is done
        assert {file: file.stat().st_mtime_ns for file in others} == others


SCAN = ("trigger_scan.enabled=true", "trigger_scan.sketch_bits=12")


@pytest.mark.parametrize("name", ["shard/*/train-00000.parquet", "trigger-scan/*/near.parquet"])
def test_what_nobody_reads_any_more_is_found_on_demand(
    small: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    undisturbed, command = small
    root = tmp_path / "data"
    shutil.copytree(undisturbed, root)
    command = [*command, f"run.root={root}", *(SCAN if "scan" in name else ())]
    assert cli.main(command) == 0
    before = contents(root)
    [path] = root.glob(name)
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    assert cli.main(command) == 0
    assert path.read_bytes() != whole
    assert cli.main([*command, "--verify"]) == 0
    assert f"{path.name} is missing or changed; it is made again" in capsys.readouterr().err
    assert path.read_bytes() == whole
    assert contents(root) == before


def test_a_scan_that_was_killed_and_lost_a_file_goes_on(
    small: tuple[Path, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "data"
    shutil.copytree(small[0], root)
    command = [*small[1], f"run.root={root}", *SCAN]
    with monkeypatch.context() as patched:
        patched.setattr(trigger_scan, "_add_up", _killed)
        with pytest.raises(KeyboardInterrupt):
            trigger_scan_of(command)
    [path] = root.glob("trigger-scan/*/ngrams-kept-00000.parquet")
    path.unlink()
    assert cli.main(command) == 0
    assert f"{path.name} is missing or changed; it is made again" in capsys.readouterr().err
    assert not path.exists()  # it was made again, and is not needed any more


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def trigger_scan_of(command: list[str]) -> None:
    """Past the command line's own answer to Ctrl-C."""
    run_corpus(settings.load_run(command[2], command[3:]))


def test_what_quality_wants_extract_must_let_through(
    small: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"run.root={tmp_path}", 'extract.languages=["en"]']
    for wanted in ('["zh","en"]', "[]"):
        assert cli.main([*small[1], *overrides, f"quality.languages={wanted}"]) == 2
        assert "give both the same" in capsys.readouterr().err


def test_a_corpus_of_which_an_earlier_one_has_all_is_empty_and_no_error(
    small: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [earlier] = small[0].glob("dedupe/*")
    overrides = [f"run.root={tmp_path}", f'dedupe.against=["{earlier}"]']
    assert cli.main([*small[1], *overrides]) == 0
    said = capsys.readouterr().out
    assert "train 0 bytes, heldout 0 bytes" in said
    assert "data card: " in said


def test_a_corrupt_shard_is_not_trained_on(small: tuple[Path, list[str]], tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(small[0], root)
    [path] = root.glob("shard/*/train-00000.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    with pytest.raises(DamagedOutput, match=r"train-00000.parquet is missing or changed; delete"):
        read_table(str(path), Document.NAME, Document.VERSION)
    path.write_bytes(whole)
    read_table(str(path), Document.NAME, Document.VERSION)


# --------------------------------------------------------------------------- disks and machines


@pytest.mark.parametrize(
    "limit",
    [700, pytest.param(3000, marks=pytest.mark.long), pytest.param(9000, marks=pytest.mark.long)],
)
def test_a_disk_that_fills_in_the_middle(
    small: tuple[Path, list[str]], tmp_path: Path, limit: int
) -> None:
    """Whatever file it is that has no room: one line, status 1, and the same command goes on."""
    undisturbed, command = small
    root = tmp_path / "data"
    script = (
        "import resource, signal, sys\n"
        "from infra import cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    full = subprocess.run(
        [sys.executable, "-c", script, *command, f"run.root={root}"],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": ""},
        capture_output=True,
        text=True,
    )
    assert full.returncode == 1, full.stderr
    assert "no space left" in full.stderr.splitlines()[-1]
    assert "Traceback" not in full.stderr
    assert cli.main([*command, f"run.root={root}"]) == 0
    assert contents(root) == contents(undisturbed)


@pytest.mark.long
def test_a_worker_that_is_killed(small: tuple[Path, list[str]], tmp_path: Path) -> None:
    undisturbed, _ = small
    root = tmp_path / "data"
    source = next(undisturbed.glob("ingest/*"))
    shutil.copytree(source, root / "ingest" / source.name)
    runtime = PoolRuntime(2)
    me, killed = psutil.Process(), []

    def kill_one() -> None:
        while not any(root.glob("extract/*/*.done.json")):
            time.sleep(0.01)
        workers = [child for child in me.children() if "spawn_main" in " ".join(child.cmdline())]
        os.kill(workers[0].pid, signal.SIGKILL)
        killed.append(workers[0].pid)

    murderer = threading.Thread(target=kill_one)
    murderer.start()
    config = ExtractConfig()
    manifest = run_extract(config, read_manifest(str(source)), RunConfig(root=str(root)), runtime)
    murderer.join()
    runtime.close()
    assert killed
    expected = next(undisturbed.glob("extract/*"))
    assert manifest.content == read_manifest(str(expected)).content
