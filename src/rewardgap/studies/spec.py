"""A study as data: one YAML file, checked whole before anything runs, every problem reported at once."""

from __future__ import annotations

import inspect
import math
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from rewardgap.core.errors import ConfigError, UnknownNameError
from rewardgap.data.protocols import PROTOCOLS
from rewardgap.data.sides import CUT_FORMS, share_before
from rewardgap.decoding.catalog import DECODERS
from rewardgap.studies.methods import mode_of

PAIRING_RULES = ("closest", "generated", "other_user")


class Part(BaseModel):
    """A part of a study: a key that is not known is an error, and a value does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSpec(Part):
    """Which dataset, and its options."""

    name: str = Field(description="name in the catalogue of datasets")
    options: dict[str, Any] = Field(default_factory=dict, description="what the loader takes, for example path")


class PairingSpec(Part):
    """How authored texts become preference pairs."""

    rule: Literal["closest", "generated", "other_user"] = Field("closest", description="named rule")
    temperature: float = Field(1.0, gt=0, description="of the policy's samples")
    tries: int = Field(4, ge=1, description="draws of two samples before a pair without a difference is dropped")


class SplitSpec(Part):
    """Who is trained on and who is adapted to: a file, a published protocol, or a draw by the other options."""

    file: str | None = Field(None, min_length=1, description="a split saved before, instead of a draw")
    protocol: str | None = Field(None, description="a published split by name, instead of a draw")
    train_users: int | None = Field(None, ge=1, description="users in U_train; all that are left unless given")
    pairs_per_train_user: int | None = Field(None, ge=1, description="pairs a training user; all unless given")
    valid_per_train_user: int | None = Field(None, ge=0, description="held-out pairs a training user")
    valid_fraction: float = Field(0.1, ge=0, lt=1, description="held-out share, where no number is given")
    adapt_users: int | None = Field(None, ge=1, description="users in U_adapt")
    adapt_fraction: float = Field(0.3, gt=0, lt=1, description="share of users in U_adapt, where no number is given")
    support: int = Field(8, ge=0, description="pairs an adapt user reveals")
    query: int | None = Field(
        None, ge=1, description="pairs an adapt user is judged on; all that are left unless given"
    )
    order: Literal["auto", "time", "random"] = Field("auto", description="support first in time, or drawn")
    disjoint: Literal["prompt", "item", "row"] = Field("prompt", description="what support and query may not share")
    prompts: Literal["shared", "disjoint"] = Field(
        "shared", description="disjoint: no prompt of a query is learnt from with any user"
    )
    items: Literal["shared", "disjoint"] = Field("shared", description="disjoint: no text of a query either")
    held_out_fraction: float = Field(
        0.5, gt=0, lt=1, description="share of shared prompts and items that is for queries only, where disjoint"
    )
    cut: float | str | None = Field(
        None, description="one date, or the share of rows before it: earlier rows are learnt from, the others asked"
    )

    @field_validator("cut", mode="before")
    @classmethod
    def _a_date_or_share(cls, value: Any) -> Any:
        if value is None:
            return None
        try:
            share = share_before(value)
        except ConfigError:
            raise ValueError(f"expected {CUT_FORMS}") from None
        # YAML reads 2021-01-01 as a date, which JSON does not have.
        return str(value) if share is None else share

    @field_validator("protocol")
    @classmethod
    def _a_known_protocol(cls, value: str | None) -> str | None:
        if value is not None and value not in PROTOCOLS:
            raise ValueError(str(UnknownNameError("split protocol", value, PROTOCOLS)).rstrip("."))
        return value

    @model_validator(mode="after")
    def _one_source(self) -> SplitSpec:
        given = [name for name in ("file", "protocol") if getattr(self, name) is not None]
        useless = sorted(self.model_fields_set - {"file", "protocol"})
        if len(given) == 2:
            raise ValueError("give either file or protocol")
        if given and useless:
            raise ValueError(f"{given[0]} says who is where; it takes no {' and no '.join(useless)}")
        return self

    @property
    def is_drawn(self) -> bool:
        """Return whether the split is drawn by the options, not named."""
        return self.file is None and self.protocol is None

    @model_serializer(mode="wrap")
    def _what_is_in_force(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return what the split comes from: read back, the other keys would contradict it."""
        named = {name: value for name in ("file", "protocol") if (value := getattr(self, name)) is not None}
        return named or {key: value for key, value in dump(self).items() if key not in ("file", "protocol")}


