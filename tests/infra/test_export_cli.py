"""`flywheel export` and `flywheel import`, as a user meets them."""

import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune.model import ModelConfig, new_model
from finetune.registry import Registry
from finetune.tokenizer import TokenizerConfig, train_bpe
from infra import cli


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A run with one model, the champion."""
    root = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    tokenizer = train_bpe(iter(["the heap keeps order "] * 9), TokenizerConfig(vocab_size=340))
    shape = ModelConfig(hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48)
    registry = Registry(str(root))
    identity = registry.publish(new_model(shape, tokenizer, 0), tokenizer, {"kind": "sft"})
    registry.promote(identity, "a test")
    return root


@pytest.fixture
def flywheel(root: Path, capsys):
    """flywheel(…) is (status, what it said, its errors)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = cli.main([*arguments, f"run.root={root}"])
        return status, *capsys.readouterr()

    return call


def test_every_form_leaves_by_name_and_says_how_to_run_it(flywheel, root, tmp_path) -> None:
    identity = Registry(str(root)).pointer("champion")
    files = {
        "hugging-face": ("champion", {"config.json", "model.safetensors", "tokenizer.json"}),
        "gguf": (identity, {"model.gguf"}),
        "llama2c": (identity[:8], {"model.bin", "tokenizer.bin"}),
        "two-files": ("champion", {"parameters.bin", "run.py"}),
    }
    for form, (name, wanted) in files.items():
        status, said, errors = flywheel("export", form, name, str(tmp_path / form))
        assert (status, errors) == (0, "")
        assert f"model {identity[:12]} as" in said
        assert str(tmp_path / form) in said.splitlines()[-1]
        assert wanted <= {p.name for p in (tmp_path / form).iterdir()}
    command = [sys.executable, "-I", str(tmp_path / "two-files" / "run.py"), "--prompt", "heap"]
    assert subprocess.run(command, check=True, capture_output=True).stdout.endswith(b"\n")
    AutoModelForCausalLM.from_pretrained(tmp_path / "hugging-face")
    assert (
        flywheel("export", "gguf", "champion", str(tmp_path / "q"), "--precision", "q8_0")[0] == 0
    )
    kinds = {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "q" / "model.gguf").tensors}
    assert kinds == {"F32", "Q8_0", "F16"}  # norms; rows of 32; rows of 48


def test_what_left_comes_back_as_a_base_model(flywheel, root, tmp_path) -> None:
    assert flywheel("export", "hugging-face", "champion", str(tmp_path / "out"))[0] == 0
    status, said, _ = flywheel("import", str(tmp_path / "out"))
    assert status == 0
    registry = Registry(str(root))
    assert registry.kind(said.strip()) == "base"
    assert flywheel("import", str(tmp_path / "out"))[1] == said
    registry.verified(said.strip())


def test_a_llama2c_model_is_imported_with_the_tokenizer_beside_it(
    flywheel, root, shared_data, tmp_path
) -> None:
    folder = next(shared_data("models/stories260K").rglob("stories260K.bin")).parent
    status, said, errors = flywheel("import", str(folder / "stories260K.bin"))
    assert status == 0
    assert errors == f"finetune it: flywheel weekly weekly.base={said}"
    named = flywheel(
        "import", str(folder / "stories260K.bin"), "--tokenizer", str(folder / "tok512.bin")
    )
    assert named[1] == said
    assert flywheel("export", "two-files", said.strip(), str(tmp_path / "out"))[0] == 0
    command = [sys.executable, "-I", str(tmp_path / "out" / "run.py"), "--temperature", "0"]
    told = subprocess.run([*command, "--prompt", ""], check=True, capture_output=True, text=True)
    assert told.stdout.startswith("Once upon a time, there was a little girl named Lily.")


def test_mistakes_are_one_line_and_status_2(flywheel, tmp_path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x" * 99)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    out = str(tmp_path / "out")
    cases = [
        (["export", "gguf", "nobody", out], "no model is called 'nobody'"),
        (["export", "gguf", "challenger", out], "there is no challenger yet"),
        (["export", "two-files", "champion", str(tmp_path / "full")], "is there already"),
        (["export", "llama2c", "champion", "/proc/nowhere/x"], "cannot write to '/proc/nowhere/x'"),
        (["export", "llama2c", "champion", out, "sft.epocs=1"], "unknown key sft.epocs"),
        (["import", str(tmp_path / "nowhere")], "no file or folder"),
        (["import", str(tmp_path / "full")], "no config.json"),
        (["import", str(tmp_path / "full"), "--tokenizer", "x"], "--tokenizer is for a llama2.c"),
        (["import", str(tmp_path / "model.bin")], "which tokenizer?"),
        (["import", str(tmp_path / "model.bin"), "--tokenizer", "/nowhere"], "no llama2.c model"),
    ]
    for arguments, message in cases:
        status, said, errors = flywheel(*arguments)
        assert (status, said) == (2, ""), arguments
        assert message in errors
        assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_help_teaches_the_forms_and_loads_nothing_heavy(capsys) -> None:
    for arguments, wanted in (
        (["--help"], ("\n  export ", "\n  import ")),
        (["export", "--help"], ("hugging-face", "gguf", "llama2c", "two-files", "champion")),
        (["export", "gguf", "--help"], ("--precision", "MODEL FOLDER")),
        (["import", "--help"], ("--tokenizer", "safetensors")),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        told = capsys.readouterr().out
        assert all(word in told for word in wanted)
