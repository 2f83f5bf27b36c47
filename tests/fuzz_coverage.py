"""Coverage-guided fuzzing of the page reader and the text kernels, for a bounded run by hand.

    .venv/bin/uv run --no-sync --with atheris python tests/fuzz_coverage.py -max_total_time=300

Bytes are a page: it is decoded, read, searched for hidden text and extracted, and its text is
measured, signed, redacted and undisguised. Whatever raises, or takes over 20 s, is a finding.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atheris  # pyright: ignore[reportMissingImports]  # of this run alone
import pyarrow as pa

# First what has compiled loops: numba could not read them once they are instrumented.
from pipeline import main_content, page_look, page_metadata  # noqa: F401
from pipeline.page_tree import parse_page
from pipeline.text.quality_signals import measure
from pipeline.text.signatures import Signer

with atheris.instrument_imports(include=["pipeline"]):
    from pipeline.html_text import decode_html, extract_html
    from pipeline.text import pii
    from pipeline.text.disguises import undisguised

SIGNER = Signer()


def look(data: bytes) -> None:
    tree = parse_page(decode_html(data, None))
    assert (tree.opens < tree.closes).all()
    text = extract_html(data, None, "balanced", "cascade").text
    raw = data.decode("utf-8", "replace")
    for one in (text, raw):
        measure(one)
        once = pii.redact(one).text
        assert pii.redact(once).text == once
        plain, places = undisguised(one)
        assert len(places) == len(plain) + 1
    signed = SIGNER.sign(pa.array([text, raw], pa.large_string()))
    assert len(signed.keys) == 2


if __name__ == "__main__":
    atheris.Setup([*sys.argv, "-timeout=20", "-max_len=4000", "-print_final_stats=1"], look)
    atheris.Fuzz()
