"""A causal language model behind one face: hidden states of packed token trees, and logits of hidden states.

This module and `lora.py` are the only importers of a network's classes. Everything above works on token ids, slots and
hidden states, and never knows the architecture.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rewardgap.backbones.trie import TokenForest, build_trie, chain
from rewardgap.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.chat import ChatEncoder
    from rewardgap.backbones.trie import Appended

PROBE_TOLERANCE = 1e-3


@dataclass
class Backbone:
    """A causal language model and its tokenizer.

    Attributes:
        name: what the user called it; goes into records.
        fingerprint: hash of weights, adapter and template; goes into cache keys.
        model: the Hugging Face causal model, in eval mode.
        encoder: prompts and completions to ids.
        packs: whether the model takes a mask that lets siblings share a prefix. Where it does not, every path is
            encoded as a row of its own: slower, same numbers.
    """

    name: str
    fingerprint: str
    model: Any
    encoder: ChatEncoder
    packs: bool = True
    _mask_form: str = field(default="", repr=False)

    @property
    def config(self) -> Any:
        """Return the text model's configuration."""
        return self.model.config.get_text_config()

    @property
    def width(self) -> int:
        """Return the width D of the hidden states."""
        return int(self.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """Return the number V of token ids that logits are given for."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def num_weights(self) -> int:
        """Return how many numbers a pass over this network reads."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def context(self) -> int:
        """Return the longest sequence the model was made for."""
        return int(getattr(self.config, "max_position_embeddings", 0) or 1 << 30)

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return torch.device(next(self.model.parameters()).device)

    @property
    def dtype(self) -> torch.dtype:
        """Return the weights' type."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    def hidden(self, appended: Appended, cache: Any = None) -> torch.Tensor:
        """Return the hidden states of appended nodes.

        Args:
            appended: what `TokenForest.append` returned; B rows, Q nodes, S slots.
            cache: keys and values of the S - Q earlier slots, extended by this call; None if Q = S.

        Returns:
            (B, Q, D) states after the final norm, in the model's type; rows of padding are meaningless.
        """
        device = self.device
        visible = torch.from_numpy(appended.visible).to(device)
        arguments: dict[str, Any] = {
            **self.inputs(torch.from_numpy(appended.tokens).to(device)),
            "position_ids": torch.from_numpy(appended.positions).to(device),
            "attention_mask": self._masks(visible, appended),
            "use_cache": cache is not None,
        }
        if cache is not None:
            arguments["past_key_values"] = cache
        state: torch.Tensor = self._decoder()(**arguments).last_hidden_state
        return state

    def hidden_unpacked(self, paths: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Return the hidden states of whole sequences, each a row of its own: list of (T_i, D)."""
        longest = max(len(path) for path in paths)
        ids = torch.zeros((len(paths), longest), dtype=torch.long, device=self.device)
        mask = torch.zeros_like(ids)
        for row, path in enumerate(paths):
            ids[row, : len(path)] = torch.tensor(path, device=self.device)
            mask[row, : len(path)] = 1
        states = self._decoder()(**self.inputs(ids), attention_mask=mask, use_cache=False).last_hidden_state
        return [states[row, : len(path)] for row, path in enumerate(paths)]

    def of_rows(self, rows: Sequence[int]) -> Backbone:
        """Return the backbone as these rows of a batch see it: the same for all, unless each has its own adapter."""
        return self

    def with_rows(self, rows: int, other: Backbone, more: int) -> Backbone:
        """Return the backbone as `rows` rows of this batch see it, and behind them `more` rows of another batch."""
        return self

    def inputs(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what the decoder reads for (B, Q) ids; a backbone with soft prompts gives vectors for some."""
        return {"input_ids": ids}

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (..., V) next-token logits of (..., D) hidden states, in float32 or wider."""
        logits: torch.Tensor = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.config, "final_logit_softcapping", None)
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (..., V) next-token log-probabilities in nats."""
        return torch.log_softmax(self.logits(hidden), dim=-1)

    def _decoder(self) -> Any:
        return self.model.get_decoder()

    def _masks(self, visible: torch.Tensor, appended: Appended) -> Any:
        full = visible[:, None]
        form = self._mask_form
        if form == "unknown":
            raise ValueError("the reach of this model's layers is not known.")
        if form == "plain":
            return full
        window = int(self.config.sliding_window)
        queries = torch.from_numpy(appended.positions).to(visible.device)
        keys = torch.from_numpy(appended.key_positions).to(visible.device)
        # Windows count depth: packed neighbours may be many slots apart and still one token apart.
        near = (queries[:, :, None] - keys[:, None, :] < window)[:, None]
        return full & near if form == "windowed" else {"full_attention": full, "sliding_attention": full & near}

    def prove_packing(self) -> None:
        """Compare a packed forward with rows of their own, on this model, and settle how masks are given.

        Raises:
            ModelError: if hidden states or logits cannot be read from this model at all.
        """
        self._mask_form = mask_form(self.config)
        size = min(self.vocabulary, 1000)
        prefix = [(7 * i + 3) % size for i in range(5)]
        tails = [[11 % size, 12 % size, 13 % size], [11 % size, 14 % size], [15 % size]]
        with torch.no_grad():
            alone = self.hidden_unpacked([prefix + tail for tail in tails])
            self._prove_logits(prefix)
            forest = TokenForest(1, 16)
            trie = build_trie(tails)
            block = chain(prefix, -1, 0)
            nodes = trie.block(parent=len(prefix) - 1, start=len(prefix))
            both = type(block)(block.tokens + nodes.tokens, block.parents + nodes.parents)
            try:
                packed = self.hidden(forest.append([both]))[0]
            except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
                self.packs = False
            else:
                scale = float(torch.cat(alone).abs().max()) or 1.0
                worst = max(
                    float((packed[len(prefix) + torch.tensor(path)] - rows[len(prefix) :]).abs().max())
                    for path, rows in zip(trie.paths, alone, strict=True)
                )
                low_precision = self.dtype in (torch.float16, torch.bfloat16)
                self.packs = worst <= (0.03 if low_precision else PROBE_TOLERANCE) * scale
        if not self.packs:
            warnings.warn(
                f"{self.name} ({type(self.model).__name__}) does not take a packed attention mask: every path is "
                "encoded as a row of its own, which is slower and gives the same numbers.",
                stacklevel=2,
            )

    def _prove_logits(self, tokens: Sequence[int]) -> None:
        ids = torch.tensor([list(tokens)], device=self.device)
        peer = self.model(input_ids=ids, use_cache=False).logits[0].float()
        own = self.logits(self.hidden_unpacked([tokens])[0]).float()
        if float((own - peer).abs().max()) > PROBE_TOLERANCE * max(1.0, float(peer.abs().max())):
            raise ModelError(
                f"{self.name} ({type(self.model).__name__}) transforms its logits in a way rewardgap does not know; "
                "use another model, or report its model_type."
            )


def mask_form(config: Any) -> str:
    """Return how a model takes its attention mask.

    "plain", "windowed" (one mask), "by_layer" (a dict), or "unknown": layers of a kind whose reach we do not know
    (chunked, linear) may agree with us on a short probe and not on a long text.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        if not set(kinds) <= {"full_attention", "sliding_attention"}:
            return "unknown"
        return "by_layer" if window and "sliding_attention" in kinds else "plain"
    return "windowed" if window else "plain"
