"""JSON for a terminal: what steers it is escaped, what one reads stays as it is, and nothing is lost."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from command import lines, ok, write_rows
from hypothesis import given
from hypothesis import strategies as st

from rewardgap.cli.errors import json_text

if TYPE_CHECKING:
    from pathlib import Path

STEERING = [
    "\x1b[2J",
    "\x9b31m",
    "\x85",
    "\x90",
    "\u2028",
    "\u2029",
    "\u202e",
    "\u2066",
    "\u200f",
    "\x7f",
    "\ufeff",
    "\ud800",
]
READABLE = 'é ß 漢字　かな עברית العربية हिन्दी 👩‍🚀 👍🏽 a\u00a0b می\u200cخواهم ½ \\ " < > &'
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(STEERING),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_nothing_is_lost_and_nothing_steers(value: Any) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    # Of format characters only the joiners are left, which scripts and emoji are written with.
    assert {c for c in text if unicodedata.category(c) == "Cf"} <= {"\u200c", "\u200d"}


@pytest.mark.parametrize("text", STEERING)
def test_what_steers_a_terminal_is_escaped(text: str) -> None:
    assert json_text(text).isascii()
    assert json_text({text: 1}).isascii()


def test_what_one_reads_stays_as_it_is() -> None:
    assert json_text({"text": READABLE}) == json.dumps({"text": READABLE}, ensure_ascii=False)


def test_generate_prints_hostile_names_as_text(tmp_path: Path) -> None:
    user = "é\x9b31m\u202e\u2028x"
    asked = write_rows(tmp_path / "asked.jsonl", [{"user_id": user, "prompt": "river", "example_id": "\x85"}])
    call = ("generate", "synthetic-words", "--prompts", asked, "--max-new-tokens", 2, "--threads", 1)
    for found in (ok(*call).stdout, ok(*call, "--json").stdout):
        assert found.endswith("\n")
        assert found[:-1].isprintable()
        (shown,) = lines(found)
        row = shown["completions"][0] if "completions" in shown else shown
        assert (row["user_id"], row["example_id"]) == (user, "\x85")
        assert "é\\u009b31m\\u202e\\u2028x" in found
