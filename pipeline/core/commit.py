"""Which commit of the code runs."""

import os
import subprocess
from pathlib import Path


def code_commit() -> str:
    """The commit of the code that runs, or 'unknown' outside a checkout."""
    if "FLYWHEEL_COMMIT" in os.environ:
        return os.environ["FLYWHEEL_COMMIT"]
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
