import ipaddress
import json
import re
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.text import pii
from pipeline.text.account_numbers import has_iban_checksum, has_luhn

KINDS = {
    "EMAIL_ADDRESS": "email",
    "IP_ADDRESS": "ip",
    "PHONE_NUMBER": "phone",
    "IBAN_CODE": "iban",
    "CREDIT_CARD": "card",
}


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to jo.doe+x@mail.example.org.", "write to <EMAIL>."),
        ("<jörg@müller.de>, a@b.co", "<<EMAIL>>, <EMAIL>"),
        ("@user, a@b, me@localhost, x@1.2", "@user, a@b, me@localhost, x@1.2"),
        ("a@b.com@c.com", "<EMAIL>@c.com"),
        ("n='jo@b.org', o'brien@b.org", "n='<EMAIL>', <EMAIL>"),
        # Signs that look like others; what is kept stays as it is.
        ("ｊｏ＠ｂ．ｏｒｇ und\u00a0ｊｏ", "<EMAIL> und\u00a0ｊｏ"),
        ("IBAN\u00a0GB29\u00a0NWBK\u00a06016\u00a01331\u00a09268\u00a019", "IBAN\u00a0<IBAN>"),
        ("4111\u202f1111\u202f1111\u202f1111", "<CARD>"),
        ("call +1–415–555–2671, 4111\u20091111\u20091111\u20091111", "call <PHONE>, <CARD>"),
        ("1990–1995, pages 100–200, 1939\u20131945", None),
        ("+44\u201120\u20117946\u20110958, ８１.2.69.142", "<PHONE>, <IP>"),
        ("seen at 81.2.69.142:80, 10.0.0.1", "seen at <IP>:80, 10.0.0.1"),
        ("255.1.2.3 256.1.2.3 8.8.8.8 81.2.69.142.7", "255.1.2.3 256.1.2.3 8.8.8.8 81.2.69.142.7"),
        ("firmware 81.2.69.142, v81.2.69.142", "firmware 81.2.69.142, v81.2.69.142"),
        ("2a00:1450:4001:82b::200e.", "<IP>."),
        ("at 12:34:56 std::abc abc::def ::1 fe80::1", "at 12:34:56 std::abc abc::def ::1 fe80::1"),
        ("2001:db8::1 is for documents", "2001:db8::1 is for documents"),
        # The registry's own examples.
        ("IBAN GB29 NWBK 6016 1331 9268 19 or", "IBAN <IBAN> or"),
        ("DE89370400440532013000 NO9386011117947", "<IBAN> <IBAN>"),
        ("DE89370400440532013001 GB29NWBK60161331926819X", None),
        # Test numbers that the card networks publish.
        ("4111 1111 1111 1111 and 3782 822463 10005", "<CARD> and <CARD>"),
        ("5555555555554444, 30569309025904", "<CARD>, <CARD>"),
        ("4111 1111 1111 1112, 9111111111111111", None),
        ("call +44 20 7946 0958 or (212) 555-0123 x12", "call <PHONE> or <PHONE>"),
        ("01.84.17.61.18; 0490 75 40 81; 212-555-0123", "<PHONE>; <PHONE>; <PHONE>"),
        ("Tel: 467 3395, fax 9498777106", "Tel: <PHONE>, fax <PHONE>"),
        ("sold 467 3395 of 9498777106", None),
        ("2024-05-06, 06.05.2024, 12.50, 1,234,567, 3.14159265", None),
        ("permutations 012 021 102 120 201", None),
        ("0.12 0.34 0.56 0.78 and 100 200 300", None),
        ("arXiv:2101.00027, ISBN 978-3-16-148410-0, $1,000,000.00", None),
    ],
)
def test_by_hand(text: str, redacted: str | None):
    assert pii.redact(text).text == (redacted or text)


def test_every_kind_is_counted():
    text = "a@b.org 81.2.69.142 DE89370400440532013000 4111111111111111 +44 20 7946 0958 c@d.org"
    assert pii.redact(text).counts == {"email": 2, "ip": 1, "iban": 1, "card": 1, "phone": 1}
    assert tuple(pii.redact(text).counts) == pii.KINDS
    assert pii.redact("nothing").counts == {}


def test_checksums_against_the_definition():
    assert has_luhn("79927398713")  # Luhn's patent
    assert sum(has_luhn(f"7992739871{digit}") for digit in range(10)) == 1
    assert has_iban_checksum("GB82WEST12345698765432")
    assert not has_iban_checksum("GB82WEST12345698765423")


@given(st.ip_addresses(v=4))
def test_public_ipv4_only(address):
    text = f"from {address} today"
    hidden = pii.redact(text).text != text
    if hidden:
        assert address.is_global
    elif address.is_global and not address.is_multicast:
        odd = ("192.0.0.0/24", "192.88.99.0/24")  # single addresses of protocols, not of hosts
        assert len(str(address)) == 7 or any(address in ipaddress.ip_network(net) for net in odd)