class GenerationSpec(Part):
    """Lengths, the same for every deployment."""

    max_prompt_tokens: int | None = Field(None, ge=8, description="longest prompt without demonstrations")
    max_new_tokens: int = Field(32, ge=1, description="tokens generated at most")
    min_new_tokens: int = Field(1, ge=0, description="end tokens may not come before")
    context_tokens: int | None = Field(None, ge=16, description="longest prompt with demonstrations")
    on_long: Literal["error", "truncate_prompt"] = Field("error", description="what happens to a longer prompt")


class RewardModelSpec(Part):
    """One reward model."""

    method: str = Field(description="name in the catalogue of methods")
    label: str | None = Field(None, min_length=1, description="name in results, where a method stands more than once")
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own settings")
    fit_mode: Literal["frozen", "lora"] | None = Field(
        None, description="frozen features, or jointly with an adapter; the method's own unless given"
    )
    backbone: str | None = Field(None, description="the policy unless given")
    epochs: int | None = Field(None, ge=1, description="passes over the pairs, with an adapter")
    batch_size: int | None = Field(None, ge=1, description="pairs a step, with an adapter")
    learning_rate: float | None = Field(None, gt=0, description="of the adapter")

    @property
    def name(self) -> str:
        """Return the name in results: the label, else the method, with its fit mode where that is a choice."""
        chosen = self.fit_mode == "lora" and mode_of(self.method) == "frozen"
        return self.label or (f"{self.method}+lora" if chosen else self.method)

    @property
    def mode(self) -> Literal["frozen", "lora"] | None:
        """Return the fit mode in force; None where nothing is fitted."""
        return mode_of(self.method, self.fit_mode)


