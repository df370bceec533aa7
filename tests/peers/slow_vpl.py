"""VPL written out pair by pair and number by number, to compare with."""

from __future__ import annotations

import math

import numpy as np


def bend(values):
    return np.where(values > 0, values, 0.2 * values)


def slow_posterior(nets, pairs):
    """Return mean and log variance for a list of (chosen, rejected) rows."""
    size = len(nets["embed_bias3"])
    if not pairs:
        return np.zeros(size), np.zeros(size)
    rows = []
    for chosen, rejected in pairs:
        hidden = bend(np.concatenate([chosen, rejected]) @ nets["embed1"] + nets["embed_bias1"])
        hidden = bend(hidden @ nets["embed2"] + nets["embed_bias2"])
        rows.append(hidden @ nets["embed3"] + nets["embed_bias3"])
    total = np.zeros(size)
    for row in rows:
        query = row @ nets["attention_query"] + nets["attention_query_bias"]
        scores = [float(query @ (other @ nets["attention_key"])) / math.sqrt(size) for other in rows]
        shares = [math.exp(score - max(scores)) for score in scores]
        for share, other in zip(shares, rows, strict=True):
            total = total + share / sum(shares) * (other @ nets["attention_value"])
    pooled = total / len(rows)
    mean = pooled @ nets["posterior_mean"] + nets["posterior_mean_bias"]
    spread = pooled @ nets["posterior_spread"] + nets["posterior_spread_bias"]
    return mean, -6 + 8 / (1 + np.exp(-spread))


def slow_reward(nets, features, latent):
    hidden = bend(
        np.concatenate([features, latent]) @ np.concatenate([nets["decode_features"], nets["decode_latent"]])
        + nets["decode_bias1"]
    )
    hidden = bend(hidden @ nets["decode2"] + nets["decode_bias2"])
    return float(hidden @ nets["decode3"][:, 0])


def slow_loss(nets, target, context, noise, *, beta, free_bits, swap_guide):
    """Return the loss of one target given its context (a list of pairs) and the noise of z."""
    mean, log_variance = slow_posterior(nets, context)
    latent = mean + np.exp(log_variance / 2) * noise
    margin = slow_reward(nets, target[0], latent) - slow_reward(nets, target[1], latent)
    loss = math.log1p(math.exp(-margin))
    for one, log_one in zip(mean, log_variance, strict=True):
        loss += beta * max(free_bits, 0.5 * (one**2 + math.exp(log_one) - 1 - log_one))
    opposite = slow_posterior(nets, [(rejected, chosen) for chosen, rejected in context])[0]
    return loss + swap_guide * float(np.square(mean + opposite).sum())
