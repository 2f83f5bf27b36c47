"""Rankings with ties: what is one, and how it is said in words. 1 is best, equal ranks tie."""

from collections.abc import Mapping, Sequence

from pipeline.core.errors import UserError


def check_ranks(ranks: Sequence[int], num_answers: int) -> None:
    """Raises UserError unless there is a rank from 1 to K for each of the K answers."""
    if len(ranks) != num_answers:
        raise UserError(f"{len(ranks)} ranks for {num_answers} answers; rank each answer")
    for rank in ranks:
        if type(rank) is not int or not 1 <= rank <= num_answers:
            raise UserError(f"rank {rank!r}; a whole number from 1 to {num_answers} will do")


def standard(ranks: Sequence[int]) -> tuple[int, ...]:
    """The same order with ranks as in a contest: 1 and the number of answers that are better.
    5, 5, 3 and 2, 2, 1 say the same."""
    return tuple(1 + sum(other < rank for other in ranks) for rank in ranks)


def in_words(ranks: Mapping[str, int | None]) -> str:
    """What has been ranked so far, best first: "A, then B and C tie, then D. E has no rank." """
    groups: dict[int, list[str]] = {}
    for name, rank in ranks.items():
        if rank is not None:
            groups.setdefault(rank, []).append(name)
    said = [_group(groups[rank]) for rank in sorted(groups)]
    missing = [name for name, rank in ranks.items() if rank is None]
    sentences = [", then ".join(said) + "."] if said else []
    if missing and said:
        verb = "has" if len(missing) == 1 else "have"
        sentences.append(f"{_list(missing)} {verb} no rank yet.")
    return " ".join(sentences)


def _group(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{_list(names)} tie"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
