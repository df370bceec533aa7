"""Measure how far the ranking accuracy of reward models is from what they make a policy write.

Example:
    import rewardgap as rg
    data = rg.load_dataset("jsonl", path="prefs.jsonl")
    split = rg.split_users(data, adapt_fraction=0.3, support=8, seed=0)
    policy = rg.load_policy("smollm2-135m")
    rm = rg.reward_model("lore", backbone=policy, rank=4).fit(split.train)
    state = rm.adapt(split.support("u17"))
    guided = rg.guided(policy, rm, state, guidance_weight=1.0, top_k=10)
    guided.generate(["Write a title for ..."])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rewardgap import stats
    from rewardgap.api import split_users
    from rewardgap.backbones.load import load_backbone as load_policy
    from rewardgap.data.catalog import load_dataset
    from rewardgap.policies.catalog import build_judge
    from rewardgap.policies.guided import guided
    from rewardgap.policies.in_context import in_context
    from rewardgap.policies.judged import judged
    from rewardgap.policies.persona import persona
    from rewardgap.policies.zero_shot import zero_shot
    from rewardgap.rewards import heads
    from rewardgap.rewards.build import load_reward_model, reward_model

_HOMES = {
    "build_judge": ("rewardgap.policies.catalog", "build_judge"),
    "guided": ("rewardgap.policies.guided", "guided"),
    "heads": ("rewardgap.rewards.heads", None),
    "in_context": ("rewardgap.policies.in_context", "in_context"),
    "judged": ("rewardgap.policies.judged", "judged"),
    "load_dataset": ("rewardgap.data.catalog", "load_dataset"),
    "load_policy": ("rewardgap.backbones.load", "load_backbone"),
    "load_reward_model": ("rewardgap.rewards.build", "load_reward_model"),
    "persona": ("rewardgap.policies.persona", "persona"),
    "reward_model": ("rewardgap.rewards.build", "reward_model"),
    "split_users": ("rewardgap.api", "split_users"),
    "stats": ("rewardgap.stats", None),
    "zero_shot": ("rewardgap.policies.zero_shot", "zero_shot"),
}

__all__ = [
    "build_judge",
    "guided",
    "heads",
    "in_context",
    "judged",
    "load_dataset",
    "load_policy",
    "load_reward_model",
    "persona",
    "reward_model",
    "split_users",
    "stats",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import rewardgap` and `--help` stay quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rewardgap' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    found = import_module(module)
    value = found if attribute is None else getattr(found, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, "__version__"])
