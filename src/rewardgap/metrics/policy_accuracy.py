"""Every reading of policy accuracy, from arrays: does the decoder, used as a scorer, prefer the chosen completion?

A completion gets one score per variant here; `pair_accuracy` of chosen minus rejected turns two of them into a hit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from rewardgap.core.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

CoverRule: TypeAlias = Literal["add", "floor", "exclude"]
COVER_RULES: tuple[CoverRule, ...] = ("add", "floor", "exclude")
FLOOR = 1e-8
"""Probability that `cover="floor"` gives a token the decoder cannot produce."""


class Variant(NamedTuple):
    """One reading of the score of a completion."""

    name: str
    summary: str


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "rgd_topk", "log-probability under stochastic guided decoding over the top k and the gold token; the headline"
    ),
    Variant("mean_rgd_topk", "rgd_topk per token"),
    Variant("rgd_full", "log-probability under the guided policy over the whole vocabulary"),
    Variant("mean_rgd_full", "rgd_full per token"),
    Variant("raw_delta", "sum of log π and λ times the reward's increments: log π(y|x) plus λ times the reward gained"),
    Variant("mean_delta", "raw_delta per token"),
    Variant("raw_value", "sum of log π and λ times the prefix rewards; an offset of the reward becomes a length term"),
    Variant("mean_value", "raw_value per token"),
    Variant("reward_only", "the reward of the whole completion: RM accuracy under another name, as a check"),
    Variant("base", "log π(y|x), the score without guidance"),
    Variant("mean_base", "base per token"),
)
VARIANT_NAMES: tuple[str, ...] = tuple(variant.name for variant in VARIANTS)
HEADLINE = "rgd_topk"
FULL_VARIANTS = ("rgd_full", "mean_rgd_full")
"""Those that need the reward of every token of the vocabulary."""


def policy_scores(
    log_probs: ArrayLike,
    prefix_rewards: ArrayLike,
    guidance_weight: float,
    *,
    candidate_log_probs: ArrayLike | None = None,
    candidate_rewards: ArrayLike | None = None,
    candidate_mask: ArrayLike | None = None,
    gold_column: ArrayLike | None = None,
    in_top_k: ArrayLike | None = None,
    cover: CoverRule = "add",
    full_log_probs: ArrayLike | None = None,
    full_rewards: ArrayLike | None = None,
    gold_ids: ArrayLike | None = None,
    log_normalisers: ArrayLike | None = None,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Return the score of one completion under every variant that the arrays allow.

        raw_value = Σ_t (ℓ_t + λ R_t)        raw_delta = Σ_t ℓ_t + λ (R_T − R_0)
        rgd = Σ_t ( q_t(y_t) − log Σ_{u∈C_t} e^{q_t(u)} ),  q_t(v) = (log π_t(v) + λ R_t(v)) / τ

    The `rgd` forms do not change when a number that depends on the prefix alone is added to the rewards of a position,
    so candidate rewards may be values or increments.

    Args:
        log_probs: (T,) ℓ, log-probability of each scored token under the base policy, nats.
        prefix_rewards: (T + 1,) R, reward of each prefix in scale units; R[0] is the prompt alone.
        guidance_weight: λ.
        candidate_log_probs: (T, K) log-probabilities of the candidates, the scored token among them; None leaves the
            `rgd_topk` forms out.
        candidate_rewards: (T, K) reward of the prefix extended by each candidate; None is legal at λ = 0.
        candidate_mask: (T, K) true where there is a candidate; None for all.
        gold_column: (T,) column of the scored token.
        in_top_k: (T,) true where the scored token is one of the k that the decoder would consider; None for all.
        cover: what a scored token outside the top k does. "add" puts it into the normaliser; "floor" gives it
            probability 1e-8 and leaves the other positions alone; "exclude" makes the completion's `rgd_topk` missing.
        full_log_probs: (T, V) log-probabilities over the vocabulary, for the `rgd_full` forms.
        full_rewards: (T, V) their rewards; None is legal at λ = 0.
        gold_ids: (T,) column of the scored token in the full arrays.
        log_normalisers: (T,) log Σ_v e^{q_t(v)} over the vocabulary, for the `rgd_full` forms where the full arrays
            are too large; formed with increments, R_t(v) - R_{t-1}, since that is what the scored token gets beside it.
        temperature: τ of the stochastic decoder.

    Returns:
        Variant name to score, in the order of `VARIANTS`. Means divide by max(T, 1). NaN is missing; a score of −inf is
        kept, and the margin of two of them is NaN: a pair that the policy cannot produce is not a tie.

    Raises:
        ShapeError: if a shape is not as stated, the scored token's column is not a candidate, or both full arrays and
            normalisers are given.
        ConfigError: if λ is not finite, τ is not positive, or the cover rule is unknown.

    Source: the token score of ARGS (Khanov et al. 2024); the sums and normalisers are spelled out since the choice
        decides the number.
    """
    if not np.isfinite(guidance_weight):
        raise ConfigError(f"guidance_weight is {guidance_weight}; expected a finite number.")
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; expected above 0.")
    if cover not in COVER_RULES:
        raise ConfigError(f"cover is '{cover}'; expected one of {', '.join(COVER_RULES)}.")
    if full_log_probs is not None and log_normalisers is not None:
        raise ShapeError("full_log_probs and log_normalisers both came; give one of them.")
    gold = np.asarray(log_probs, dtype=np.float64)
    if gold.ndim != 1:
        raise ShapeError(f"log_probs has shape {gold.shape}, expected (T,).")
    num = len(gold)
    rewards = _shaped(prefix_rewards, (num + 1,), "prefix_rewards", "(T + 1,)")
    base = float(gold.sum())
    totals = dict.fromkeys(("raw_delta", "raw_value", "base"), base)
    if guidance_weight != 0:
        totals["raw_delta"] += guidance_weight * float(rewards[-1] - rewards[0])
        totals["raw_value"] += guidance_weight * float(rewards[1:].sum())
    if candidate_log_probs is not None:
        scores, columns = _guided(
            candidate_log_probs, candidate_rewards, candidate_mask, gold_column, guidance_weight, temperature, num
        )
        covered = np.ones(num, bool) if in_top_k is None else _shaped(in_top_k, (num,), "in_top_k", "(T,)").astype(bool)
        totals["rgd_topk"] = _covered_sum(scores, columns, covered, cover)
    if full_log_probs is not None:
        scores, columns = _guided(
            full_log_probs, full_rewards, None, gold_ids, guidance_weight, temperature, num, prefix="full"
        )
        totals["rgd_full"] = float(_log_softmax_at(scores, columns).sum())
    if log_normalisers is not None:
        below = _shaped(log_normalisers, (num,), "log_normalisers", "(T,)")
        # λ = 0 is the base policy whatever the rewards are.
        gained = guidance_weight * np.diff(rewards) if guidance_weight != 0 else 0.0
        totals["rgd_full"] = float(((gold + gained) / temperature - below).sum())
    means = {"rgd_topk": "mean_rgd_topk", "rgd_full": "mean_rgd_full", "raw_delta": "mean_delta"}
    means |= {"raw_value": "mean_value", "base": "mean_base"}
    named = totals | {means[name]: total / max(num, 1) for name, total in totals.items()}
    named["reward_only"] = float(rewards[-1])
    return {name: named[name] for name in VARIANT_NAMES if name in named}


