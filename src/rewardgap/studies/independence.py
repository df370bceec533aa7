"""Whether a judge is independent of what it judges: who it is, and on which network."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rewardgap.backbones.serving import is_served, parse_served
from rewardgap.core.store import content_hash
from rewardgap.metrics.win_rate import judged_name
from rewardgap.policies.catalog import ALL_JUDGES, JUDGES
from rewardgap.studies.methods import config_of
from rewardgap.studies.workbench import shown_name

if TYPE_CHECKING:
    from rewardgap.metrics.win_rate import Opponent
    from rewardgap.studies.deployments import Deployment
    from rewardgap.studies.spec import JudgeSpec, RewardModelSpec
    from rewardgap.studies.workbench import Workbench


class Network(NamedTuple):
    """Which network is at work: its name, and its weights where they are here."""

    name: str
    weights: str | None

    def is_same(self, other: Network) -> bool:
        """Say whether two networks are one, as far as can be seen.

        Weights that are here are compared; of one that a server holds the name alone is known, without its owner.
        """
        if self.weights is not None and other.weights is not None:
            return self.weights == other.weights
        return self.name == other.name


def network(bench: Workbench, place: str | None) -> Network:
    """Return the network behind a name in a study, the policy's unless named."""
    place = place or bench.study.policy
    model = parse_served(place).model if is_served(place) else shown_name(place)
    name = model.rpartition("/")[2].partition("@")[0].casefold()
    return Network(name, None if is_served(place) else bench.fingerprint(place))


def identity(bench: Workbench, spec: JudgeSpec | RewardModelSpec) -> str:
    """Return what tells judges apart: the method, its settings and its network; labels do not count."""
    card = ALL_JUDGES[spec.method]
    return content_hash([spec.method, config_of(card, spec.options), list(network(bench, spec.backbone))])


def metric_of(bench: Workbench, spec: JudgeSpec, deployment: Deployment, opponent: Opponent) -> str:
    """Return the name of a judge's win rate: circular, related to who wrote, or independent."""
    model = deployment.reward_model
    guide = identity(bench, model) if model is not None and model.method in JUDGES.names() else None
    places = [None] if model is None else [None, model.backbone]
    own = network(bench, spec.backbone)
    related = any(own.is_same(network(bench, place)) for place in places)
    return judged_name(guide, identity(bench, spec), related=related, opponent=opponent)
