"""For whom personalisation helps: effects of single users, shrunk for their noise, and wins by support size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ConfigError, ShapeError
from rewardgap.core.seeds import child_seed
from rewardgap.stats.bootstrap import Estimate, clustered_mean
from rewardgap.stats.clustered import scored_rows, user_means
from rewardgap.stats.matrix import check_resampling, user_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

_CHUNK_CELLS = 1 << 20


@dataclass(frozen=True, slots=True)
class UserEffect:
    """What personalisation does for one user.

    Attributes:
        user_id: the user.
        measured: mean difference over its examples.
        shrunken: the same, drawn towards the mean of all users by as much as it is noise.
        p_positive: probability that the true effect is above zero.
        n_examples: its examples.
    """

    user_id: str
    measured: float
    shrunken: float
    p_positive: float
    n_examples: int


@dataclass(frozen=True, slots=True)
class Heterogeneity:
    """How differently users are served.

    Attributes:
        mean: mean effect over users.
        between: standard deviation of true effects between users; 0 where measured effects differ no more than noise
            makes them.
        noise: standard deviation of one example about its user's effect.
        share_positive: share of users whose true effect is above zero, effects taken as normal.
        low: lower end of its interval over users.
        high: its upper end.
        share_measured: share of users whose measured effect is above zero, ties one half; nearer to one half than the
            true share where noise is large.
        users: the effect of each user, by id.
        n_missing: examples without a value.
        level: coverage.
    """

    mean: float
    between: float
    noise: float
    share_positive: float
    low: float
    high: float
    share_measured: float
    users: tuple[UserEffect, ...]
    n_missing: int
    level: float

    @property
    def reading(self) -> str:
        """Return it in one sentence."""
        span = f"{100 * self.level:g} % interval {self.low:.0%} to {self.high:.0%}"
        spread = f"users differ by {self.between:.4g} (standard deviation)"
        if self.between == 0:
            spread = "users do not differ more than noise makes them, so what holds on average is all that is known"
        return (
            f"It helps {self.share_positive:.0%} of {len(self.users)} users ({span}), by {self.mean:.4g} on average; "
            f"{spread}."
        )


def user_effects(
    differences: ArrayLike,
    users: Sequence[str] | NDArray[np.str_],
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Heterogeneity:
    """Split differences into what users differ by and noise, and return the effect of each user.

        d_ui = effect_u + noise,   effect_u ~ N(μ, ω²),   noise ~ N(0, σ²)
        μ = mean_u d̄_u,   σ² from within users,   ω² = var_u(d̄_u) − σ² · mean_u(1/n_u),   share = Φ(μ / ω)

    Args:
        differences: (N,) personalised minus not, one an example; NaN is missing.
        users: (N,) user ids.
        resamples: bootstrap resamples of whole users.
        seed: of the draw. The order of rows and names of users have no say.
        level: coverage of the percentile interval.

    Raises:
        ShapeError: if the lengths differ.
        ConfigError: if a value is infinite, there are fewer than two users, no user has two examples (noise and users
            cannot be told apart), or `resamples` or `level` is out of range.

    Source: Efron and Morris (1973); moment estimate of ω² as in one-way random effects (Searle et al. 1992).
    """
    check_resampling(resamples, level)
    rows = scored_rows(differences, users)
    part = rows.partition
    num_users = len(part)
    if num_users < 2 or int(part.sizes.max()) < 2:
        lack = "fewer than two users" if num_users < 2 else "no user with two examples"
        raise ConfigError(
            f"{lack}: what users differ by cannot be told from noise. Collect more, or compare the means."
        )
    means = user_means(rows)
    within = (rows.values - means[part.codes]) ** 2
    squares = np.bincount(part.codes, weights=within, minlength=num_users).astype(np.float64)
    sizes = part.sizes.astype(np.float64)
    center, between, noise = (float(each[0]) for each in _moments(np.ones((1, num_users)), means, squares, sizes))
    keep = between / (between + noise / sizes) if between > 0 else np.zeros(num_users)
    shrunken = center + keep * (means - center)
    positive = _normal_share(shrunken, keep * noise / sizes)
    by_value = np.lexsort([sizes, squares, means])
    sorted_parts = means[by_value], squares[by_value], sizes[by_value]
    rng = np.random.default_rng(child_seed(seed, "user_effects"))
    shares = []
    step = max(1, _CHUNK_CELLS // num_users)
    for begin in range(0, resamples, step):
        counts = user_counts(num_users, min(step, resamples - begin), rng)
        # A draw of users with one example each has no noise to measure.
        counts = counts[counts @ (sorted_parts[2] - 1) > 0]
        mu, omega, _ = _moments(counts.astype(np.float64), *sorted_parts)
        shares.append(_normal_share(mu, omega))
    low, high = np.quantile(np.concatenate(shares), [(1 - level) / 2, (1 + level) / 2])
    listed = zip(part.labels, means, shrunken, positive, part.sizes, strict=True)
    return Heterogeneity(
        mean=center,
        between=float(np.sqrt(between)),
        noise=float(np.sqrt(noise)),
        share_positive=float(_normal_share(np.array([center]), np.array([between]))[0]),
        low=float(low),
        high=float(high),
        share_measured=float(np.mean((means > 0) + 0.5 * (means == 0))),
        users=tuple(UserEffect(name, float(m), float(s), float(p), int(n)) for name, m, s, p, n in listed),
        n_missing=rows.n_missing,
        level=level,
    )


def _moments(
    counts: NDArray[np.float64], means: NDArray[np.float64], squares: NDArray[np.float64], sizes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return (B,) mean effect, variance between users and variance of noise, each user counted so many times."""
    total = counts.sum(axis=1)
    center = counts @ means / total
    noise = counts @ squares / (counts @ (sizes - 1))
    spread = np.sum(counts * (means - center[:, None]) ** 2, axis=1) / (total - 1)
    between = spread - noise * (counts @ (1 / sizes)) / total
    return center, np.where(between > 0, between, 0.0), noise


