"""Environments of their own for the peers of the dedup benchmarks, made once."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CACHE = Path.home() / ".cache" / "flywheel-benchmarks"
DATATROVE, DATASKETCH, RENSA, SPACY = "0.10.1", "2.0.0", "0.5.0", "3.8.18"
TEXT_DEDUP = "0.4.1"  # wants Python 3.12; the last for 3.11 pins a scipy that has no wheel for it
# xxhash 4 breaks datatrove, which hands it strings.
_DATATROVE = (f"datatrove[processing]=={DATATROVE}", f"spacy=={SPACY}", "orjson", "xxhash<4")


def datatrove_python() -> str:
    return environment(f"datatrove-{DATATROVE}", _DATATROVE)


def signatures_python() -> str:
    """datatrove, datasketch and rensa beside each other."""
    packages = (*_DATATROVE, f"datasketch=={DATASKETCH}", f"rensa=={RENSA}", "pyarrow")
    return environment(f"signatures-{DATATROVE}-{DATASKETCH}-{RENSA}", packages)


def text_dedup_python() -> str:
    interpreter = os.environ.get("PYTHON312", "python3.12")
    return environment(f"text-dedup-{TEXT_DEDUP}", (f"text-dedup=={TEXT_DEDUP}",), interpreter)


def environment(name: str, packages: Sequence[str], interpreter: str = sys.executable) -> str:
    """Its interpreter. Raises CalledProcessError if the packages cannot be installed."""
    home = CACHE / name
    python = home / "bin" / "python"
    made = home / "made"
    if not made.exists() or made.read_text() != "\n".join(packages):
        print(f"making {home}", flush=True)
        uv = Path(sys.executable).parent / "uv"
        subprocess.run([uv, "venv", "-q", "--clear", "-p", interpreter, home], check=True)
        install = [uv, "pip", "install", "-q", "--python", python, *packages]
        subprocess.run(install, check=True)
        made.write_text("\n".join(packages))
    return str(python)
