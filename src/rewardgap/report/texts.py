"""Texts that came from data, made safe to show: a study's names and completions are written by strangers."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter

_HALF_PAIR = re.compile("[\ud800-\udfff]")
_WORD = re.compile(r"\w+")
_INTERVAL = re.compile(r"(\d) \[([−\d.]+), ([−\d.]+)\]")
# An underscore within a word and a bracket that opens no link mean nothing in Markdown; escaping them hurts the eye.
_MARKDOWN = re.compile(r"[\\`*|]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|~(?=~)|^#")
# Characters that reorder what stands around them, so that a name could rewrite the line it is printed in.
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def encodable(text: str) -> str:
    """Return the text with half surrogate pairs, which no file can hold, replaced by U+FFFD."""
    return _HALF_PAIR.sub("\ufffd", text)


def plain(text: object, limit: int | None = None) -> str:
    """Return one line that a terminal prints as it stands: no control or reordering characters.

    Args:
        text: anything; taken by `str`.
        limit: longest length; a longer text ends in an ellipsis.
    """
    pieces = []
    for character in str(text):
        if character.isspace():
            pieces.append(" ")
        elif character in _BIDI_CONTROLS or unicodedata.category(character) in ("Cc", "Cs"):
            pieces.append("\ufffd")
        else:
            pieces.append(character)
    line = " ".join("".join(pieces).split())
    return line if limit is None or len(line) <= limit else line[: max(limit - 1, 1)].rstrip() + "…"


def markdown(text: object) -> str:
    """Return one line of Markdown that shows the text literally, also within a table cell."""
    return _MARKDOWN.sub(r"\\\g<0>", html.escape(plain(text), quote=False))


def fenced(text: str, language: str = "") -> str:
    """Return a fenced code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{encodable(text).rstrip()}\n{fence}"


def unbroken(text: str) -> str:
    """Return a sentence whose intervals no line break can cut.

    Example:
        >>> unbroken("it has 41.2 [38.0, 44.5].").split()
        ['it', 'has', '41.2', '[38.0,', '44.5].']
        >>> unbroken("it has 41.2 [38.0, 44.5].").count(" ")
        2
    """
    return _INTERVAL.sub("\\1\u00a0[\\2,\u00a0\\3]", text)


def shared_words(reference: str, text: str) -> tuple[list[tuple[str, bool]], int, int]:
    """Cut a text into pieces and say which are words of the reference.

    A word counts as often as the reference has it, as in ROUGE-1; case is ignored.

    Returns:
        The pieces with a flag, which joined give the text; the number of shared words; the words in the reference.

    Example:
        >>> shared_words("Return a copy.", "return the")
        ([('return', True), (' the', False)], 1, 3)
    """
    left = Counter(word.casefold() for word in _WORD.findall(reference))
    total = sum(left.values())
    pieces: list[tuple[str, bool]] = []
    shared = at = 0
    for match in _WORD.finditer(text):
        word = match.group().casefold()
        if left[word] > 0:
            left[word] -= 1
            shared += 1
            if match.start() > at:
                pieces.append((text[at : match.start()], False))
            pieces.append((match.group(), True))
            at = match.end()
    if at < len(text):
        pieces.append((text[at:], False))
    return pieces, shared, total
