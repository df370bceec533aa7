"""Contexts of VPL: which of a user's training pairs the encoder reads beside a target, and which are held out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Contexts(NamedTuple):
    """B contexts: (B, n) rows of the pool, and which of them are there; the others are padding."""

    rows: torch.Tensor
    present: torch.Tensor


def thinned_places(count: int, most: int) -> list[int]:
    """Return the places of at most `most` of `count` things, evenly spaced in their order; all of them if so few.

    Example:
        >>> thinned_places(10, 4)
        [0, 2, 5, 7]
    """
    kept = min(count, most)
    return [place * count // kept for place in range(kept)]


class ContextPool:
    """The training pairs of all users, from which contexts are drawn.

    Two features that are equal in every column count as one completion of one prompt. A pair that shares a completion
    with the target is never in its context. Pairs of the same prompt that share none cannot be told apart from those of
    other prompts: features carry no prompt.

    Args:
        chosen: (N, D) features of the chosen completions.
        rejected: (N, D) features of the rejected ones.
        user_index: (N,) the user of each pair.
        num_users: U; a user may have no pair here.

    Attributes:
        counts: (U,) pairs a user.
    """

    def __init__(self, chosen: torch.Tensor, rejected: torch.Tensor, user_index: torch.Tensor, num_users: int) -> None:
        self.chosen, self.rejected, self.user_index = chosen, rejected, user_index.cpu()
        self.num_users = num_users
        self.counts = torch.bincount(self.user_index, minlength=num_users)
        self._order = torch.argsort(self.user_index, stable=True)
        self._starts = self.counts.cumsum(0) - self.counts
        self._completions = _completions(chosen, rejected)

    def __len__(self) -> int:
        """Return N."""
        return len(self.user_index)

    def sides(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (M, D) features of chosen and rejected in these rows."""
        there = rows.to(self.chosen.device)
        return self.chosen[there], self.rejected[there]

    def subset(self, rows: torch.Tensor) -> ContextPool:
        """Return the pool of these rows, in this order."""
        return ContextPool(*self.sides(rows), self.user_index[rows], self.num_users)

    def draw(self, targets: torch.Tensor, most: int, generator: torch.Generator) -> Contexts:
        """Draw a context for each target, without replacement from its user's pairs that share no completion with it.

        Sizes are uniform on 1 to `most`, or to the number of such pairs where they are fewer; with none it is empty.

        Args:
            targets: (B,) rows of the pool.
            most: the largest context.
            generator: of the draws, on the CPU.
        """
        rows, inside = self._pairs_of(self.user_index[targets])
        own, theirs = self._completions[targets][:, None, :, None], self._completions[rows][:, :, None, :]
        free = inside & ~(own == theirs).flatten(2).any(-1)
        keys = torch.rand(rows.shape, generator=generator).masked_fill(~free, -1.0)
        picked = keys.topk(min(most, rows.shape[1]), dim=1).indices
        available = free.sum(1).clamp(max=most)
        sizes = 1 + (torch.rand(len(rows), generator=generator, dtype=torch.float64) * available).long()
        present = torch.arange(picked.shape[1]) < torch.minimum(sizes, available)[:, None]
        return Contexts(rows.gather(1, picked), present)

    def of_users(self, most: int) -> Contexts:
        """Return each user's context for good: all pairs, or `most` of them, evenly spaced in their order."""
        rows = torch.zeros(self.num_users, most, dtype=torch.long)
        present = torch.zeros(self.num_users, most, dtype=torch.bool)
        for user, (start, count) in enumerate(zip(self._starts.tolist(), self.counts.tolist(), strict=True)):
            places = [start + place for place in thinned_places(count, most)] if count else []
            rows[user, : len(places)] = self._order[places]
            present[user, : len(places)] = True
        return Contexts(rows, present)

    def nearest(self, chosen: torch.Tensor, rejected: torch.Tensor, user_index: torch.Tensor) -> torch.Tensor:
        """Return the (B,) rows of the users' own pairs whose features are nearest to these, ties to the first.

        Args:
            chosen: (B, D) features in the pool's units.
            rejected: (B, D) features in the pool's units.
            user_index: (B,) users, each with a pair in the pool.
        """
        found = []
        for left, right, user in zip(chosen, rejected, user_index.tolist(), strict=True):
            rows = self._order[self._starts[user] : self._starts[user] + self.counts[user]]
            own_left, own_right = self.sides(rows)
            gaps = (own_left - left).square().sum(-1) + (own_right - right).square().sum(-1)
            found.append(rows[int(gaps.argmin())])
        return torch.stack(found)

    def held_out(self, share: float, generator: torch.Generator) -> torch.Tensor:
        """Return (N,) booleans: pairs to hold out, about this share of all, at most one half, spread over the users.

        Pairs of a user that are tied by shared completions stay together. No user loses every pair: those whose pairs
        are all tied lose none, and of the others' groups no two neighbours are taken.
        """
        group, group_user = self._tied_pairs()
        order = np.lexsort((torch.rand(len(group_user), generator=generator).numpy(), group_user))
        several = np.bincount(group_user, minlength=self.num_users) > 1
        order = order[several[group_user[order]]]
        taken = order[((np.arange(int(share * len(order))) + 0.5) / share).astype(np.int64)]
        return torch.from_numpy(np.isin(group, taken))

    def _pairs_of(self, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B, m) rows of these users' pairs, padded with row 0, and which are theirs."""
        counts = self.counts[users][:, None]
        places = torch.arange(int(counts.max()))
        inside = places < counts
        return self._order[torch.where(inside, self._starts[users][:, None] + places, 0)], inside

    def _tied_pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the (N,) group of each pair, and the user of each group."""
        count, users = len(self), self.user_index.numpy()
        keys = self._completions.numpy() + users[:, None] * (int(self._completions.max()) + 1)
        nodes = np.unique(keys, return_inverse=True)[1].reshape(count, 2)
        edges = (np.repeat(np.arange(count), 2), count + nodes.ravel())
        size = count + int(nodes.max()) + 1
        parts = connected_components(coo_array((np.ones(2 * count), edges), shape=(size, size)), directed=False)[1]
        _, first, group = np.unique(parts[:count], return_index=True, return_inverse=True)
        return group, users[first]


def _completions(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Return (N, 2) numbers of the completions: equal numbers for features that are equal in every column."""
    # Adding zero turns -0.0 into 0.0, so that equal numbers have equal bytes.
    rows = np.ascontiguousarray(torch.cat([chosen, rejected]).detach().cpu().numpy() + 0.0)
    numbers = np.unique(rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel(), return_inverse=True)[1]
    return torch.from_numpy(numbers.reshape(2, -1).T.astype(np.int64))
