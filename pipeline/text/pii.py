"""Personal data in text: e-mail, IP, IBAN, card and phone numbers become typed placeholders.

Each kind has its checks (mod 97, Luhn and issuer, public networks, a phone's form or its cue). Time
is linear in the text, whatever it is, and redacting twice changes nothing more.
"""

import bisect
import dataclasses
import ipaddress
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from pipeline.text.account_numbers import IBAN_LENGTHS, has_iban_checksum, has_issuer, has_luhn

KINDS: tuple[str, ...] = (
    "email",
    "ip",
    "iban",
    "card",
    "phone",
)  # in the order in which they are looked for
_MAX_ROUNDS = 5
_MARKS = {kind: f"<{kind.upper()}>" for kind in KINDS}
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Redacted:
    """`counts` has the kinds that occur."""

    text: str
    counts: Mapping[str, int]


def redact(text: str) -> Redacted:
    """The text with a placeholder (`<EMAIL>`, `<IP>`, `<IBAN>`, `<CARD>`, `<PHONE>`) for each find.

    Not found, on purpose: private and documentation addresses, IPv4 of four single digits or after
    a word such as "version"; ten digits in a row and local numbers without a word that says phone.
    """
    parts, at = list[str](), 0
    found = find(text)
    for kind, start, end in found:
        parts += [text[at:start], _MARKS[kind]]
        at = end
    counts = Counter(kind for kind, _, _ in found)
    return Redacted("".join([*parts, text[at:]]), {k: counts[k] for k in KINDS if k in counts})


def find(text: str) -> list[tuple[str, int, int]]:
    """(kind, start, end) in the text of all that `redact` replaces, by their place."""
    return sorted(_edited(_plainly(text)).found, key=lambda entry: entry[1])


# Blanks and hyphens that do not break, full-width letters, digits and marks: each as long as what
# it is read as.
_READ_AS = {
    **dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f"), " "),
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212"), "-"),
    **{0xFEE0 + ord(sign): sign for sign in f"{string.ascii_letters}{string.digits}@.+-:()"},
}
_READ_AS_ANOTHER = re.compile(f"[{re.escape(''.join(map(chr, _READ_AS)))}]")


def _plainly(text: str) -> str:
    found = not text.isascii() and _READ_AS_ANOTHER.search(text)
    return text.translate(_READ_AS) if found else text


@dataclasses.dataclass
class _Edits:
    """The text so far; for each placeholder in it, by its place, where the text behind both goes on
    there and in the original."""

    text: str
    found: list[tuple[str, int, int]]
    ends: list[Span]

    def original(self, place: int) -> int:
        at = bisect.bisect_right(self.ends, place, key=lambda ends: ends[0])
        here, there = self.ends[at - 1] if at else (0, 0)
        return there + place - here

    def replace(self, kind: str, spans: Sequence[Span]) -> None:
        mark, parts, at, grown = _MARKS[kind], list[str](), 0, 0
        shifts: list[tuple[int, int]] = []  # (old end of a span, growth up to there)
        known = [(self.original(start), self.original(end)) for start, end in spans]
        for start, end in spans:
            parts += [self.text[at:start], mark]
            at, grown = end, grown + len(mark) - (end - start)
            shifts.append((end, grown))
        self.text = "".join([*parts, self.text[at:]])
        self.found += [(kind, start, end) for start, end in known]
        moved = [(end + _shift(shifts, end), there) for end, there in self.ends]
        added = [(end + grown, known[i][1]) for i, (end, grown) in enumerate(shifts)]
        self.ends = sorted(moved + added)


def _shift(shifts: Sequence[Span], place: int) -> int:
    at = bisect.bisect_right(shifts, place, key=lambda shift: shift[0])
    return shifts[at - 1][1] if at else 0


def _edited(text: str) -> _Edits:
    """Until nothing more is found: behind a placeholder something may begin that what it hides had
    kept from beginning."""
    edits = _Edits(text, [], [])
    for _ in range(_MAX_ROUNDS):
        before = len(edits.found)
        for kind, spans_of in _FINDERS.items():
            if spans := list(spans_of(edits.text)):
                edits.replace(kind, spans)
        if len(edits.found) == before:
            break
    return edits


# A pattern begins only where what it takes begins (a lookbehind) and never gives back (possessive
# repeats), or has a bounded length: so none can take more than linear time. The lookbehind stands
# behind the first character, by which the engine searches far faster.

_LABEL = r"[^\W_]++(?:-++[^\W_]++)*+"
_DOMAIN = re.compile(rf"@{_LABEL}(?:\.{_LABEL})++")
_LOCAL = re.compile(r"(?<![\w.%+\-])[.%+\-]*+(?P<whole>\w[\w.%+\-'’]{0,63}+)\Z")
_TOP_DOMAIN = re.compile(r"xn--[a-z0-9-]+|[^\W\d_]{2,24}", re.IGNORECASE)


