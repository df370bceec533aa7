"""The templates that ship beside this module, and what every page made of them needs."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined

from rewardgap.report.numbers import counted, interval, number, sortable, span
from rewardgap.report.texts import unbroken
from rewardgap.report.words import axis

CONTROLS = {code: "\ufffd" for code in range(32) if chr(code) not in "\t\n\r"} | {127: "\ufffd"}
"""Characters that no page may hold, for `str.translate`."""


def template_environment() -> Environment:
    """Return the templates' environment: everything is escaped, an unknown name is an error."""
    environment = Environment(
        loader=FunctionLoader(source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "points": number,
        "interval": interval,
        "axis": axis,
        "span": span,
        "counted": counted,
        "unbroken": unbroken,
        "sortable": sortable,
    }
    return environment


def source(name: str) -> str:
    """Return a file that ships beside this module."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def content_hash(text: str) -> str:
    """Return the hash by which a content security policy allows a text."""
    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode()
