"""What a study can do with a policy that a serving engine holds: refused before anything runs is what it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardgap.backbones.serving import is_served, parse_served
from rewardgap.core.errors import ConfigError
from rewardgap.decoding import best_of_n
from rewardgap.policies.catalog import POLICIES
from rewardgap.studies.deployments import expand
from rewardgap.studies.workbench import shown_name

if TYPE_CHECKING:
    from rewardgap.studies.spec import StudySpec


def check_served(study: StudySpec) -> None:
    """Refuse what needs weights that are not here.

    Raises:
        ConfigError: if a served policy is steered token by token, deployed in another way than it can be, or to be
            read by a reward model; or if a reward model's own backbone is served.
    """
    for spec in study.reward_models:
        place = spec.backbone or study.policy
        if is_served(place):
            raise ConfigError(
                f"reward model '{spec.name}' reads hidden states, and '{shown_name(place)}' is in a serving engine, "
                "which gives none; give the reward model a local model with backbone:."
            )
    if not is_served(study.policy):
        return
    parse_served(study.policy)
    for deployment in expand(study):
        if deployment.kind == "guided":
            able, what = deployment.name == best_of_n.CARD.name, "steers each step by"
        else:
            able, what = POLICIES[deployment.name].servable, "needs"
        if not able:
            known = ", ".join([*(card.name for card in POLICIES if card.servable), best_of_n.CARD.name])
            raise ConfigError(
                f"deployment '{deployment.name}' {what} the policy's weights, and '{shown_name(study.policy)}' is in "
                f"a serving engine; deploy {known}, or take a local policy."
            )