def _emails(text: str) -> Iterator[Span]:
    last = 0  # no part of an address reaches across an @, nor back into the address before
    at = text.find("@")
    while at >= 0:
        if span := _email_at(text, last, at):
            yield span
        last = span[1] if span else at
        at = text.find("@", at + 1)


def _email_at(text: str, last: int, at: int) -> Span | None:
    domain = _DOMAIN.match(text, at)
    local = _LOCAL.search(text, max(last, at - 80), at) if domain else None
    if domain is None or local is None:
        return None
    start, end = local.start("whole"), domain.end()
    labels = text[at + 1 : end].split(".")
    while len(labels) > 1 and not _TOP_DOMAIN.fullmatch(labels[-1]):
        end -= len(labels.pop()) + 1
    whole = len(labels) > 1
    return (start, end) if whole else None


_IPV4 = re.compile(
    r"\d(?<![\w.]\d)(?:(?:(?<=[1-9])\d|(?<=1)\d\d|(?<=2)[0-4]\d|(?<=2)5[0-5])?\.)"
    r"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){2}"
    r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?!\w|\.[\w<])",
    re.ASCII,
)
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{2,41}+(?!\w)")
_TWO_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_VERSION = re.compile(
    r"(?<![\w>])(?:v|ver|version|release|section|chapter|build|rev|firmware|§)[ .:]{0,2}\Z", re.I
)
# IANA's special-purpose registries: not the address of anybody's host on the net.
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("::/96", "::ffff:0:0/96", "100::/64", "2001:db8::/32", "3fff::/20", "5f00::/16"),
        *("fc00::/7", "fe80::/10", "ff00::/8"),
    )
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


def _addresses(text: str) -> Iterator[Span]:
    found = [match.span() for match in _IPV4.finditer(text) if _is_public_v4(text, *match.span())]
    for match in _IPV6.finditer(text) if _TWO_COLONS.search(text) else ():
        start, end = match.span()
        torn = text.endswith(":", start, end) and not text.endswith("::", start, end)
        end -= torn  # "…:1: it said"
        if _is_public_v6(text[start:end]):
            found.append((start, end))
    last = 0
    for start, end in sorted(found):
        if start >= last:
            yield start, end
            last = end


def _is_public_v4(text: str, start: int, end: int) -> bool:
    if end - start == len("1.2.3.4") or _VERSION.search(text, max(0, start - 12), start):
        return False
    address = ipaddress.IPv4Address(text[start:end])
    return not any(address in network for network in _SPECIAL if network.version == 4)


def _is_public_v6(written: str) -> bool:
    """Short forms (`abc::def` is one, and C++) only of the part that is given out."""
    if written.count(":") < 2:
        return False
    try:
        address = ipaddress.IPv6Address(written)
    except ValueError:
        return False
    if "::" in written and address not in _GLOBAL_UNICAST:
        return False
    return not any(address in network for network in _SPECIAL if network.version == 6)


_IBAN = re.compile(
    r"\d\d(?<=[A-Za-z]{2}\d\d)(?<![\w\-][A-Za-z]{2}\d\d)(?=[ ]?[0-9A-Za-z]{4})", re.ASCII
)
_LONGEST_IBAN = 33 + 9  # with blanks between groups of four


def _ibans(text: str) -> Iterator[Span]:
    last = 0
    for match in _IBAN.finditer(text):
        start = match.start() - 2
        end = _iban_end(text, start, IBAN_LENGTHS.get(text[start : start + 2].upper(), 0))
        if end and start >= last:
            yield start, end
            last = end


def _iban_end(text: str, start: int, length: int) -> int:
    """0 if none begins here."""
    if not length:
        return 0
    window = text[start : start + _LONGEST_IBAN]
    blanks = 0
    for at, character in enumerate(window):
        if character == " ":
            blanks += 1
        elif not (character.isascii() and character.isalnum()):
            return 0
        if at + 1 - blanks == length and character != " ":
            end = start + at + 1
            whole = window[: at + 1].replace(" ", "")
            after = text[end : end + 1]
            ends = not (after.isalnum() or after == "_")
            return end if ends and has_iban_checksum(whole) else 0
    return 0


_CARD = re.compile(
    r"\d(?<![\w\-.,]\d)(?:\d{3}(?P<four>[ \-])\d{4}(?P=four)\d{4}(?P=four)\d{1,7}"
    r"|\d{3}(?P<amex>[ \-])\d{6}(?P=amex)\d{4,5}|\d{11,18})(?!\w|[\-.,]\d)",
    re.ASCII,
)
_CARD_CUE = re.compile(
    r"(?<![\w<>])(?:(?:credit|debit|bank)? ?card|cc|visa|mastercard|amex|maestro)(?![\w<])"
    r"[^<>]{0,24}\Z",
    re.IGNORECASE,
)


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        digits = match.group().replace(" ", "").replace("-", "")
        start, end = match.span()
        if has_luhn(digits) and (
            has_issuer(digits) or _CARD_CUE.search(text, max(0, start - 40), start)
        ):
            yield start, end


