"""Thresholds tried on a finished corpus, and a classifier trained, as a user types them."""

import gzip
import json
import random
from pathlib import Path

import pytest

from infra import cli

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "have",
    "with",
    "river",
    "house",
    "letter",
    "window",
    "morning",
    "people",
    "garden",
]


def page(number: int) -> bytes:
    rng = random.Random(number)
    lines = [
        f"{' '.join(rng.choices(WORDS, k=11)).capitalize()} {number}." for _ in range(3 + number)
    ]
    body = "".join(f"<p>{line}</p>" for line in lines)
    html = f"<html><title>p</title><body><main>{body}</main></body></html>".encode()
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + html
    head = (
        "WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:0>\r\n"
        f"WARC-Target-URI: http://a.test/{number}\r\nWARC-Date: 2024-05-06T07:08:09Z\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + http + b"\r\n\r\n", mtime=0)


@pytest.fixture
def config(tmp_path: Path) -> str:
    warc = tmp_path / "pages.warc.gz"
    warc.write_bytes(b"".join(map(page, range(12))))
    path = tmp_path / "run.toml"
    path.write_text(
        f'[run]\nroot = "{tmp_path}/data"\nbackend = "local"\nworkers = 1\n'
        f'[ingest]\nwarcs = ["{warc}"]\n'
        "[quality]\nlanguages = []\nmin_sentences = 2\n"
        "max_top_ngram_chars = [1.0, 1.0, 1.0]\n"
    )
    return str(path)


def test_what_if_answers_from_the_stored_signals(config: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["whatif", "--config", config, "quality.min_words=100"]) == 2
    assert "run flywheel corpus first" in capsys.readouterr().err
    assert cli.main(["corpus", "--config", config]) == 0
    capsys.readouterr()
    assert cli.main(["whatif", "--config", config, "quality.min_words=100"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[2:]}
    assert int(rows["kept"][1]) < int(rows["kept"][0])
    assert sum(int(row[0]) for row in rows.values()) == 12
    assert sum(int(row[1]) for row in rows.values()) == 12
    assert int(rows["too-few-words"][2]) > 0

    # A run with that threshold drops what was foretold.
    assert cli.main(["corpus", "--config", config, "quality.min_words=100"]) == 0
    printed = capsys.readouterr().out
    assert ["quality", "kept", rows["kept"][1]] in [line.split() for line in printed.splitlines()]


def test_what_if_begins_with_rules_that_were_typed(config: str, capsys):
    assert cli.main(["corpus", "--config", config, "quality.min_words=60"]) == 0
    capsys.readouterr()
    assert cli.main(["whatif", "--config", config, "quality.min_words=100"]) == 0
    printed = capsys.readouterr().out
    assert "now: by the rules of the newest run" in printed
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines()[2:-2]}
    assert 0 < int(rows["too-few-words"][0]) < int(rows["too-few-words"][1])
    assert sum(int(row[0]) for row in rows.values()) == 12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "say what of [quality] would be otherwise"),
        (["run.workers=1"], "say what of [quality] would be otherwise"),
        (["quality.min_wrods=1"], "did you mean 'min_words'?"),
    ],
)
def test_what_if_refuses(config: str, capsys, overrides: list[str], message: str):
    assert cli.main(["whatif", "--config", config, *overrides]) == 2
    assert message in capsys.readouterr().err


def test_a_signal_that_was_not_measured_is_refused(config: str, capsys):
    assert cli.main(["corpus", "--config", config]) == 0
    for change in ("quality.classifier=x", "quality.min_classifier_score=0.5"):
        assert cli.main(["whatif", "--config", config, change]) == 2
        assert "run flywheel corpus" in capsys.readouterr().err


def test_train_quality_writes_a_classifier_that_corpus_uses(config: str, tmp_path: Path, capsys):
    labels = tmp_path / "labels.jsonl"
    rows = [
        {"text": f"{'river garden' if good else 'click buy'} {number}", "label": good}
        for number, good in enumerate([0, 1] * 20)
    ]
    labels.write_text("\n".join(map(json.dumps, rows)))
    target = str(tmp_path / "quality.model")
    assert cli.main(["train-quality", "--from", str(labels), "--to", target]) == 0
    assert "AUC on 40 labelled texts" in capsys.readouterr().out
    use = [f"quality.classifier={target}", "quality.min_classifier_score=0.01"]
    assert cli.main(["corpus", "--config", config, *use]) == 0
    assert cli.main(["train-quality", "--from", "nowhere.jsonl", "--to", target]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override",
    [
        "quality.classifier=/nowhere",
        "quality.blocked_domains_file=/nowhere",
        'dedupe.against=["/nowhere"]',
        'decontaminate.against=["/nowhere"]',
        "tokens.tokenizer=/nowhere",
        'extract.languages=["de"]',
    ],
)
def test_what_a_late_stage_would_refuse_is_refused_at_once(config: str, tmp_path, capsys, override):
    for flags in ([], ["--dry-run"]):
        assert cli.main(["corpus", "--config", config, *flags, override]) == 2
        assert "nowhere" in (said := capsys.readouterr().err) or "give both the same" in said
    assert not (tmp_path / "data").exists()
    assert cli.main(["corpus", "--config", config, "--dry-run", "--verify"]) == 2
    assert "give one" in capsys.readouterr().err


def test_what_if_refuses_languages_that_were_never_judged(config: str, capsys):
    overrides = ['extract.languages=["en"]', 'quality.languages=["en","ja"]']
    assert cli.main(["whatif", "--config", config, *overrides]) == 2
    assert "give both the same" in capsys.readouterr().err
