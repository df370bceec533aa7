"""Memory: what a batch will take, known before anything is computed, and what to do when it was more than there is.

Keys and values are counted exactly; a forward pass is counted at its widest moment, which is an estimate.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from rewardgap.backbones.lean import ATTENTION, weights_to_prepare
from rewardgap.core.errors import OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.hf import Backbone

GIB = 2**30
CONTAINER = Path("/sys/fs/cgroup")
_SHORT = ("not enough memory", "can't allocate memory", "out of memory")
_INTEGER = 8


class SessionPlan(NamedTuple):
    """A session that is to be opened.

    Attributes:
        backbone: who reads.
        prompt: tokens of the longest prompt.
        room: slots behind it.
        widest: tokens of a row that are read at once at most, the prompt apart.
        scored: positions whose logits over the vocabulary are there at once beside those of the rows' ends.
    """

    backbone: Backbone
    prompt: int
    room: int
    widest: int = 1
    scored: int = 0


class Need(NamedTuple):
    """Bytes that a batch takes: of each row, by what they are for, and of any batch."""

    cache: int
    forward: int
    logits: int
    fixed: int = 0

    @property
    def row(self) -> int:
        """Return the bytes a row."""
        return self.cache + self.forward + self.logits


def session_need(plan: SessionPlan) -> Need:
    """Return what a session takes in memory.

    With L layers, G heads of keys of width d, C = prompt + room slots, H heads of queries, states of width D, a hidden
    layer of width I, Q tokens read at once, V token ids and s bytes a number, a row takes

        cache    2 L G d C s + C (24 + ⌈C / 8⌉)
        forward  2 s Q D + max(4 s Q I, s Q (6 H d + 2 G d) + mask) + Q C
        logits   2 V max(4, s)

    bytes: keys and values, with what each slot holds, follows and sees; the states of one layer while it is computed;
    log-probabilities beside the logits they come from. The mask has s + 1 bytes a query and slot, once for each query
    head that shares a key where `lean` folds them; where layers have a window, at least 8, and Q C counts twice. Any
    batch takes the logits of the positions that are scored at once. A network that does not pack keeps no keys and
    values, and reads one row's paths after another's.
    """
    network = plan.backbone
    config, size = network.config, network.dtype.itemsize
    slots, read = plan.prompt + plan.room, max(plan.prompt, plan.widest)
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or network.width // heads)
    inner = int(getattr(config, "intermediate_size", None) or 4 * network.width)
    copies = heads // groups if getattr(config, "_attn_implementation", None) == ATTENTION else 1
    windowed = bool(getattr(config, "sliding_window", None))
    mask = max(copies * (size + 1), _INTEGER if windowed else 0)
    attention = size * read * (6 * heads * width + 2 * groups * width) + mask * read * slots
    forward = 2 * size * read * network.width + max(4 * size * read * inner, attention) + (1 + windowed) * read * slots
    kept = 2 * int(config.num_hidden_layers) * groups * width * slots * size
    slot = 3 * _INTEGER + (slots + 7) // 8
    logits = 2 * network.vocabulary * max(4, size)
    if not network.packs:
        return Need(slots * slot, 0, logits, forward + plan.scored * logits)
    return Need(kept + slots * slot, forward, logits, plan.scored * logits)


def batch_need(plans: Sequence[SessionPlan]) -> Need:
    """Return what several sessions over the same rows take together.

    All their caches and logits, the widest forward pass, and the weights that `lean` has yet to prepare for them.
    """
    needs = [session_need(plan) for plan in plans]
    models = {id(plan.backbone.model): plan.backbone.model for plan in plans}.values()
    return Need(
        sum(need.cache for need in needs),
        max(need.forward for need in needs),
        sum(need.logits for need in needs),
        sum(need.fixed for need in needs) + sum(weights_to_prepare(model) for model in models),
    )


def check_memory(plans: Sequence[SessionPlan], batch_size: int, rows_a_prompt: int = 1) -> None:
    """Refuse a batch that is larger than the memory that is free, before anything is computed.

    Args:
        plans: the sessions that the batch opens, all on the first one's device.
        batch_size: prompts at a time.
        rows_a_prompt: rows that a prompt takes.

    Raises:
        OutOfMemoryError: naming what the batch needs, what is free, and the batch size that would fit.
    """
    need, free = batch_need(plans), free_memory(plans[0].backbone.device)
    rows = batch_size * rows_a_prompt
    total = need.fixed + rows * need.row
    if total <= free:
        return
    fits = max(0, free - need.fixed) // (need.row * rows_a_prompt)
    advice = f"batch_size {fits} fits" if fits else "not even one prompt fits: shorten prompts and new tokens"
    raise OutOfMemoryError(
        f"batch_size {batch_size} needs about {_gib(total)} GiB for prompts of up to {plans[0].prompt} tokens (keys "
        f"and values {_gib(rows * need.cache)}, forward passes {_gib(need.fixed + rows * need.forward)}, logits "
        f"{_gib(rows * need.logits)}), {_gib(free)} GiB are free; {advice}."
    )


def free_memory(device: torch.device, container: Path = CONTAINER) -> int:
    """Return the bytes that can be allocated on a device now: of a container, no more than its limit leaves.

    Args:
        device: CUDA, or the machine's own memory for anything else.
        container: where the limits of this process's control group are, if it has one.
    """
    if device.type == "cuda":
        # What torch holds and does not use is free for torch.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = container / "memory.max", container / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, max(0, int(limit.read_text()) - int(used.read_text())))
    return free


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out: of a device, of torch on a CPU, of NumPy or of Python."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _SHORT)


def fewer_rows(error: Exception, rows: int) -> int:
    """Return how many rows to try next where a batch ran out of memory: half of them.

    Raises:
        OutOfMemoryError: if there was one row only.
        Exception: the error itself, if it is about something else.
    """
    if not is_out_of_memory(error):
        raise error
    if rows == 1 and isinstance(error, OutOfMemoryError):
        raise error
    if rows == 1:
        raise OutOfMemoryError(
            f"a single row does not fit into memory: {_first_line(error)} Shorten prompts and new tokens, take fewer "
            "candidates or a number type with fewer bytes."
        ) from error
    return (rows + 1) // 2


def give_back() -> None:
    """Hand unused memory of a failed batch back to the device, so that a smaller one finds it in one piece."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if line.endswith(".") else f"{line}."


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}" if size >= GIB / 10 else f"{size / GIB:.2g}"
