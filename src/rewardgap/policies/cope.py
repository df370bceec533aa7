"""CoPe: a user's own adapter, contrasted with the base while it writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rewardgap.backbones.row_adapters import AdapterHost
from rewardgap.core.errors import ConfigError, DataError
from rewardgap.decoding.contrast import Contrast
from rewardgap.policies.base import AdaptedPolicy, GenerationSettings
from rewardgap.policies.cards import PolicyCard
from rewardgap.policies.contrast_run import ContrastRun
from rewardgap.policies.user_training import OwnText, TrainingSettings, UserTrainer, is_number
from rewardgap.rewards.base import meaning
from rewardgap.rewards.states import UserState, state_from_bytes, state_to_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.traces import TraceCache
    from rewardgap.core.records import PreferencePair, Prompt


@dataclass(frozen=True)
class CoPeConfig(TrainingSettings):
    """Settings of the deployment: how users are trained, and what is plausible while decoding."""

    plausibility: float = field(
        default=0.1,
        metadata=meaning("share of the most probable token's probability that a token must have to be chosen"),
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if not is_number(self.plausibility) or not 0 < self.plausibility <= 1:
            raise ConfigError(f"cope: plausibility is {self.plausibility!r}; expected a number above 0 and at most 1.")


class CoPe(AdaptedPolicy):
    """The policy under an adapter of the user's own, decoded in contrast to the policy without it.

        argmax of r_u(v) = log π_u(v | x, y<t) - α log π_base(v | x, y<t)   over v with π_u(v) ≥ plausibility · max π_u

    A user's state is a LoRA adapter, a (P,) vector, trained on what the user wrote in the support set (what the user
    chose, where the data have no such text); rejected texts of the support are not read. Without a support set the
    adapter does nothing and the texts are those of zero-shot. Rows of different users run in one batch, each through
    its own adapter, and the base reads along in the same forward passes.

    Given completions are scored under a draw from the plausible tokens, since the best of them has no density:

        q(v) = e^{r_u(v)} / Σ_{w ∈ C} e^{r_u(w)},   C = the plausible tokens at that position, and the scored one

    `rgd_topk` is Σ_t log q(y_t). A scored token that is not plausible is added to the normaliser at its position and
    lowers `coverage`, the share of plausible ones. `rgd_full` is the same with every token of the vocabulary in C,
    plausible or not. `base` is log π_u(y | x), and `raw_delta` is r_u of the whole text.

    Args:
        config: how users are trained and what is plausible.

    Raises:
        ModelError: if the backbone cannot pack.

    Source: CoPe, arXiv 2506.12109. Peer: cleverscent/CoPe. What is done differently is listed on `CARD`.
    """

    name = "cope"
    rows_a_prompt = 2

    def __init__(
        self,
        backbone: Backbone,
        settings: GenerationSettings | None = None,
        *,
        config: CoPeConfig | None = None,
        state: UserState | None = None,
    ) -> None:
        self.config = config or CoPeConfig()
        # No traces are kept: they are filed by the backbone, and here every user's are others.
        super().__init__(backbone, Contrast(self.config.alpha, self.config.plausibility), settings, state=state)
        self.host = AdapterHost(backbone, self.config.lora)

    def adapt(self, support: Sequence[PreferencePair]) -> UserState:
        """Return the adapter of a user who revealed these pairs, whatever their order; changes nothing.

        The settings' seed and the user id of the pairs decide every draw.

        Raises:
            DataError: if a prompt, or a prompt with the user's text, does not fit the context.
        """
        user_id = min((pair.user_id for pair in support), default="")
        trainer = UserTrainer(self.host, self.config, self.stop_rule(), self.settings.seed)
        adapter = trainer.train(user_id, [self._own_text(pair) for pair in support])
        return UserState(self.name, {"adapter": adapter}, len(support))

    def network(self, states: Sequence[Any]) -> Backbone:
        """Return the network in which each row runs through its user's adapter."""
        return self.host.rows(torch.stack([state.values["adapter"] for state in states]).to(self.backbone.device))

    def open(
        self,
        prompts: Sequence[Prompt],
        states: Sequence[Any] | None = None,
        seeds: Sequence[int] | None = None,
        completions: Sequence[Sequence[str]] = (),
    ) -> ContrastRun:
        """Prefill a batch of prompts of different users, under their adapters and under none.

        Args:
            prompts: B prompts.
            states: B user states; the bound state for all unless given.
            seeds: not read: nothing is drawn.
            completions: those that `scores` will be asked for, so that room is left for them.

        Raises:
            ConfigError: if a state is missing or another method's, or the numbers of prompts and states differ.
            ShapeError: if an adapter was made for another backbone or rank.
            DataError: if a prompt and the new tokens do not fit the context.
        """
        users = [self.state] * len(prompts) if states is None else list(states)
        if len(users) != len(prompts):
            raise ConfigError(f"{len(users)} states for {len(prompts)} prompts; give one state a prompt.")
        for user in users:
            if not isinstance(user, UserState) or user.method != self.name:
                raise ConfigError(
                    f"cope needs a user's own state, got {getattr(user, 'method', user)!r}; "
                    "pass state=policy.adapt(support), or states=[...]."
                )
        nobody = [UserState(self.name, {"adapter": torch.zeros_like(u.values["adapter"])}, 0) for u in users]
        run = super().open([*prompts, *prompts], [*users, *nobody], seeds and [*seeds, *seeds], [*completions] * 2)
        return ContrastRun.of(run, users)

    def _own_text(self, pair: PreferencePair) -> OwnText:
        encoder, context = self.backbone.encoder, self.backbone.context
        prompt = self.show(pair.prompt, None, self.prompt_limit).ids
        text = encoder.encode_completion(pair.demonstration, after=pair.prompt)
        if len(prompt) + len(text) > context:
            raise DataError(
                f"example '{pair.example_id}' of user '{pair.user_id}': its prompt of {len(prompt)} tokens and the "
                f"user's text of {len(text)} are longer than the {context} that {self.backbone.name} reads. Lower "
                "max_prompt_tokens with on_long: truncate_prompt, or drop the example."
            )
        return OwnText(prompt, (*text, encoder.end_id), pair.example_id)


