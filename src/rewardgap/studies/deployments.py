"""The deployments of a study: lines of its file expanded into all combinations, each with a name of its own."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rewardgap.core.errors import ConfigError
from rewardgap.decoding.base import JUDGES
from rewardgap.decoding.best_of_n import BestOfN
from rewardgap.decoding.catalog import DECODERS, build_decoder
from rewardgap.studies.methods import steers
from rewardgap.studies.spec import WEIGHTS, Part, RewardModelSpec, decoder_defaults, listed

if TYPE_CHECKING:
    from rewardgap.decoding.base import Decoder
    from rewardgap.studies.spec import DeploymentSpec, StudySpec


class Deployment(Part):
    """One deployment after expansion: the settings that name it."""

    kind: Literal["policy", "guided"]
    name: str
    reward_model: RewardModelSpec | None = None
    guidance_weight: float | None = None
    top_k: int | None = None
    retriever: str | None = None
    shots: int | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def decoder_name(self) -> str:
        """Return a decoder's or policy's name: with the options by which it differs from its defaults."""
        return " ".join([self.name, *(f"{name}={_shown(value)}" for name, value in self.options.items())])

    @property
    def decoder_title(self) -> str:
        """Return a decoder's name with its weight and its candidates, where it has them."""
        weight = "" if self.guidance_weight is None else f" λ={self.guidance_weight:g}"
        width = "" if self.top_k is None else f" k={self.top_k}"
        return f"{self.decoder_name}{weight}{width}"

    def decoder(self) -> Decoder:
        """Return the decoder of a guided deployment.

        Raises:
            UnknownNameError: if there is no such decoder.
            ConfigError: if it has no such option, a value is out of range, or who picks has no use for it.
        """
        own = {"guidance_weight": self.guidance_weight, "top_k": self.top_k}
        decoder = build_decoder(self.name, **{k: v for k, v in own.items() if v is not None}, **self.options)
        if isinstance(decoder, BestOfN) and self.reward_model is not None:
            check = decoder.check_rewarded if steers(self.reward_model.method) else decoder.check_judged
            check()
        return decoder


def expand(study: StudySpec) -> list[Deployment]:
    """Return every deployment of a study, in order, each once.

    Raises:
        ConfigError: if a guided deployment names a reward model that the study does not have.
    """
    out: dict[str, Deployment] = {}
    for spec in study.deployments:
        if spec.policy is not None:
            shots = listed(spec.num_demonstrations)
            made = [
                Deployment(
                    kind="policy", name=spec.policy, shots=number, retriever=spec.retriever, options=spec.options
                )
                for number in shots
            ]
        else:
            assert spec.decoder is not None
            models = _steering(study, spec)
            grid = itertools.product(models, *_grid(spec))
            made = [
                Deployment(
                    kind="guided",
                    name=spec.decoder,
                    reward_model=model,
                    guidance_weight=weight if steers(model.method) else None,
                    top_k=k,
                    options=own,
                )
                for model, weight, k, own in grid
            ]
        out.update({deployment.model_dump_json(): deployment for deployment in made})
    return list(out.values())


def _steering(study: StudySpec, spec: DeploymentSpec) -> list[RewardModelSpec]:
    """Return the reward models of a line: those it names, else all that reward; a judge only where it is named."""
    assert spec.decoder is not None
    able = [model for model in study.reward_models if steers(model.method)]
    named = set(spec.reward_models or ())
    judges = [m for m in study.reward_models if m not in able and {m.name, m.method} & named]
    if judges and JUDGES not in DECODERS[spec.decoder].families:
        raise ConfigError(
            f"deployment '{spec.decoder}' names {judges[0].name}, which ranks whole texts and rewards no token; "
            "leave it out: it ranks pairs, judges what the others write, and picks under best_of_n."
        )
    if judges and listed(spec.guidance_weight) != [decoder_defaults(spec.decoder)["guidance_weight"]]:
        raise ConfigError(
            f"deployment '{spec.decoder}': guidance_weight weighs rewards, and {judges[0].name} has none; leave it "
            "out, and give judges a line of their own."
        )
    if not able and not judges:
        raise ConfigError(f"decoder '{spec.decoder}' needs a reward model; list some under reward_models.")
    if spec.reward_models is None:
        return able
    able = [model for model in study.reward_models if model in able or model in judges]
    known = {name for model in able for name in (model.name, model.method)}
    unknown = [name for name in spec.reward_models if name not in known]
    if unknown:
        raise ConfigError(
            f"deployment '{spec.decoder}' names reward model '{unknown[0]}', which reward_models does not list: "
            f"{', '.join(sorted(known))}."
        )
    return [m for m in able if m.name in spec.reward_models or m.method in spec.reward_models]


def _grid(spec: DeploymentSpec) -> tuple[list[Any], list[Any], list[dict[str, Any]]]:
    """Return the guidance weights, the numbers of candidates and the options of a line of guided deployments.

    A decoder without one of the first two has None for it. Options at their defaults are left out: they name nothing.
    """
    assert spec.decoder is not None
    card = DECODERS[spec.decoder]
    for name in WEIGHTS:
        if name in spec.options:
            raise ConfigError(f"deployment '{spec.decoder}': {name} stands beside options, not among them.")
        if name in spec.model_fields_set and name not in card.options:
            known = ", ".join(option for option in card.options) or "none"
            raise ConfigError(f"decoder '{spec.decoder}' has no option '{name}'. Known: {known}.")
    own = decoder_defaults(spec.decoder)
    weights, widths = (
        [None]
        if name not in card.options
        else listed(getattr(spec, name) if name in spec.model_fields_set else own[name])
        for name in WEIGHTS
    )
    rows = itertools.product(*map(listed, spec.options.values()))
    changed = [
        {name: value for name, value in zip(spec.options, row, strict=True) if name not in own or own[name] != value}
        for row in rows
    ]
    return weights, widths, list({_shown(row): row for row in changed}.values())


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