class DeploymentSpec(Part):
    """One line of deployments; lists are expanded into all combinations."""

    policy: str | None = Field(None, description="a deployment without reward model: zero_shot, icl, icl_rag, ...")
    decoder: str | None = Field(None, description="a reward-guided decoder, run with every reward model")
    reward_models: list[str] | None = Field(
        None, description="labels or methods that steer, or judges that pick; all that steer unless given"
    )
    guidance_weight: float | list[float] = Field(1.0, description="lambda; the decoder's own unless given")
    top_k: int | list[int] = Field(10, description="candidates a step; the decoder's own unless given")
    num_demonstrations: int | list[int] | None = Field(None, description="shots")
    retriever: str | None = Field(None, description="which demonstrations")
    options: dict[str, Any] = Field(
        default_factory=dict, description="the policy's own settings, or the decoder's, whose lists are expanded too"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> DeploymentSpec:
        if (self.policy is None) == (self.decoder is None):
            raise ValueError("give either policy (zero_shot, icl, icl_rag) or decoder (args_greedy, ...)")
        for name, fewest in (("top_k", 1), ("num_demonstrations", 0)):
            if any(number is not None and number < fewest for number in listed(getattr(self, name))):
                raise ValueError(f"{name} must be at least {fewest}")
        other = {"num_demonstrations", "retriever"} if self.decoder else {"guidance_weight", "top_k", "reward_models"}
        useless = sorted(other & self.model_fields_set)
        if useless:
            raise ValueError(f"a {'decoder' if self.decoder else 'policy'} takes no {' and no '.join(useless)}")
        values = (self.guidance_weight, self.top_k, self.num_demonstrations, self.reward_models)
        if any(value == [] for value in (*values, *self.options.values())):
            raise ValueError("an empty list runs nothing; leave the key out or give values")
        return self

    @model_serializer(mode="wrap")
    def _what_applies(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the keys that the kind of line has, so that a study that was written out can be read back."""
        value: dict[str, Any] = dump(self)
        if self.decoder is None:
            return {key: value[key] for key in ("policy", "num_demonstrations", "retriever", "options")}
        kept = {key: value[key] for key in ("decoder", "reward_models", "options")}
        own = decoder_defaults(self.decoder) if self.decoder in DECODERS.names() else {}
        weights = {key: value[key] if key in self.model_fields_set else own[key] for key in WEIGHTS if key in own}
        # What is given and the decoder does not have stays: reading it back is refused like the first time.
        return kept | {key: value[key] for key in WEIGHTS if key in self.model_fields_set} | weights


WEIGHTS = ("guidance_weight", "top_k")
"""Options of decoders that have columns of their own in results."""


def decoder_defaults(name: str) -> dict[str, Any]:
    """Return the default of each option of a decoder."""
    card = DECODERS[name]
    entries = inspect.signature(card.build).parameters.items()
    return {option: entry.default for option, entry in entries if option in card.options}


class JudgeSpec(Part):
    """One judge that only judges: it neither steers nor picks, and stands in no correlation of methods."""

    method: str = Field(description="name in the catalogue of methods: llm_judge, icl_judge, persona_judge")
    backbone: str | None = Field(
        None, description="who is asked: a local model, or served:URL#model=NAME; the policy unless given"
    )
    label: str | None = Field(None, min_length=1, description="name in results, where a method stands more than once")
    against: list[Literal["zero_shot", "reference"]] = Field(
        default=["zero_shot"], min_length=1, description="whose texts deployments are compared with"
    )
    key_variable: str = Field(
        "OPENAI_API_KEY", pattern=r"^[A-Z_][A-Z0-9_]*$", description="environment variable that holds the server's key"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the judge's own settings")

    @property
    def name(self) -> str:
        """Return the name in results."""
        return self.label or self.method


class ControlSpec(Part):
    """Checks with a known answer."""

    shuffled_labels: int = Field(20, ge=0, description="refits of every frozen reward model on shuffled labels")
    swap: bool = Field(True, description="own user state against another user's")
    synthetic_text: bool = Field(True, description="oracle guidance and the swap test where the truth is known")


class StudySpec(Part):
    """A whole study."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="also the results folder")
    seed: int = Field(0, ge=0, description="decides everything")
    data: DataSpec
    pairing: PairingSpec = Field(default_factory=PairingSpec)
    split: SplitSpec = Field(default_factory=SplitSpec)
    policy: str = Field(description="short name, hub id or folder")
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    generation: GenerationSpec = Field(default_factory=GenerationSpec)
    batch_size: int = Field(8, ge=1, description="prompts at a time")
    reward_models: list[RewardModelSpec] = Field(default_factory=list)
    deployments: list[DeploymentSpec] = Field(min_length=1)
    judges: list[JudgeSpec] = Field(default_factory=list)
    metrics: list[str] = Field(default_factory=lambda: ["rouge1", "rougeL", "bertscore_f1"])
    controls: ControlSpec = Field(default_factory=ControlSpec)
    resamples: int = Field(2000, ge=1, description="bootstrap resamples")
    equivalence_margin: float = Field(
        0.01, gt=0, description="largest difference in behaviour that does not matter; 0.01 is a point of ROUGE"
    )
    samples: int = Field(24, ge=0, description="query prompts shown in the report")
    vary: list[dict[str, list[Any]] | list[dict[str, Any]]] = Field(
        default_factory=list, description="axes: the study is run at every combination of their values"
    )

    @field_validator("vary", mode="before")
    @classmethod
    def _axes(cls, value: Any) -> Any:
        for number, axis in enumerate(value if isinstance(value, list) else [value], 1):
            values = next(iter(axis.values())) if isinstance(axis, dict) and len(axis) == 1 else axis
            overlays = isinstance(axis, list) and all(isinstance(item, dict) and item for item in axis)
            if not (isinstance(values, list) and values and (isinstance(axis, dict) or overlays)):
                raise ValueError(
                    f"axis {number} is neither one setting with a list of values, such as {{seed: [0, 1]}}, nor a list "
                    "of settings that go together, such as [{seed: 0, policy: a}, {seed: 1, policy: b}]"
                )
        return value


def load_study(path: str | Path, overrides: list[str] | None = None) -> StudySpec:
    """Read a study file.

    Args:
        path: YAML; `${NAME}` in it is filled from the environment where it is used.
        overrides: "a.b=value" with the value as YAML.

    Raises:
        ConfigError: naming every unknown key (with the nearest known one), wrong value and missing field.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"study file '{path}' does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"study file '{path}' cannot be read: {error}.") from error
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}, column {where.column + 1}" if where else ""
        raise ConfigError(f"study file '{path}' is not YAML{line}: {getattr(error, 'problem', error)}.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"study file '{path}' is empty or no mapping; see `rewardgap demo --print-study`.")
    for override in overrides or []:
        _override(value, override)
    return parse_study(value, str(path))


def parse_study(value: dict[str, Any], where: str = "study") -> StudySpec:
    """Check a study given as a mapping."""
    endless = _endless(value)
    if endless:
        raise ConfigError(f"{where}: '{endless}' is not a finite number.")
    try:
        return StudySpec.model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + " ".join(_problem(item) for item in error.errors())) from error


def listed(value: Any) -> list[Any]:
    """Return a setting that may be one value or several as several."""
    return value if isinstance(value, list) else [value]


def filled(value: Any) -> Any:
    """Return a setting with ${NAME} in every string filled from the environment.

    Done where a setting is used, never in the study itself: no path of a machine gets into an artefact.

    Raises:
        ConfigError: if the variable is not set.
    """
    if isinstance(value, dict):
        return {key: filled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item) for item in value]
    if not isinstance(value, str):
        return value

    def lookup(found: re.Match[str]) -> str:
        name = found.group(1)
        if name in os.environ:
            return os.environ[name]
        if name == "REWARDGAP_DATA" and Path("../shared/data").is_dir():
            return "../shared/data"
        raise ConfigError(f"'{value}' needs the environment variable {name}, which is not set.")

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", lookup, value)


def _override(value: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set '{override}' is not of the form key=value, for example split.support=4.")
    *parents, last = key.split(".")
    at: Any = value
    for parent in parents:
        at = at.setdefault(parent, {}) if isinstance(at, dict) else None
    if not isinstance(at, dict):
        raise ConfigError(f"--set '{override}': '{key}' is not a key inside a mapping.")
    try:
        at[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set '{override}': the value is not YAML.") from error


def _endless(value: Any, place: str = "") -> str:
    """Return where a number is NaN or infinite, '' where none is: neither would survive in an artefact."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else place
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = (_endless(item, f"{place}.{key}".lstrip(".")) for key, item in inside)
    return next(filter(None, found), "")


def _problem(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "study"
    if error["type"] == "extra_forbidden":
        known = _keys_at(error["loc"][:-1])
        near = get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else f" Known: {', '.join(known)}."
        return f"unknown key '{place}'.{hint}"
    if error["type"] == "missing":
        return f"'{place}' is missing."
    # Who writes a key where its variable's name belongs does not want to see it in a log.
    shown = "no such name" if error["loc"][-1:] == ("key_variable",) else repr(error.get("input"))
    message = error["msg"].removeprefix("Value error, ")
    return f"'{place}' is {shown if len(shown) < 60 else shown[:57] + '...'}: {message}."


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    model: Any = StudySpec
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)