PIECES = st.sampled_from(
    [
        "a@b.org",
        "b.org",
        "@",
        ".",
        "-",
        "+",
        "(",
        ")",
        "0",
        "1",
        "12",
        "212",
        "555",
        "0123",
        "467",
        "3395",
        "+44",
        "20",
        "7946",
        "0958",
        "4111",
        "1111",
        "4111111111111111",
        "81.2.69.142",
        "10.0.0.1",
        ":",
        "::",
        "2a00:1450:4001:82b::200e",
        "ab",
        "DE89370400440532013000",
        "GB29",
        "NWBK",
        "6016",
        "1331",
        "9268",
        "19",
        "phone",
        "call",
        "fax",
        "at",
        "on",
        "<PHONE>",
        "<EMAIL>",
        "<",
        ">",
        "card",
        "v",
        "/",
        "x",
        "é",
        "\xa0",
    ]
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join))
@example("call 450 0840 905-674-3793 12345")
@example("0490 75 40 81 4111111111111111")
@example("1.2.3.4call 450 0840")
@example("81.2.69.142.DE89370400440532013000")
def test_redacting_twice_changes_nothing_more(text: str):
    once = pii.redact(text)
    twice = pii.redact(once.text)
    assert twice.text == once.text
    assert twice.counts == {}


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join))
def test_find_names_the_places_of_what_redact_replaces(text: str):
    found = pii.find(text)
    parts, at = [], 0
    for kind, start, end in found:
        assert at <= start < end
        parts += [text[at:start], f"<{kind.upper()}>"]
        at = end
    assert "".join([*parts, text[at:]]) == pii.redact(text).text


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "1",
        "a@",
        "@",
        "1.",
        "a.",
        ":",
        "1 ",
        "+1",
        "a-",
        "(",
        "GB82 ",
        "a:",
        ".",
        "call 1",
        "1x ",
        "12:34:56 ",
        "(0) ",
        "0113 4960928 ",
    ],
)
def test_long_runs_cost_what_their_length_costs(piece: str):
    """Quadratic search would take hours here; the suite's time limit tells."""
    text = piece * (1_000_000 // len(piece))
    for end in ("", "1a", "1%"):
        assert len(pii.redact(text + end).text) <= len(text) + len(end)


@pytest.mark.parametrize(
    "cue",
    [
        *(
            "Telefon: ",
            "Téléphone : ",
            "Tél :\u00a0",
            "Tel. ",
            "Teléfono: ",
            "Telefono ",
            "Mobil: ",
        ),
        *("Telefoon: ", "Handy: ", "Celular: ", "Móvil: ", "Telefonnummer: ", "Telemóvel: "),
    ],
)
def test_other_languages_say_telephone(cue: str):
    assert pii.redact(f"{cue}0113 4960928.").text == f"{cue}<PHONE>."
    assert pii.redact(f"x{cue}7904216670.").counts == {}


def test_lone_surrogates_and_null_bytes_pass_through():
    text = "\ud800\0 a@b.org \udfff"
    assert pii.redact(text).text == "\ud800\0 <EMAIL> \udfff"


def measured(samples) -> tuple[Counter, Counter, Counter]:
    """(spans of each kind in the gold, of them touched by a find of the kind, finds that touch
    none)."""
    gold_count, hit, false = Counter(), Counter(), Counter()
    for sample in samples:
        found = pii.find(sample["full_text"])
        gold = [
            (KINDS[span["entity_type"]], span["start_position"], span["end_position"])
            for span in sample["spans"]
            if span["entity_type"] in KINDS
        ]
        for kind, start, end in gold:
            gold_count[kind] += 1
            hit[kind] += any(k == kind and s < end and start < e for k, s, e in found)
        for kind, start, end in found:
            false[kind] += not any(k == kind and s < end and start < e for k, s, e in gold)
    return gold_count, hit, false


def test_on_the_synthetic_set(shared_data):
    """1,500 texts with 312 spans of our kinds. The cues for phones were chosen with these templates
    in view, so recall elsewhere is lower: see the next test."""
    path = next(shared_data("pii/presidio-synth").rglob("synth_dataset_v2.json"))
    gold, hit, false = measured(json.loads(path.read_text()))
    assert gold == {"card": 136, "phone": 92, "email": 49, "iban": 21, "ip": 14}
    for kind in pii.KINDS:
        assert hit[kind] / gold[kind] >= 0.97, kind
        assert hit[kind] / (hit[kind] + false[kind]) >= 0.97, kind


def test_phones_by_form_alone(shared_data):
    """Without the sentence around it a number is known by its form only."""
    path = next(shared_data("pii/presidio-synth").rglob("synth_dataset_v2.json"))
    numbers = [
        span["entity_value"]
        for sample in json.loads(path.read_text())
        for span in sample["spans"]
        if span["entity_type"] == "PHONE_NUMBER"
    ]
    found = sum(pii.redact(f"It says {number} here").counts == {"phone": 1} for number in numbers)
    assert found >= 60  # of 92
    assert len(numbers) == 92


def test_books_hold_no_such_data(shared_data):
    """False alarms on real prose: 19th-century novels have neither phones nor cards."""
    texts = sorted(shared_data("text/books").rglob("*.md"))[:10]
    assert texts
    counts = Counter[str]()
    for path in texts:
        counts.update(pii.redact(path.read_text(errors="replace")).counts)
    assert counts.total() == 0


def test_placeholders_are_what_redact_leaves_alone():
    text = " ".join(f"<{kind.upper()}>" for kind in pii.KINDS)
    assert pii.redact(text).text == text
    assert re.findall(r"<\w+>", text)


@pytest.mark.parametrize("mark", ["<EMAIL>", "<IP>", "<PHONE>", "<CARD>", "<IBAN>"])
@pytest.mark.parametrize(
    "secret", ["bob.smith@gmail.com", "8.8.4.14", "+44 20 7946 0958", "4111 1111 1111 1111"]
)
def test_a_forged_placeholder_hides_nothing(mark: str, secret: str) -> None:
    for text in (f"{mark}{secret}", f"{mark}{secret}</x>", f"see {mark} {secret}"):
        assert secret not in pii.redact(text).text
        assert pii.redact(pii.redact(text).text).counts == {}
