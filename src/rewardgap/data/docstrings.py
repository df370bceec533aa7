r"""The embedded default: installed Python libraries as users, who summarise their own docstrings.

Each library has a house style (mood, full stop, backticks, how much a summary says), and its pinned version makes the
rows reproducible without a network. The prompt is an object's name and the body of its docstring; the reference is the
summary line its authors wrote. Files are read by `ast`, never imported.

One raw row, from a function `retry` in `somelib/http.py`::

    def retry(call, attempts):
        '''Call again until it succeeds.

        Waits twice as long after each failure.
        '''

which becomes `prompt_source="somelib.http.retry\n\nWaits twice as long after each failure."` and
`reference="Call again until it succeeds."`.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import AuthoredText
from rewardgap.core.seeds import child_seed
from rewardgap.data.authored import TASKS
from rewardgap.data.base import AuthoredDataset, DatasetCard
from rewardgap.data.collecting import content_id

if TYPE_CHECKING:
    from collections.abc import Iterator

DISTRIBUTIONS = (
    "accelerate", "annotated-types", "anyio", "bm25s", "click", "contourpy", "datasets", "dill", "filelock",
    "fonttools", "fsspec", "h11", "httpcore2", "httpx2", "huggingface-hub", "idna", "jinja2", "markdown-it-py",
    "matplotlib", "mpmath", "multiprocess", "networkx", "numpy", "packaging", "pandas", "peft", "pillow", "psutil",
    "pyarrow", "pydantic", "pydantic-core", "pygments", "pyparsing", "python-dateutil", "requests", "rich",
    "safetensors", "scipy", "sympy", "tokenizers", "torch", "tqdm", "transformers", "typer", "urllib3",
)  # fmt: skip
MIN_DISTRIBUTIONS = 20
SKIPPED_FOLDERS = frozenset(
    {
        "_vendor",
        "vendor",
        "vendored",
        "extern",
        "externals",
        "_extern",
        "test",
        "tests",
        "_tests",
        "testing",
        "_testing",
    }
)
MAX_FILE_BYTES = 200_000
SUMMARY_WORDS = range(3, 21)
MIN_BODY_WORDS = 8
ROWS_PER_FILE = 6

_NOT_PROSE = re.compile(r"^\s*(>>>|\.\.\.|\.\. |[|+=~*-]{3,}|:\w+:`?$|In \[\d+\]|\$ )")
_SECTION_RULE = re.compile(r"^\s*[-=~^\"]{3,}\s*$")
_BAD_SUMMARY = re.compile(
    r"^\W*(\w[\w.]*\(.*\)|.*(->|={3,}|-{3,}|\|).*|(deprecated|todo|fixme|copyright)\b.*|.*:)$", re.I
)


@dataclass(frozen=True, slots=True)
class Docstring:
    """A documented object: qualified name, kind, one-line summary, cleaned body."""

    name: str
    kind: str
    summary: str
    body: str


def load_docstrings(
    *, rows_per_user: int = 64, max_body_words: int = 60, min_rows: int = 8, seed: int = 0
) -> AuthoredDataset:
    """Read the docstrings of the installed libraries that the card lists.

    Args:
        rows_per_user: at most this many rows per library, spread over its files.
        max_body_words: the body is cut after this many words.
        min_rows: libraries with fewer rows are left out.
        seed: decides which files of a large library are read.

    Raises:
        ConfigError: if an option is below 1.
        DataError: if fewer than 20 of the libraries are installed with enough rows.
    """
    for option, value in (("rows_per_user", rows_per_user), ("max_body_words", max_body_words), ("min_rows", min_rows)):
        if value < 1:
            raise ConfigError(f"docstrings option {option} is {value}, expected at least 1.")
    seen: set[str] = set()
    texts: list[AuthoredText] = []
    missing, small = [], []
    for user in DISTRIBUTIONS:
        try:
            distribution = metadata.distribution(user)
        except metadata.PackageNotFoundError:
            missing.append(user)
            continue
        rows = _user_rows(user, distribution, seen, rows_per_user, max_body_words, seed)
        if len(rows) < min_rows:
            small.append(user)
            continue
        texts.extend(rows)
    users = len({text.user_id for text in texts})
    if users < MIN_DISTRIBUTIONS:
        raise DataError(
            f"docstrings found {users} of {len(DISTRIBUTIONS)} libraries with at least {min_rows} rows, needs "
            f"{MIN_DISTRIBUTIONS}; install the package with its dependencies, or lower min_rows."
        )
    notes = ["Users are libraries: a text is by its project's authors, not by one person."]
    if missing:
        notes.append(f"{len(missing)} libraries are not installed: {', '.join(missing)}.")
    if small:
        notes.append(f"{len(small)} libraries have fewer than {min_rows} rows: {', '.join(small)}.")
    dropped = {"not_installed": len(missing), "too_few_rows": len(small)}
    return AuthoredDataset(
        "docstrings",
        tuple(texts),
        TASKS["docstring"],
        first_line=True,
        dropped={reason: count for reason, count in dropped.items() if count},
        notes=tuple(notes),
    )


def installed_versions() -> dict[str, str]:
    """Return the version of each listed library that is installed: what the rows depend on."""
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _user_rows(
    user: str, distribution: metadata.Distribution, seen: set[str], limit: int, max_body_words: int, seed: int
) -> list[AuthoredText]:
    """Return up to `limit` rows: a few of each file in a seeded file order, then the rest of the files read."""
    rows: list[AuthoredText] = []
    spare: list[AuthoredText] = []

    def take(text: AuthoredText) -> None:
        # Summaries and bodies that another library has (or another object of this one) are nobody's style.
        keys = {_squash(text.reference), _squash(text.prompt_source.partition("\n")[2])}
        if keys.isdisjoint(seen) and len(rows) < limit:
            seen.update(keys)
            rows.append(text)

    for path, module in _files(distribution, user, seed):
        found = [_row(user, item, max_body_words) for item in _documented(path, module)]
        for text in found[:ROWS_PER_FILE]:
            take(text)
        spare.extend(found[ROWS_PER_FILE:])
        if len(rows) == limit:
            break
    for text in spare:
        take(text)
    return rows


def _row(user: str, item: Docstring, max_body_words: int) -> AuthoredText:
    text = AuthoredText(
        user_id=user,
        example_id="",
        prompt_source=f"{item.name}\n\n{_cut(item.body, max_body_words)}",
        reference=item.summary,
        meta={"object": item.name, "kind": item.kind},
    )
    return AuthoredText(
        user_id=user,
        example_id=content_id(text),
        prompt_source=text.prompt_source,
        reference=text.reference,
        meta=text.meta,
    )


def _files(distribution: metadata.Distribution, user: str, seed: int) -> Iterator[tuple[Path, str]]:
    """Yield (path, module name) of a distribution's own sources, in an order that only the seed and names decide."""
    sources = []
    for file in distribution.files or []:
        parts = file.parts
        own = file.suffix == ".py" and ".." not in parts and not file.is_absolute()
        hidden = SKIPPED_FOLDERS.intersection((*parts, file.stem)) or file.name.startswith(
            ("test_", "conftest", "setup.")
        )
        if own and not hidden:
            sources.append("/".join(parts))
    for name in sorted(sources, key=lambda name: (child_seed(seed, "docstrings", user, name), name)):
        path = Path(str(distribution.locate_file(name)))
        yield path, name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _documented(path: Path, module: str) -> list[Docstring]:
    """Return the usable docstrings of a file, in its order; none where it cannot be read."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return []
        with warnings.catch_warnings():
            # Old libraries hold escapes that newer compilers warn of; the text is what we want.
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    return [item for name, node in _objects(tree, module) if (item := _split(name, node)) is not None]


_Object = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _objects(tree: ast.Module, module: str) -> Iterator[tuple[str, _Object]]:
    yield module, tree
    waiting: list[tuple[str, ast.AST]] = [(module, tree)]
    while waiting:
        name, parent = waiting.pop(0)
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inner = f"{name}.{node.name}"
                yield inner, node
                if isinstance(node, ast.ClassDef):
                    waiting.append((inner, node))


def _split(name: str, node: _Object) -> Docstring | None:
    raw = ast.get_docstring(node, clean=False)
    if raw is None:
        return None
    head, _, rest = inspect.cleandoc(raw).partition("\n\n")
    summary, body = " ".join(head.split()), _prose(rest)
    if len(summary.split()) not in SUMMARY_WORDS or _BAD_SUMMARY.match(summary):
        return None
    if len(body.split()) < MIN_BODY_WORDS or _squash(summary) in _squash(body) or not _is_text(summary + body):
        return None
    kind = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
    return Docstring(name, kind, summary, body)


def _prose(rest: str) -> str:
    """Return the body without examples at a prompt, tables, directives and rules under headings."""
    lines = [line.rstrip() for line in rest.splitlines() if not (_NOT_PROSE.match(line) or _SECTION_RULE.match(line))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _cut(body: str, max_words: int) -> str:
    """Return the body up to its `max_words`-th word, line breaks kept."""
    words = list(re.finditer(r"\S+", body))
    return body if len(words) <= max_words else body[: words[max_words - 1].end()]


def _squash(text: str) -> str:
    """Return only the letters and digits, so that typing habits do not hide a copy."""
    return re.sub(r"[\W_]+", "", text.casefold())


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


CARD = DatasetCard(
    name="docstrings",
    summary="Embedded default: one-line docstring summaries by the authors of installed libraries; no network.",
    kind="authored",
    source=f"the installed files of {len(DISTRIBUTIONS)} libraries: {', '.join(DISTRIBUTIONS)}",
    revision="the installed versions (constraints.txt pins them)",
    licence="each library's own",
    citation="none",
    prompt_template=TASKS["docstring"],
    options={
        "rows_per_user": "at most this many rows per library (default 64)",
        "max_body_words": "the body of a docstring is cut after this many words (default 60)",
        "min_rows": "libraries with fewer rows are left out (default 8)",
        "seed": "decides which files of a large library are read (default 0)",
    },
    build=load_docstrings,
    notes=("A user is a project with many authors and one house style.",),
)
