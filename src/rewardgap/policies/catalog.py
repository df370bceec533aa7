"""The one place a deployment without a reward model is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.core.catalog import Catalog
from rewardgap.policies import in_context, zero_shot

if TYPE_CHECKING:
    from rewardgap.policies.cards import PolicyCard

POLICIES: Catalog[PolicyCard] = Catalog("deployment", (zero_shot.CARD, in_context.ICL_CARD, in_context.RAG_CARD))