# All that might be phone numbers, side by side: then judged as a whole, or by parts.
_RUN = re.compile(
    r"[+(\d](?<![\w./$€£#=+\-(][+(\d])(?<!\d,\d)(?:(?<=\+)\(?\d|(?<=\()\d|(?<=\d))"
    r"(?:[ ]?[().\-/]{0,2}[ ]?\d)*+"
    r"(?:[ ]?(?:x|ext\.?)[ ]?\d{1,5})?+",
    re.ASCII,
)
# Behind a run that is no phone number: looked for apart, or each digit of it would begin anew.
_GOES_ON = re.compile(r"\w|[.,:/\-]\d|%|°", re.ASCII)
_PART = r"[ .\-]?\d{1,5}"
_FORM = re.compile(
    rf"""(?<![\d.\-)+(])
    (?: (?:\+|00)[1-9]\d{{0,2}}[ .\-]?(?:\(0?\d{{0,4}}\)[ .\-]?)?\d{{1,5}}(?:{_PART}){{1,5}}
      | (?:1[ .\-])?(?:\([2-9]\d\d\)[ ]?|[2-9]\d\d[.\-])\d{{3}}[.\-]\d{{4}}
      | (?!\d{{3}}-\d\d-\d{{4}}(?!\d))  # a social security number
        0\d{{1,4}}(?P<same>[ .\-])\d{{2,4}}(?:(?P=same)\d{{2,4}}){{1,3}}
      | 0\d{{2,4}}[ \-/]\d{{6,8}}
      | \(0?\d{{2,4}}\)[ \-]?\d{{3,4}}[ \-]\d{{3,4}}
    )(?:[ ]?(?:x|ext\.?)[ ]?\d{{1,5}})?(?![\d.\-)(])""",
    re.VERBOSE | re.ASCII,
)
_CUE_BEFORE = re.compile(
    r"(?<![\w<>])(?:(?:(?:tele)?phone|tel|mobile|cell|fax|whatsapp|sms|hotline|desk|landline"
    r"|t[eé]l[eé](?:phone|fono|fone|foon|fon|fax)|telefonnummer|t[eé]l|telefonico|telem[oó]vel"
    r"|mobil|handy|m[oó]vil|celular|cellulare|portable)"
    r"(?: (?:number|no|nr|is))?|(?:call|calls|ring|dial|reach|phone|text|texts|answer|answering"
    r"|message|messages|voicemail)(?: [a-z]+){0,2}(?: (?:at|on|to|registered|number))?)"
    r"[.:]{0,2}(?: :)?[ \n]{0,2}\Z",
    re.IGNORECASE,
)
_CUE_BEHIND = re.compile(r"[ \-(]{1,2}(?:office|fax|mobile|cell|home phone)(?![\w<>])", re.I)
_LEAST_DIGITS, _MOST_DIGITS = 7, 15  # E.164 has 15 at most
_LEAST_NATIONAL, _MOST_NATIONAL = 9, 12  # with the 0 before the area
_CUE_CHARS = 48


def _phones(text: str) -> Iterator[Span]:
    for match in _RUN.finditer(text):
        if not _GOES_ON.match(text, match.end()):
            yield from _judged(text, *match.span())


def _judged(text: str, start: int, end: int) -> Iterator[Span]:
    """The whole run if its form or a cue says so; else what has the form of one inside it, and what
    lies between those if a cue stands by it."""
    if _is_phone(text, start, end):
        yield start, end
        return
    at = start
    for match in _FORM.finditer(text, start, end):
        if not _right_length(match.group()):
            continue
        yield from _between(text, at, match.start())
        yield match.span()
        at = match.end()
    if at > start:
        yield from _between(text, at, end)


def _between(text: str, start: int, end: int) -> Iterator[Span]:
    while start < end and not (text[start].isdigit() or text[start] in "+("):
        start += 1
    while end > start and not text[end - 1].isdigit():
        end -= 1
    if end > start and _is_phone(text, start, end):
        yield start, end


def _is_phone(text: str, start: int, end: int) -> bool:
    if not _right_length(text[start : min(end, start + 64)]) or end - start > 40:
        return False
    return bool(
        _FORM.fullmatch(text, start, end)
        or _CUE_BEFORE.search(text, max(0, start - _CUE_CHARS), start)
        or _CUE_BEHIND.match(text, end)
    )


def _right_length(written: str) -> bool:
    number = re.split("x|e", written)[0]
    digits = sum(map(str.isdigit, number))
    if number.startswith("0") and not number.startswith("00"):
        return _LEAST_NATIONAL <= digits <= _MOST_NATIONAL
    return _LEAST_DIGITS <= digits <= _MOST_DIGITS


_FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "email": _emails,
    "ip": _addresses,
    "iban": _ibans,
    "card": _cards,
    "phone": _phones,
}
