"""Tokens as they are chosen, as pieces of text that a terminal can show at once."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import typer

from rewardgap.cli.errors import harmless, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.decoding.loop import Decoded

UNFINISHED = "\ufffd"
"""What a decoder gives for bytes that are not a whole character yet."""
END = "⟨end⟩"


class Decodes(Protocol):
    """The part of an encoder that turns ids into text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        ...


@dataclass(frozen=True)
class Piece:
    """What one token added to the text, or several of which only the last ended on a whole character.

    Attributes:
        text: as decoded; empty where the row ended.
        steps: numbers of the tokens, from 0.
        instead: step -> the policy's own token as text, where guidance took another.
    """

    text: str
    steps: tuple[int, ...]
    instead: dict[int, str] = field(default_factory=dict)


class TokenStream:
    """Cuts a growing row of tokens into pieces; `watch` takes what `PolicyRun.generate` tells after each token.

    Args:
        encoder: decodes ids.
    """

    def __init__(self, encoder: Decodes) -> None:
        self._encoder = encoder
        self._shown = ""
        self._steps = 0
        self.decoded: Decoded | None = None

    def watch(self, decoded: Decoded) -> list[Piece]:
        """Return what can be shown now: nothing while bytes end inside a character.

        A look ahead tells of one token after the other, as every other loop does; a search may add several at once.
        """
        self.decoded = decoded
        text = self._encoder.decode(decoded.ids)
        if decoded.steps == self._steps or text.endswith(UNFINISHED) or not text.startswith(self._shown):
            return []
        return [self._piece(text)]

    def rest(self) -> list[Piece]:
        """Return what was held back, at the end of the row."""
        if self.decoded is None or self.decoded.steps == self._steps:
            return []
        return [self._piece(self._encoder.decode(self.decoded.ids))]

    def _piece(self, text: str) -> Piece:
        assert self.decoded is not None
        steps = tuple(range(self._steps, self.decoded.steps))
        # Where a later token changed what an earlier one is read as, the whole text is shown again.
        new = text[len(self._shown) :] if text.startswith(self._shown) else f"\n{text}"
        instead = {
            step: self._encoder.decode([token]) or END
            for step, token in self.decoded.alternatives.items()
            if step in steps
        }
        self._shown, self._steps = text, self.decoded.steps
        return Piece(new, steps, instead)


@dataclass(frozen=True)
class Palette:
    """How a changed token is marked: by colour, or by brackets where there is none.

    Args:
        coloured: whether the terminal shows colours.
        alternatives: also show the policy's own token.
    """

    coloured: bool
    alternatives: bool = False

    @classmethod
    def of_terminal(cls, alternatives: bool = False) -> Palette:
        """Return colours on a terminal, unless NO_COLOR is set."""
        dumb = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(sys.stdout.isatty() and not dumb, alternatives)

    def show(self, piece: Piece) -> str:
        """Return a piece for the terminal; its text is made harmless.

        Example:
            >>> Palette(False, True).show(Piece(" light", (3,), {3: " paper"}))
            ' [paper→light]'
        """
        text = harmless(piece.text)
        if not piece.instead:
            return text
        word = text.lstrip()
        before = text[: len(text) - len(word)]
        # What is all blank has nothing to mark, so a sign stands for it.
        shown = word or (_sign(before) if before else END)
        before = before if word else ""
        after = "" if word else text
        others = one_line("".join(piece.instead.values())) or _sign("".join(piece.instead.values()))
        if self.coloured:
            struck = typer.style(others, dim=True, strikethrough=True) + " " if self.alternatives else ""
            return before + struck + typer.style(shown, fg="cyan", bold=True) + after
        return before + (f"[{others}→{shown}]" if self.alternatives else f"[{shown}]") + after


def _sign(blank: str) -> str:
    return "⏎" if "\n" in blank else "␣"