def _normal_share(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of a normal distribution above zero; without variance it is all, none or, at zero, half."""
    from scipy.special import ndtr

    spread = np.sqrt(variance)
    ratio = np.divide(mean, spread, out=np.copysign(np.inf, mean), where=spread > 0)
    return np.asarray(np.where((spread == 0) & (mean == 0), 0.5, ndtr(ratio)), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class SupportRow:
    """Users of one support size.

    Attributes:
        support_size: pairs that they revealed.
        wins: users whose mean difference is above zero.
        ties: users with none.
        losses: users below zero.
        difference: mean over users of their mean difference, with its interval over users.
    """

    support_size: int
    wins: int
    ties: int
    losses: int
    difference: Estimate

    @property
    def reading(self) -> str:
        """Return it in one sentence."""
        return (
            f"With {self.support_size} support pairs it is better for {self.wins} users, worse for {self.losses}, the "
            f"same for {self.ties}."
        )


def wins_by_support(
    differences: ArrayLike,
    users: Sequence[str] | NDArray[np.str_],
    support_sizes: Sequence[int] | NDArray[np.int_],
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[SupportRow, ...]:
    """Count users who win and lose, by how much support they gave.

    Args:
        differences: (N,) personalised minus not, one an example; NaN is missing.
        users: (N,) user ids.
        support_sizes: (N,) support of the row's user when the row was made; a user may come with several.
        resamples: bootstrap resamples of whole users.
        seed: of the draw.
        level: coverage.

    Returns:
        One row for each support size with a value, the smallest first.

    Raises:
        ShapeError: if the lengths differ.
        ConfigError: if a value is infinite, or `resamples` or `level` is out of range.
    """
    check_resampling(resamples, level)
    values = np.asarray(differences, dtype=np.float64)
    sizes = np.asarray(support_sizes)
    if sizes.shape != values.shape:
        raise ShapeError(f"support_sizes has shape {sizes.shape}, expected that of differences, {values.shape}.")
    scored_rows(values, users)  # the shape and the finiteness of the values
    out = []
    for size in np.unique(sizes[~np.isnan(values)]).tolist():
        at = np.flatnonzero(sizes == size).tolist()
        owners = [str(users[i]) for i in at]
        means = user_means(scored_rows(values[at], owners))
        found = clustered_mean(values[at], owners, resamples, seed, level, within=False)
        out.append(
            SupportRow(int(size), int((means > 0).sum()), int((means == 0).sum()), int((means < 0).sum()), found)
        )
    return tuple(out)
