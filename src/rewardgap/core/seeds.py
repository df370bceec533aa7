"""One seed decides everything: a named child seed for each purpose, so a subset run draws what the full run draws."""

from __future__ import annotations

import hashlib


def child_seed(root: int, *names: str | int) -> int:
    """Return a 63-bit seed for one purpose.

        seed = first 63 bits of SHA-256(root / name / name ...)

    Args:
        root: the study's seed.
        names: the purpose and its parts, for example ("sample", user_id, example_id).

    Example:
        >>> child_seed(0, "split") == child_seed(0, "split") != child_seed(1, "split")
        True
    """
    text = "\x1f".join([str(int(root)), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
