"""Runs the real command line inside the test process, and reads what it said."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

RUNNER = CliRunner()


def call(*arguments: object, stdin: str | None = None) -> Result:
    """Run a command line; an exception that reaches the caller is a traceback on a user's terminal."""
    from rewardgap.cli.app import app

    result = RUNNER.invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def ok(*arguments: object, stdin: str | None = None) -> Result:
    result = call(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def refused(code: int, *arguments: object) -> str:
    """Run a command line that must fail, and return its one sentence."""
    result = call(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output)
    said = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(said) == 1, result.stderr
    assert result.stderr.endswith(said[0] + "\n"), "the sentence comes last"
    sentence = said[0].removeprefix("error: ")
    assert sentence.endswith((".", "?")), sentence
    assert "REWARDGAP_TRACEBACK" not in sentence, sentence
    return sentence


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
