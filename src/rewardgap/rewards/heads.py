"""Reward heads alone, on features of any origin: arrays in, arrays out.

    head = heads.LoRe(rank=4).fit(chosen, rejected, user)      # (N, D), (N, D), (N,) strings
    state = head.adapt(chosen_u, rejected_u)                   # (n, D), (n, D)
    head.rewards(features, state)                              # (B, D) -> (B,)

Tensors give tensors and numpy arrays give numpy arrays.
"""

from __future__ import annotations

from rewardgap.rewards.global_bt import GlobalBT
from rewardgap.rewards.lore import LoRe
from rewardgap.rewards.mpu import MPU
from rewardgap.rewards.pal_a import PALA
from rewardgap.rewards.pal_b import PALB
from rewardgap.rewards.pref import PReF
from rewardgap.rewards.states import UserState, states_from_tensors, states_to_tensors
from rewardgap.rewards.vpl import VPL

__all__ = [
    "MPU",
    "PALA",
    "PALB",
    "VPL",
    "GlobalBT",
    "LoRe",
    "PReF",
    "UserState",
    "states_from_tensors",
    "states_to_tensors",
]
