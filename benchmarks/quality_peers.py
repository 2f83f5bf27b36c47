"""The peers of quality.py, run by their own interpreters: pii TEXTS | rules TEXTS | made NUMBER.

TEXTS is a JSON list of texts. The last line of the output is JSON.
"""

import json
import sys
import time
from pathlib import Path

LOCALES = (
    *("en_US", "en_GB", "en_IN", "de_DE", "fr_FR", "it_IT", "es_ES", "nl_NL", "pl_PL"),
    *("pt_BR", "sv_SE", "cs_CZ"),
)


def pii(texts: list[str]) -> object:
    """datatrove's PIIFormatter: (kind, start, end) of what it replaces, by text."""
    from datatrove.pipeline.formatters import PIIFormatter

    formatter = PIIFormatter()
    found = []
    started = time.process_time()
    for text in texts:
        spans = [
            ("email", *match.span()) for match in formatter.emails_replacer.regex.finditer(text)
        ]
        addresses = formatter.ip_replacer.regex.finditer(text)
        public = formatter.ip_replacer.validator
        spans += [("ip", *match.span()) for match in addresses if public(match.group(0))]
        found.append(spans)
    return {"found": found, "seconds": time.process_time() - started}


def rules(texts: list[str]) -> object:
    """datatrove's filters in FineWeb's order and with its settings, a text that one drops not being
    seen by the next: (kept, by text)."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    filters = [
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    ]

    def keep(text: str) -> bool:
        document = Document(text=text, id="0")
        for step in filters:
            result = step.filter(document)
            if (result if isinstance(result, bool) else result[0]) is False:
                return False
        return True

    for text in texts[:20]:
        keep(text)  # what is made once
    started = time.process_time()
    kept = [keep(text) for text in texts]
    return {"kept": kept, "seconds": time.process_time() - started}


def made(number: int) -> object:
    """Faker's: [locale, kind, value], so many of each kind."""
    from faker import Faker

    found = []
    for index, locale in enumerate(LOCALES):
        fake = Faker(locale)
        fake.seed_instance(index)
        makers = {
            "email": fake.email,
            "ip": lambda fake=fake: (
                fake.ipv4_public() if fake.random.random() < 0.7 else fake.ipv6()
            ),
            "iban": lambda fake=fake: spaced(fake.iban(), fake.random.random() < 0.5),
            "card": fake.credit_card_number,
            "phone": fake.phone_number,
        }
        for kind, make in makers.items():
            found += [(locale, kind, make()) for _ in range(-(-number // len(LOCALES)))]
    return found


def spaced(iban: str, groups: bool) -> str:
    return " ".join(iban[at : at + 4] for at in range(0, len(iban), 4)) if groups else iban


if __name__ == "__main__":
    what, argument = sys.argv[1:]
    if what == "made":
        result = made(int(argument))
    else:
        result = {"pii": pii, "rules": rules}[what](json.loads(Path(argument).read_text()))
    print()
    print(json.dumps(result))
