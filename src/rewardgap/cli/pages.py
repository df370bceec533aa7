"""Catalogue pages in Markdown, made from cards alone: the same cards give the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.cli.cards import CardView

NOTICE = "<!-- Written by `rewardgap docs`; change the cards in the source, not this page. -->"


def page(title: str, opening: str, views: Sequence[CardView]) -> str:
    """Return the page of one catalogue: a table of all entries, then each entry whole."""
    parts = [NOTICE, f"# {title}", opening, _listing(views), *(_entry(view) for view in views)]
    return "\n\n".join(parts) + "\n"


def index(pages: Sequence[tuple[str, str, Sequence[CardView]]]) -> str:
    """Return the page that links the others, each given as (file, title, entries)."""
    lines = [f"- [{title}]({file}): {', '.join(_code(view.name) for view in views)}" for file, title, views in pages]
    return "\n\n".join([NOTICE, "# Catalogues", "\n".join(lines)]) + "\n"


def _listing(views: Sequence[CardView]) -> str:
    columns = list(views[0].columns) if views else []
    rows = [
        [f"[{_code(view.name)}](#{view.name.lower()})", *(view.columns[column] for column in columns), view.summary]
        for view in views
    ]
    return _table(["name", *columns, "what it is"], rows)


def _entry(view: CardView) -> str:
    facts = [f"- {name}: {_cell(text)}" for name, text in view.columns.items()]
    facts += [
        f"- {label.lower()}: {_code(text) if label == 'Equation' else text}" for label, text in view.facts.items()
    ]
    parts = [f"## {view.name}", view.summary, "\n".join(facts)]
    if view.settings:
        rows = [[_code(entry.name), entry.meaning, _code(entry.default)] for entry in view.settings]
        parts.append(_table(["setting", "meaning", "default"], rows))
    if view.deviations:
        parts.append("Differences from the source:\n\n" + "\n".join(f"- {sentence}" for sentence in view.deviations))
    if view.notes:
        parts.append("\n".join(f"- {sentence}" for sentence in view.notes))
    return "\n\n".join(part for part in parts if part)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([_cell(text) for text in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _code(text: str) -> str:
    marks = "``" if "`" in text else "`"
    return f"{marks}{text}{marks}" if text else ""
