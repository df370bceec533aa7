"""Writes the tables of docs/guidance.md from the catalogues; a test holds that the page has them.

python benchmarks/guidance_page.py
"""

from __future__ import annotations

from pathlib import Path

from rewardgap.decoding.base import JUDGES, STATE_VALUES, TOKEN_REWARDS
from rewardgap.decoding.catalog import DECODERS
from rewardgap.studies.methods import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "guidance.md"
KINDS = {"head": STATE_VALUES, "autoregressive": TOKEN_REWARDS, "judge": JUDGES}
BEGIN = "<!-- {name}: written by `python benchmarks/guidance_page.py` from the catalogue -->\n"
END = "<!-- end of {name} -->"


def schemes() -> str:
    """Return which kinds of reward models each guided decoder works with."""
    lines = [f"| scheme | what it does | {' | '.join(KINDS.values())} | policy accuracy |", "| --- " * 6 + "|"]
    for card in DECODERS:
        if card.guided:
            works = " | ".join(_yes(kind in card.families) for kind in KINDS.values())
            link = f"[`{card.name}`](catalogue/decoders.md#{card.name})"
            lines.append(f"| {link} | {card.summary} | {works} | {_yes(card.scores)} |")
    return "\n".join(lines)


def kinds() -> str:
    """Return the reward models and judges of each kind."""
    lines = ["| kind | reward models |", "| --- | --- |"]
    for family, kind in KINDS.items():
        names = [f"[`{card.name}`](catalogue/methods.md#{card.name})" for card in METHODS if card.family == family]
        lines.append(f"| {kind} | {', '.join(names)} |")
    return "\n".join(lines)


def filled(page: str) -> str:
    """Return a page with the tables between their marks as the catalogue has them now."""
    for name, table in (("schemes", schemes()), ("kinds", kinds())):
        begin, end = BEGIN.format(name=name), END.format(name=name)
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{PAGE.name} has no place for the table '{name}': {begin.strip()} ... {end}")
        page = f"{before}{begin}\n{table}\n\n{end}{after}"
    return page


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
