"""Reward models by name and from disk: the family decides the class, and a folder says what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rewardgap.backbones.features import FeatureCache, PromptLimit
from rewardgap.backbones.lora import LoraSettings, attach_lora, load_adapter, stamp
from rewardgap.core.errors import ModelError
from rewardgap.core.store import read_json
from rewardgap.rewards.apart import ApartModel
from rewardgap.rewards.autoregressive import AutoregressiveModel
from rewardgap.rewards.catalog import REWARD_MODELS, build_head, fit_mode_of
from rewardgap.rewards.farma import Farma
from rewardgap.rewards.model import FORMAT, RewardModel
from rewardgap.rewards.pad import PAD
from rewardgap.rewards.pad_model import PADModel
from rewardgap.rewards.personal_adapters import PersonalAdapterModel
from rewardgap.rewards.value_model import ValueTableModel

if TYPE_CHECKING:
    import torch

    from rewardgap.backbones.hf import Backbone
    from rewardgap.rewards.model import FitMode


def reward_model(
    method: str,
    backbone: Backbone | str,
    *,
    fit_mode: FitMode | None = None,
    max_prompt_tokens: int | None = None,
    on_long: Literal["error", "truncate_prompt"] = "error",
    features: FeatureCache | None = None,
    lora: LoraSettings | None = None,
    **options: Any,
) -> RewardModel:
    """Build a reward model that is not fitted yet.

    Args:
        method: name in the catalogue, for example "lore".
        backbone: a loaded backbone, or its name.
        fit_mode: "frozen" or "lora"; heads are frozen unless given, autoregressive models always train an adapter.
        max_prompt_tokens: longer prompts are an error, or cut (see `on_long`).
        on_long: "error" or "truncate_prompt".
        features: cache of features; the shared one unless given.
        lora: the adapter's shape.
        options: the method's own settings, for example rank=4.

    Raises:
        UnknownNameError: if there is no such method; the nearest name is given.
        ConfigError: if the method has no such option, or is not fitted that way.
    """
    card = REWARD_MODELS[method]
    mode = fit_mode_of(method, fit_mode)
    if isinstance(backbone, str):
        from rewardgap.backbones.load import load_backbone

        backbone = load_backbone(backbone)
    build: type[RewardModel] = RewardModel
    if card.family == "autoregressive":
        build = AutoregressiveModel
    elif card.adapter_per_user and mode == "lora":
        build = PersonalAdapterModel
    head = build_head(method, **options)
    if getattr(head, "view", "joint") == "apart":
        build = ApartModel
    elif isinstance(head, PAD):
        build = PADModel
    elif isinstance(head, Farma):
        build = ValueTableModel
    return build(
        method,
        head,
        backbone,
        mode,
        PromptLimit(max_prompt_tokens, on_long),
        features if features is not None else FeatureCache(),
        lora or LoraSettings(),
    )


def load_reward_model(folder: str | Path, backbone: Backbone | None = None) -> RewardModel:
    """Read what `RewardModel.save` wrote.

    Args:
        folder: the model's folder.
        backbone: the base backbone; loaded by its recorded name unless given.

    Raises:
        ModelError: if the folder holds no reward model, or the backbone is not the one it was fitted on.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    if backbone is None:
        from rewardgap.backbones.load import load_backbone

        backbone = load_backbone(facts["backbone"])
    if backbone.fingerprint != facts["backbone_fingerprint"]:
        raise ModelError(
            f"reward model '{folder}' was fitted on {facts['backbone']} ({facts['backbone_fingerprint']}), the "
            f"backbone given is {backbone.name} ({backbone.fingerprint}). Give the same weights, template and dtype."
        )
    model = reward_model(
        facts["method"],
        backbone,
        fit_mode=facts["fit_mode"],
        max_prompt_tokens=facts["max_prompt_tokens"],
        on_long=facts["on_long"],
        lora=LoraSettings(**facts["lora"]) if facts["lora"] else None,
        **facts["config"],
    )
    if isinstance(model, PersonalAdapterModel):
        return model.restore(folder, facts, read_tensors(folder / "head.safetensors"))
    if isinstance(model, AutoregressiveModel):
        return model.restore(read_tensors(folder / "head.safetensors"), read_tensors(folder / "adapter.safetensors"))
    model.head.load_state_dict(read_tensors(folder / "head.safetensors"))
    if facts["fit_mode"] == "lora":
        adapted = attach_lora(backbone, model.lora, 0)
        load_adapter(adapted.model, read_tensors(folder / "adapter.safetensors"))
        stamp(adapted, backbone, model.lora)
        model.adapted = adapted
    return model


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what `RewardModel.save` wrote into `model.json`.

    Raises:
        ModelError: if it is missing, damaged, or of another format.
    """
    path = folder / "model.json"
    if not path.exists():
        raise ModelError(f"no reward model in '{folder}': model.json is missing.")
    try:
        facts = read_json(path)
    except ValueError as error:
        raise ModelError(f"'{path}' is damaged ({error}); fit and save the model again.") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ModelError(f"'{path}' is not a reward model of format {FORMAT}; fit and save the model again.")
    return facts


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        ModelError: if it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"'{path}' is missing or damaged ({error}); fit and save the model again.") from error
    return tensors
