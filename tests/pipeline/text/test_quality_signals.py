import json
import re
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.text.quality_signals import NAMES, measure


def brute_force(text: str) -> dict[str, float]:
    """The definitions, word by word and line by line, as slow as they read."""
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    num_words, num_lines = max(1, len(words)), max(1, len(lines))
    stop = ["the", "be", "to", "of", "and", "that", "have", "with"]
    bare = [word.strip(".,;:!?\"'()[]").lower() for word in words]
    terminal = (".", "?", "!", '"', "'")
    policies = [
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    ]
    policy = [any(phrase in line.lower() for phrase in policies) for line in lines]
    script = ["javascript" in line.lower() for line in lines]
    kept = [
        line
        for line, is_policy, is_script in zip(lines, policy, script, strict=True)
        if not is_policy
        and not is_script
        and len(line.split()) >= 3
        and max(map(len, line.split())) <= 1000
    ]
    upper = [sum(c.isupper() for c in line) / len(line) > 0.5 for line in lines]
    numeric = [all(c.isdigit() for c in line) for line in lines]
    copies = list((Counter(lines) - Counter(set(lines))).elements())
    return {
        "words": len(words),
        "mean_word_length": sum(len(word) for word in words) / num_words,
        "longest_word": max((len(word) for word in words), default=0),
        "hashes_per_word": text.count("#") / num_words,
        "ellipses_per_word": (text.count("...") + text.count("…")) / num_words,
        "bullet_lines": sum(line[0] in "•‣⁃◦*-–●■▪" for line in lines) / num_lines,
        "ellipsis_lines": sum(bool(re.search(r"(\.\.\.|…)\Z", line)) for line in lines) / num_lines,
        "alphabetic_words": sum(any(c.isalpha() for c in word) for word in words) / num_words,
        "stop_words": len(set(stop) & set(bare)),
        "stop_word_occurrences": sum(word in stop for word in bare),
        "lorem_ipsum": text.lower().count("lorem ipsum"),
        "curly_brackets": text.count("{"),
        "javascript_lines": sum(script) / num_lines,
        "policy_lines": sum(policy) / num_lines,
        "punctuated_lines": sum(line.endswith(terminal) for line in lines) / num_lines,
        "short_lines": sum(len(line) <= 30 for line in lines) / num_lines,
        "copied_line_chars": sum(map(len, copies)) / max(1, len(text.replace("\n", ""))),
        "newlines_per_word": text.count("\n") / num_words,
        "uppercase_lines": sum(upper) / num_lines,
        "numeric_lines": sum(numeric) / num_lines,
        "sentences": sum(max(1, ends(line)) for line in kept),
        "terminal_sentences": sum(
            max(1, ends(line))
            for line in kept
            if line.endswith(terminal) and not line.endswith("...")
        ),
    }


def ends(line: str) -> int:
    """Sentence ends: a run of marks, then closers, then a blank or the end of the line."""
    found = at = 0
    while at < len(line):
        if line[at] in ".!?":
            while at < len(line) and line[at] in ".!?":
                at += 1
            while at < len(line) and line[at] in "\"')]”’»":
                at += 1
            found += at == len(line) or line[at].isspace()
        else:
            at += 1
    return found


PIECES = st.sampled_from(
    [
        *("the", "Of", "(and)", "be...", "word", "ÜBER", "straße", "x1", "42", "²", "日本語", "#"),
        *("…", "- ", "• ", "{", "lorem ipsum", "JavaScript", "use cookies", "Privacy Policy"),
        *("A.", 'end."', "what?!", "it's", "e.g.", "3.14", "a" * 1001, "CAPS LINE", "\u00a0"),
        *("\n", "\n\n", " ", " ", "\r\n", "\u2028", "\t"),
    ]
)


@settings(max_examples=600, deadline=None)
@given(st.lists(PIECES, max_size=30).map(" ".join) | st.text(max_size=80))
@example("")
@example("a\n" * 5)
def test_signals_are_what_their_definitions_say(text: str):
    signals = measure(text)
    for name, value in brute_force(text).items():
        assert signals[name] == pytest.approx(value, abs=1e-6), name


def test_on_real_pages(shared_data):
    path = next(shared_data("quality/dclm-human-quality").rglob("half.jsonl"))
    for line in path.read_text().splitlines():
        text = json.loads(line)["text"]
        signals = measure(text)
        assert tuple(signals) == NAMES
        for name, value in brute_force(text).items():
            assert signals[name] == pytest.approx(value, abs=1e-6), name


def test_an_empty_text_has_signals_too():
    assert set(measure("").values()) == {0.0}
    assert set(measure(" \u2028 ").values()) == {0.0}


@pytest.mark.parametrize(
    ("line", "cut"),
    [
        ("3 likes", 2),
        ("12,345 Views", 2),
        ("1.2k followers.", 2),
        ("(7 comments)", 2),
        ("we had 3 likes", 0),
        ("Read more...", 2),
        ("go on and read more...", 2),
        ("2 items in cart", 3),
        ("Sign-in or register here", 1),
        ("Alone", 1),
        ("2024", 1),
        ("ALL IN CAPITALS", 3),
        ("An ordinary line of text.", 0),
        ("one two three four five six seven eight nine ten read more...", 0),
    ],
)
def test_lines_that_refinedweb_cuts(line: str, cut: int):
    text = f"{line}\nsome other words here"
    assert measure(text)["edited_words"] == round(cut / len(text.split()), 6)


def test_both_ways_to_count_repeats():
    signals = measure("same line\nsame line\nother one here\n\nx y z")
    assert (signals["duplicate_lines"], signals["repeated_lines"]) == (0.25, 0.5)
    assert signals["copied_line_chars"] == round(9 / 37, 6)


@pytest.mark.parametrize("piece", [".", '."', "a ", "\n", "\n ", "A", "1", "1 likes\n", "{", "- "])
def test_hostile_text_is_linear(piece: str):
    assert measure(piece * (300_000 // len(piece)))["words"] >= 0


def test_lone_surrogates_and_null_bytes():
    assert measure("\ud800 \0 \udfff")["words"] == 3
