"""Counting a vote: which candidate each voter's text names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from laban.cluster.workflow.graph import VoteNode
from laban.cluster.workflow.states import Tally

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[0-9]+")


def count(vote: VoteNode, texts: Mapping[str, str], values: Mapping[str, Mapping[str, object]]) -> Tally | None:
    """The tally of the voters and candidates that `texts` has; None for too few voters, or no candidate.

    A text votes for the first (or last) candidate that it names; with `vote.value` that value of it is the ballot. Most
    ballots win; ties, and a vote in which nobody named a candidate, go to the earliest one.
    """
    standing = {str(member): address for address, member in vote.candidates.items() if address in texts}
    if not standing or sum(voter in texts for voter in vote.voters) < vote.quorum:
        return None
    ballots = dict.fromkeys(standing, 0)
    abstained = 0
    by_number = isinstance(next(iter(vote.candidates.values())), int)
    for voter in vote.voters:
        if voter not in texts:
            continue
        ballot = texts[voter] if vote.value is None else _text_of(values.get(voter, {}).get(vote.value))
        named = _named(ballot, standing, by_number=by_number)
        if not named:
            abstained += 1
        else:
            ballots[named[-1 if vote.last_mention else 0]] += 1
    winner = max(standing, key=lambda member: ballots[member])  # max keeps the earliest of equals
    return Tally(vote.step, standing[winner], tuple(ballots.items()), abstained)


def _text_of(value: object) -> str:
    return "" if value is None else str(value)


def _named(text: str, standing: Mapping[str, str], *, by_number: bool) -> list[str]:
    """The candidates that a text names, in order."""
    if by_number:
        numbers = (digits.lstrip("0") for digits in _NUMBER.findall(text))
        return [number for number in numbers if number in standing]
    known = {member.lower(): member for member in reversed(list(standing))}
    found = (word if word in standing else known.get(word.lower(), "") for word in _WORD.findall(text))
    return [member for member in found if member]
