"""Free-form values of a study (settings, versions, statistics) as text."""

from __future__ import annotations

import json
from typing import Any

import yaml

from rewardgap.report.texts import encodable


def as_yaml(value: Any) -> str:
    """Return a JSON-like value as YAML, in its own order; other types are shown by `str`."""
    known = json.loads(json.dumps(value, default=str))
    return encodable(yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=100))


def flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as rows of a dotted name and a text.

    Example:
        >>> flat({"python": "3.11", "packages": {"torch": "2.13"}, "sizes": [1, 2]})
        [('python', '3.11'), ('packages.torch', '2.13'), ('sizes', '1, 2')]
    """
    rows: list[tuple[str, str]] = []
    for name, one in value.items():
        if isinstance(one, dict):
            rows += flat(one, f"{prefix}{name}.")
        elif isinstance(one, (list, tuple)) and not any(isinstance(item, (dict, list, tuple)) for item in one):
            rows.append((f"{prefix}{name}", ", ".join(_text(item) for item in one)))
        else:
            rows.append((f"{prefix}{name}", _text(one)))
    return rows


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict, tuple)) else str(value)
