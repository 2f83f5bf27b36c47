"""`flywheel export FORM MODEL FOLDER` and `flywheel import PATH`: options, and what they say."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import UserError

Common = Callable[[argparse.ArgumentParser], None]

EXPORT = """\
A model of the registry in a form that other programs read, in a new folder:
  hugging-face  what transformers, vLLM and the like load
  gguf          model.gguf, for llama.cpp and what is built on it
  llama2c       model.bin and tokenizer.bin, for llama2.c
  two-files     parameters.bin and run.py: chats with Python and numpy alone, without network
MODEL is an id, the beginning of one, or champion, challenger, previous. See docs/export.md."""
IMPORT = """\
A model made elsewhere becomes a base model of the registry, with our special tokens added; prints
its id. PATH is a Hugging Face folder (config.json, *.safetensors, tokenizer.json), or llama2.c's
model.bin with its tokenizer: --tokenizer FILE, or the one tok*.bin beside it."""
_FORMS = {
    "hugging-face": ("transformers' folder", "AutoModelForCausalLM.from_pretrained({0!r})"),
    "gguf": ("model.gguf", "llama-cli -m {0}/model.gguf"),
    "llama2c": ("model.bin, tokenizer.bin", "./run {0}/model.bin -z {0}/tokenizer.bin -t 0"),
    "two-files": ("parameters.bin, run.py", "python {0}/run.py"),
}


def add_forms(export: argparse.ArgumentParser, common: Common) -> None:
    """`common` adds --config and overrides to each."""
    forms = export.add_subparsers(metavar="FORM", required=True)
    for form, (what, _) in _FORMS.items():
        added = forms.add_parser(form, help=what, description=f"MODEL as {what}, in FOLDER.")
        added.add_argument("model", metavar="MODEL", help="an id, its beginning, or a pointer")
        added.add_argument("folder", metavar="FOLDER", type=Path, help="new, or empty")
        if form == "gguf":
            added.add_argument(
                "--precision",
                choices=["f32", "f16", "q8_0"],
                default="f32",
                help="of the matrices (default: f32, the same logits)",
            )
        common(added)
        added.set_defaults(handler=_export, form=form)


def add_import(parser: argparse.ArgumentParser, common: Common) -> None:
    parser.add_argument("path", metavar="PATH", type=Path)
    parser.add_argument("--tokenizer", metavar="FILE", type=Path, help="of a llama2.c model")
    common(parser)
    parser.set_defaults(handler=_import)


def _export(arguments: argparse.Namespace) -> None:
    from finetune import export
    from finetune.registry import Registry
    from infra import settings

    registry = Registry(settings.load(arguments).run.root)
    identity = export.find_model(registry, arguments.model)
    if arguments.form == "gguf":
        from finetune.gguf_file import export_gguf  # gguf is needed for this form alone

        export_gguf(registry, identity, arguments.folder, arguments.precision)
    else:
        {
            "hugging-face": export.export_hugging_face,
            "llama2c": export.export_llama2c,
            "two-files": export.export_two_files,
        }[arguments.form](registry, identity, arguments.folder)
    what, command = _FORMS[arguments.form]
    size = sum(path.stat().st_size for path in arguments.folder.rglob("*"))
    print(f"model {identity[:12]} as {what} in {arguments.folder} ({size / 1e6:.1f} MB)")
    print(f"run it: {command.format(str(arguments.folder))}")


def _import(arguments: argparse.Namespace) -> None:
    from finetune import import_model
    from finetune.registry import Registry
    from infra import settings

    registry, path = Registry(settings.load(arguments).run.root), arguments.path
    if path.is_dir():
        if arguments.tokenizer is not None:
            raise UserError(f"--tokenizer is for a llama2.c file; {str(path)!r} is a folder")
        identity = import_model.import_hugging_face(registry, path)
    else:
        tokenizer = arguments.tokenizer or _beside(path)
        identity = import_model.import_llama2c(registry, path, tokenizer)
    print(identity)
    print(f"finetune it: flywheel weekly weekly.base={identity}", file=sys.stderr)


def _beside(checkpoint: Path) -> Path:
    if not checkpoint.is_file():
        raise UserError(f"no file or folder {str(checkpoint)!r}; name a model to import")
    found = sorted(p for p in checkpoint.parent.glob("tok*.bin") if p != checkpoint)
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise UserError(f"which tokenizer? beside {checkpoint}: {names}; give --tokenizer FILE")
    return found[0]