def cope(
    policy: Backbone,
    support: Sequence[PreferencePair],
    *,
    settings: GenerationSettings | None = None,
    **options: Any,
) -> CoPe:
    """Return the policy under a user's own adapter, trained here and contrasted with the policy without it.

    Args:
        policy: the frozen policy.
        support: the user's pairs.
        settings: lengths and rules; its seed is that of the draws.
        options: fields of `CoPeConfig`.
    """
    deployed = CoPe(policy, settings, config=CoPeConfig(**options))
    deployed.state = deployed.adapt(support)
    return deployed


def _build(
    backbone: Backbone,
    settings: GenerationSettings,
    traces: TraceCache | None,
    num_demonstrations: int | None,
    retriever: str | None,
    **options: Any,
) -> CoPe:
    if num_demonstrations is not None or retriever is not None:
        raise ConfigError("cope takes neither num_demonstrations nor retriever; use icl or icl_rag.")
    return CoPe(backbone, settings, config=CoPeConfig(**options))


CARD = PolicyCard(
    name="cope",
    summary="The policy under the user's own adapter, decoded in contrast to the policy without it.",
    equation="argmax over π_u(v) ≥ p · max π_u of log π_u(v | x, y<t) - α log π_base(v | x, y<t)",
    paper="CoPe: Personalized LLM Decoding via Contrasting Personal Preference, arXiv 2506.12109; peer: "
    "cleverscent/CoPe @ a7551cc",
    build=_build,
    deviations=(
        "The policy itself is contrasted and drawn from; the paper first adapts it to the task on other users' texts.",
        "Adapters sit on every linear layer of the decoder; the peer's sit on the query and value projections.",
        "Supervised training has a number of steps whatever the number of texts; the peer takes 2 passes. Both stages "
        "have the batches, warm-up and cosine of every training here.",
        "The reference of DPO is the adapter as supervised training left it; the peer's is the policy without it.",
        "Draws for DPO come from the whole vocabulary; the peer cuts them to a nucleus of 0.95.",
        "The draw that is rejected has the lowest sum of log π_u - α log π_base over its own tokens, read behind the "
        "chat template; the peer compares means of the plain ratio, without template, that count the prompt's tokens.",
        "Implausible tokens cannot be chosen; the peer leaves them a probability of 1e-8. There is no repetition "
        "penalty.",
        "Training and decoding read the same prompt; the peer decodes without the opening of the answer.",
        "A given completion is scored under a draw from the plausible tokens in proportion to exp(r_u): taking the "
        "best has no density.",
    ),
    personal=True,
    state_format=(state_to_bytes, state_from_bytes),
    config=CoPeConfig,
)
