"""What VPL minimises, and how its networks are trained on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewardgap.numerics.bradley_terry import pair_loss
from rewardgap.rewards.fitting import FitTrace, LossAggregation, pair_weights
from rewardgap.rewards.stochastic import minimise_held_out, minimise_stochastic
from rewardgap.rewards.vpl_encoder import decode_rewards, embed_pairs, pool_embeddings, standard_normal_kl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewardgap.rewards.vpl_context import ContextPool, Contexts

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Objective:
    """The terms of the objective under given networks.

        loss_i = softplus(-(r(h+; z) - r(h-; z))) + β Σ_l max(KL_l, f) + g ‖μ(C) + μ(C̃)‖²,   z = μ(C) + σ(C) ε

    C is drawn for the pair, C̃ is C with the sides of all pairs swapped. KL_l is that of dimension l of the very
    distribution z is drawn from.

    Attributes:
        networks: the tensors by name; without a latent, the loss is the first term alone.
        context: the largest context.
        free_bits: f in nats.
        swap_guide: g in nats.
    """

    networks: Mapping[str, torch.Tensor]
    context: int
    free_bits: float = 0.0
    swap_guide: float = 0.0

    @property
    def latent(self) -> int:
        """Return L."""
        return len(self.networks["decode_latent"])

    def posterior(
        self, pool: ContextPool, contexts: Contexts, *, swapped: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log variance (B, L) of contexts; a pair that is in several of them is embedded once."""
        if self.latent == 0:
            nothing = pool.chosen.new_zeros(len(contexts.rows), 0)
            return nothing, nothing
        used, place = torch.unique(contexts.rows[contexts.present], return_inverse=True)
        sides = pool.sides(used)
        embedded = embed_pairs(self.networks, *(sides[::-1] if swapped else sides))
        present = contexts.present.to(embedded.device)
        padded = embedded.new_zeros(*present.shape, self.latent)
        padded[present] = embedded[place.to(embedded.device)]
        return pool_embeddings(self.networks, padded, present)

    def margins(self, chosen: torch.Tensor, rejected: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Return the (B,) margins of (B, D) standardised pairs at latents (B, L)."""
        sides = decode_rewards(self.networks, torch.stack([chosen, rejected]), latent)
        return sides[0] - sides[1]

    def losses(
        self,
        pool: ContextPool,
        targets: torch.Tensor,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        beta: float,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Return the (B,) losses of targets, with contexts and z drawn.

        Args:
            pool: where contexts are from.
            targets: (B,) rows of the pool which the targets are.
            chosen: (B, D) standardised features, with or without gradient.
            rejected: (B, D) standardised features.
            beta: β in nats.
            generator: of the draws, on the CPU.
        """
        if self.latent == 0:
            return pair_loss(self.margins(chosen, rejected, chosen.new_zeros(len(chosen), 0)))
        contexts = pool.draw(targets, self.context, generator)
        mean, log_variance = self.posterior(pool, contexts)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
        values = pair_loss(self.margins(chosen, rejected, mean + (0.5 * log_variance).exp() * noise))
        values = values + beta * standard_normal_kl(mean, log_variance).clamp(min=self.free_bits).sum(-1)
        if self.swap_guide > 0:
            opposite = self.posterior(pool, contexts, swapped=True)[0]
            values = values + self.swap_guide * (mean + opposite).square().sum(-1)
        return values


@dataclass(frozen=True)
class Training:
    """How networks are trained on frozen features.

    Attributes:
        beta: the weight of the KL, in nats a pair.
        kl_warm_up: steps over which it rises from zero.
        held_out: the share of the pairs that decides when to stop.
        max_steps: limit on the steps.
        patience: steps without a lower held-out loss that end the fit; where too few pairs leave none to hold out, the
            steps to take, with a rate that falls by a cosine.
        batch_size: pairs a step.
        loss_agg: how pairs are weighed.
    """

    beta: float
    kl_warm_up: int
    held_out: float
    max_steps: int
    patience: int
    batch_size: int
    loss_agg: LossAggregation

    def beta_at(self, step: float) -> float:
        """Return the weight of the KL at a step."""
        return self.beta * min(1.0, (step + 1) / self.kl_warm_up)

    def fit(
        self, objective: Objective, pool: ContextPool, groups: Sequence[Mapping[str, Any]], generator: torch.Generator
    ) -> FitTrace:
        """Train the networks in place.

        Args:
            objective: with the networks.
            pool: all training pairs; the held-out ones are in no context.
            groups: the optimiser's.
            generator: of everything that is drawn, on the CPU.

        Returns:
            The trace; its last entry is the objective on all pairs under the parameters kept.
        """
        held = pool.held_out(self.held_out, generator)
        train, judged = pool.subset((~held).nonzero()[:, 0]), pool.subset(held.nonzero()[:, 0])
        share = self._weights(train) * len(train)

        def estimate(rows: torch.Tensor, beta: float) -> torch.Tensor:
            values = objective.losses(train, rows, *train.sides(rows), beta, generator)
            return (share[rows.to(share.device)] * values).mean()

        if len(judged) == 0:
            trace = minimise_stochastic(
                lambda rows, part: estimate(rows, self.beta_at(part * self.patience)),
                groups,
                num_rows=len(train),
                steps=self.patience,
                batch_size=self.batch_size,
                generator=generator,
            )
        else:
            contexts, weights = train.of_users(objective.context), self._weights(judged)

            def held_out_loss() -> float:
                with torch.no_grad():
                    mean = objective.posterior(train, contexts)[0][judged.user_index.to(weights.device)]
                    return float(weights @ pair_loss(objective.margins(judged.chosen, judged.rejected, mean)))

            trace = minimise_held_out(
                lambda rows, step: estimate(rows, self.beta_at(step)),
                held_out_loss,
                groups,
                num_rows=len(train),
                max_steps=self.max_steps,
                patience=self.patience,
                judge_from=self.kl_warm_up,
                batch_size=self.batch_size,
                generator=generator,
            )
        with torch.no_grad():
            values = [
                objective.losses(pool, rows, *pool.sides(rows), self.beta, generator)
                for rows in torch.split(torch.arange(len(pool)), _ROWS_AT_ONCE)
            ]
            return FitTrace([*trace.losses, float(self._weights(pool) @ torch.cat(values))], trace.converged)

    def _weights(self, pool: ContextPool) -> torch.Tensor:
        return pair_weights(pool.user_index, self.loss_agg).to(pool.chosen)
