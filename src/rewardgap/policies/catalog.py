"""The one place a deployment without a reward model, or a judge, is named."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardgap.core.catalog import Catalog
from rewardgap.core.errors import ConfigError, ModelError
from rewardgap.core.store import read_json
from rewardgap.policies import contrast, cope, icl_judge, in_context, llm_judge, persona, persona_judge, zero_shot
from rewardgap.policies.chat_models import chat_with
from rewardgap.policies.judges import FORMAT

if TYPE_CHECKING:
    from rewardgap.backbones.hf import Backbone
    from rewardgap.policies.base import AdaptedPolicy
    from rewardgap.policies.cards import JudgeCard, PolicyCard
    from rewardgap.policies.chat_models import ChatModel
    from rewardgap.policies.judges import Judge

POLICIES: Catalog[PolicyCard] = Catalog(
    "deployment", (zero_shot.CARD, in_context.ICL_CARD, in_context.RAG_CARD, persona.CARD, cope.CARD, contrast.CARD)
)
JUDGES: Catalog[JudgeCard] = Catalog("judge", (icl_judge.CARD, persona_judge.CARD))
"""Judges that rank pairs, so that they can stand under reward_models and pick texts too."""
ALL_JUDGES: Catalog[JudgeCard] = Catalog("judge", (*JUDGES, llm_judge.CARD))


def build_judge(
    name: str,
    model: ChatModel | Backbone,
    *,
    prompt_template: str | None = None,
    opponent: AdaptedPolicy | None = None,
    **options: Any,
) -> Judge:
    """Build a judge from its name and settings.

    Args:
        name: an entry of `JUDGES`.
        model: who is asked: a backbone, or a `ChatEndpoint`.
        prompt_template: the instruction around each prompt's own text, left out where prompts are compared.
        opponent: writes the completion that rewards compare with; the judge's own model unless given.
        options: fields of its config; the others keep their defaults.

    Raises:
        UnknownNameError: if there is no such judge.
        ConfigError: if it has no such option, or a value is out of range.
    """
    card = JUDGES[name]
    known = [entry.name for entry in fields(card.config)]
    unknown = [option for option in options if option not in known]
    if unknown:
        near = get_close_matches(unknown[0], known, n=1, cutoff=0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"{name} has no option '{unknown[0]}'.{hint} Known: {', '.join(known)}.")
    judge: Judge = card.build(chat_with(model), prompt_template=prompt_template, opponent=opponent, **options)
    return judge


def load_judge(folder: str | Path, model: ChatModel | Backbone, opponent: AdaptedPolicy | None = None) -> Judge:
    """Read what `Judge.save` wrote; it knows no training users until `fit` is called again.

    Args:
        folder: the judge's folder.
        model: the model it asked.
        opponent: as when it was saved.

    Raises:
        ModelError: if the folder holds no judge, or model or opponent are not those it was saved with.
    """
    path = Path(folder) / "model.json"
    if not path.exists():
        raise ModelError(f"no judge in '{folder}': model.json is missing.")
    try:
        facts = read_json(path)
    except ValueError as error:
        raise ModelError(f"'{path}' is damaged ({error}); save the judge again.") from error
    if not isinstance(facts, dict) or facts.get("family") != "judge" or facts.get("format") != FORMAT:
        raise ModelError(f"'{path}' is not a judge of format {FORMAT}; save the judge again.")
    model = chat_with(model)
    if model.fingerprint != facts["model_fingerprint"]:
        raise ModelError(
            f"judge '{folder}' asked {facts['model']} ({facts['model_fingerprint']}), the model given is {model.name} "
            f"({model.fingerprint}). Give the same weights, template and dtype, or the same endpoint."
        )
    judge = build_judge(
        facts["method"], model, prompt_template=facts["prompt_template"], opponent=opponent, **facts["config"]
    )
    judge.seed = facts["seed"]
    if judge.opponent_facts() != facts["opponent"]:
        raise ModelError(f"judge '{folder}' had another opponent than the one given; rewards would not compare.")
    return judge