def variant_margins(chosen: Mapping[str, float], rejected: Mapping[str, float]) -> dict[str, float]:
    """Return score of chosen minus rejected for each variant that both have; −inf against −inf is NaN."""
    with np.errstate(invalid="ignore"):
        return {name: float(np.subtract(chosen[name], rejected[name])) for name in chosen if name in rejected}


def coverage(in_top_k: ArrayLike) -> float:
    """Return the share of scored tokens inside the decoder's top k; NaN for none.

    Args:
        in_top_k: (T,) true where the scored token is a candidate without being added. Report it for chosen and rejected
            apart: a gap between them is a bias of the cover rule.
    """
    flags = np.asarray(in_top_k, dtype=np.float64)
    return float(flags.mean()) if flags.size else float("nan")


def _covered_sum(
    scores: NDArray[np.float64], columns: NDArray[np.intp], covered: NDArray[np.bool_], cover: CoverRule
) -> float:
    if cover == "add" or covered.all():
        return float(_log_softmax_at(scores, columns).sum())
    if cover == "exclude":
        return float("nan")
    return float(_log_softmax_at(scores[covered], columns[covered]).sum() + (~covered).sum() * np.log(FLOOR))


def _guided(
    log_probs: ArrayLike,
    rewards: ArrayLike | None,
    mask: ArrayLike | None,
    gold: ArrayLike | None,
    guidance_weight: float,
    temperature: float,
    num: int,
    *,
    prefix: str = "candidate",
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return (T, K) guided scores, −inf where there is no candidate, and the column of each scored token."""
    policy = np.asarray(log_probs, dtype=np.float64)
    if policy.ndim != 2 or len(policy) != num:
        raise ShapeError(f"{prefix}_log_probs has shape {policy.shape}, expected (T, K) with T = {num}.")
    if gold is None:
        raise ShapeError(f"{prefix}_log_probs came without the column of each scored token; give it, of shape (T,).")
    columns = _shaped(gold, (num,), "the column of each scored token", "(T,)").astype(np.intp)
    valid = np.ones(policy.shape, bool)
    if mask is not None:
        valid = _shaped(mask, policy.shape, f"{prefix}_mask", "(T, K)").astype(bool)
    if rewards is None and guidance_weight != 0:
        raise ShapeError(f"{prefix}_rewards is missing at guidance weight {guidance_weight}; only λ = 0 needs none.")
    if ((columns < 0) | (columns >= policy.shape[1])).any() or not valid[np.arange(num), columns].all():
        raise ShapeError(f"a scored token is not among the {prefix} columns, or is masked; add it before scoring.")
    scores = policy.copy()
    if rewards is not None:
        reward = _shaped(rewards, policy.shape, f"{prefix}_rewards", "(T, K)")
        # λ = 0 is the base policy whatever the rewards are, and a token without mass has none whatever its reward is.
        if guidance_weight != 0:
            scores += guidance_weight * np.where(valid & (policy > -np.inf), reward, 0.0)
    return np.where(valid, scores / temperature, -np.inf), columns


def _log_softmax_at(scores: NDArray[np.float64], columns: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return (T,) log-softmax of each row at its column; −inf where that token has no mass, NaN if no token has."""
    if not len(scores):
        return np.zeros(0)
    peak = scores.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = scores - peak
        return np.asarray(shifted[np.arange(len(scores)), columns] - np.log(np.exp(shifted).sum(axis=1)))


def _shaped(values: ArrayLike, shape: tuple[int, ...], name: str, letters: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape:
        raise ShapeError(f"{name} has shape {array.shape}, expected {letters} = {shape}.")
    return array
