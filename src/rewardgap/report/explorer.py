"""What was written, user by user: a stated sample of the prompts, each completion held against the user's own text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewardgap.report.findings import own_choices
from rewardgap.report.numbers import counted
from rewardgap.report.texts import shared_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.core.results import Sample, StudyResults
    from rewardgap.report.board import Board

MOST_CHARACTERS = 2_500_000
"""Of texts on one page, so that it stays below 15 MB with a mark around every word."""


@dataclass(frozen=True, slots=True)
class Explorer:
    """The samples of a page.

    Attributes:
        people: dataset, user, and a card a prompt: the sample, and every deployment's text cut into pieces.
        labels: of all deployments, in order of appearance.
        left: index of the deployment that is shown first, -1 where there is none.
        right: index of the one beside it.
        statement: how the prompts were chosen, and how many of how many there are.
    """

    people: tuple[tuple[str, str, tuple[dict[str, Any], ...]], ...]
    labels: tuple[str, ...]
    left: int
    right: int
    statement: str


def explorer(results: StudyResults, found: Sequence[Board], most: int = MOST_CHARACTERS) -> Explorer | None:
    """Return the samples to read, None without any.

    First shown are the deployment with the best measured mean and zero-shot beside it, where both were kept.

    Args:
        results: the study.
        found: its boards.
        most: characters of text after which further samples are left out, and counted.
    """
    if not results.samples:
        return None
    kept = _within(results.samples, most)
    labels = tuple(dict.fromkeys(label for sample in kept for label in sample.generations))
    best = [one.best for board in found[:1] for one in own_choices(results, board.dataset)]
    best += [line.label for board in found[:1] for line, _ in board.ranked()]
    left = next((labels.index(label) for label in best if label in labels), 0 if labels else -1)
    beside = [line.label for board in found for line in board.lines if line.is_baseline]
    right = next((labels.index(label) for label in beside if label in labels and labels.index(label) != left), -1)
    if right < 0:
        right = next((i for i in range(len(labels)) if i != left), -1)
    return Explorer(_people(kept, labels), labels, left, right, _statement(results, found, len(kept)))


def _within(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Return samples in order until their texts come to `most` characters, one at least."""
    kept: list[Sample] = []
    count = 0
    for sample in samples:
        texts = (sample.prompt, sample.reference or "", *sample.generations.values())
        count += sum(map(len, texts))
        if kept and count > most:
            break
        kept.append(sample)
    return kept


def _people(
    samples: Sequence[Sample], labels: Sequence[str]
) -> tuple[tuple[str, str, tuple[dict[str, Any], ...]], ...]:
    people: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for sample in samples:
        texts = []
        for label, text in sample.generations.items():
            pieces, shared, total = shared_words(sample.reference or "", text)
            own = {"label": label, "index": labels.index(label), "text": text, "pieces": pieces}
            texts.append(own | {"shared": shared, "total": total})
        people.setdefault((sample.dataset, sample.user_id), []).append({"sample": sample, "texts": texts})
    return tuple((dataset, user, tuple(cards)) for (dataset, user), cards in people.items())


def _statement(results: StudyResults, found: Sequence[Board], shown: int) -> str:
    named = {sample.dataset for sample in results.samples}
    asked = [max(examples) for board in found if board.dataset in named and (examples := board.counts()[1])]
    of = f" of {max(asked):,}" if asked and max(asked) >= len(results.samples) else ""
    split = results.study.get("split")
    given = isinstance(split, dict) and split.get("file")
    order = "in the order of the split's file" if given else f"in the order that seed {results.study.get('seed')} drew"
    if not given and "seed" not in results.study:
        order = "in the order of the split"
    kept = f"{counted(len(results.samples), 'query prompt')}{of}"
    text = f"{kept}: the first of every user in turn, users {order}. Nobody chose them by what was written."
    if any(board.is_one_of_several for board in found):
        text += " They come from all points in turn, and each says from which."
    if shown < len(results.samples):
        text += f" This page holds the first {shown:,}; with all of them it would be too large."
    return text
