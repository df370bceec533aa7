"""What training an adapter costs: the packed pair forward against TRL's RewardTrainer on the same ids, in one run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from rewardgap.backbones.features import PromptLimit
from rewardgap.backbones.lora import LoraSettings, adapter_parameters, attach_lora
from rewardgap.bench.timing import peak_bytes, ratio
from rewardgap.core.errors import MissingExtraError, ModelError
from rewardgap.core.records import PreferencePair
from rewardgap.rewards.global_bt import GlobalBT
from rewardgap.rewards.joint import WEIGHT_DECAY, pair_states
from rewardgap.rewards.training import Schedule, train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rewardgap.backbones.hf import Backbone


@dataclass(frozen=True)
class TrainSizes:
    """The size of a measurement.

    Args:
        prompt: tokens of each prompt, the template's included.
        completion: tokens of each completion.
        batch_size: pairs a step.
        steps: steps a round; the first of them warms up and is not counted.
        rounds: turns that each side takes.
        seed: decides texts, adapters and the reward's direction.
    """

    prompt: int = 200
    completion: int = 30
    batch_size: int = 8
    steps: int = 3
    rounds: int = 3
    seed: int = 0


def random_pairs(backbone: Backbone, sizes: TrainSizes, count: int) -> list[PreferencePair]:
    """Return pairs of texts whose ids have the stated lengths exactly.

    Raises:
        ModelError: if no text of the tokenizer's own words has such a length.
    """
    draw = torch.Generator().manual_seed(sizes.seed)
    encoder = backbone.encoder
    words = _words(backbone)
    bare = len(encoder.encode_prompt(words[0])) - 1

    def text(length: int) -> str:
        return " ".join(words[int(place)] for place in torch.randint(len(words), (length,), generator=draw))

    pairs = []
    for number in range(count):
        prompt = text(sizes.prompt - bare)
        chosen, rejected = text(sizes.completion), text(sizes.completion)
        ids = encoder.encode_prompt(prompt)
        lengths = {len(encoder.encode_completion(side, after=prompt)) for side in (chosen, rejected)}
        if len(ids) != sizes.prompt or lengths != {sizes.completion}:
            raise ModelError(
                f"{backbone.name} reads a prompt made for {sizes.prompt} tokens as {len(ids)} and completions made for "
                f"{sizes.completion} as {sorted(lengths)}; use another length or model."
            )
        pairs.append(
            PreferencePair(
                user_id=f"u{number % 4}", example_id=str(number), prompt=prompt, chosen=chosen, rejected=rejected
            )
        )
    return pairs


def _words(backbone: Backbone) -> list[str]:
    """Return words that are one token each, at the start of a text and after a blank."""
    encoder, found = backbone.encoder, []
    known = backbone.encoder.tokenizer.get_vocab()
    for piece in sorted(known, key=lambda piece: known[piece]):
        word = piece.lstrip("Ġ▁")
        alone = word.isascii() and word.isalpha() and len(encoder.encode_text(word)) == 1
        if alone and len(encoder.encode_text(f"{word} {word} {word}")) == 3:
            found.append(word)
        if len(found) == 500:
            break
    if not found:
        raise ModelError(f"the tokenizer of {backbone.name} has no word that is one token.")
    return found


class Packed:
    """Our training step: each prompt read once for both completions, then AdamW on adapter and head."""

    def __init__(self, backbone: Backbone, sizes: TrainSizes, direction: torch.Tensor) -> None:
        self.sizes = sizes
        settings = replace(LoraSettings(), dropout=0.0)
        self.adapted = attach_lora(backbone, settings, sizes.seed)
        self.head = GlobalBT()
        self.head.build(backbone.width, ["everybody"], device=backbone.device)
        with torch.no_grad():
            self.head.basis.copy_(direction[:, None])
        self.first_loss = float("nan")

    def seconds_a_pair(self, pairs: Sequence[PreferencePair]) -> float:
        """Train on a round's pairs and return the median seconds a pair of all steps but the first."""
        marks: list[float] = []

        def loss_of(rows: list[int]) -> torch.Tensor:
            marks.append(time.perf_counter())
            chosen, rejected = pair_states(self.adapted, [pairs[row] for row in rows], PromptLimit())
            everybody = torch.zeros(len(rows), dtype=torch.long, device=chosen.device)
            return self.head.losses(chosen.float(), rejected.float(), everybody).mean()

        groups = [
            {"params": adapter_parameters(self.adapted.model), "lr": 1e-4, "weight_decay": WEIGHT_DECAY},
            {"params": [self.head.basis], "lr": 1e-3, "weight_decay": 0.0},
        ]
        self.adapted.model.train()
        # One pass in the order given: the peer reads the same pairs in the same steps.
        losses = train(loss_of, groups, len(pairs), _InOrder(1, self.sizes.batch_size, 0))
        _wait(self.adapted.device)
        marks.append(time.perf_counter())
        if math.isnan(self.first_loss):
            self.first_loss = losses[0]
        return _per_pair(marks, self.sizes)


class _InOrder(Schedule):
    def batch(self, count: int, step: int) -> list[int]:
        return list(range(step * self.batch_size, min(count, (step + 1) * self.batch_size)))


class Trl:
    """TRL's RewardTrainer on the same ids, as a user calls it.

    Args:
        options: fields of RewardConfig that differ from its defaults.
    """

    def __init__(self, backbone: Backbone, sizes: TrainSizes, direction: torch.Tensor, options: dict[str, Any]) -> None:
        from transformers import AutoModelForSequenceClassification

        self.sizes, self.options, self.encoder = sizes, options, backbone.encoder
        config = type(backbone.model.config).from_dict(backbone.model.config.to_dict())
        config.num_labels, config.pad_token_id = 1, backbone.encoder.end_id
        self.model = AutoModelForSequenceClassification.from_config(config, dtype=backbone.dtype)
        self.model.get_decoder().load_state_dict(backbone.model.get_decoder().state_dict())
        with torch.no_grad():
            self.model.score.weight.copy_(direction[None])
        self.model.to(backbone.device)
        self.first_loss = float("nan")

    def seconds_a_pair(self, pairs: Sequence[PreferencePair]) -> float:
        """Train on a round's pairs and return the median seconds a pair of all steps but the first."""
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import TrainerCallback
        from trl.trainer.reward_config import RewardConfig
        from trl.trainer.reward_trainer import RewardTrainer

        marks, losses, wait = [], [], self.model.device
        outer = self

        class Marks(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                marks.append(time.perf_counter())

            def on_train_end(self, *args: Any, **kwargs: Any) -> None:
                _wait(wait)
                marks.append(time.perf_counter())

        class Noted(RewardTrainer):
            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                found = super().compute_loss(*args, **kwargs)  # type: ignore[no-untyped-call]
                losses.append(float((found[0] if isinstance(found, tuple) else found).detach()))
                return found

            def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
                return torch.utils.data.SequentialSampler(self.train_dataset)

        rows: dict[str, list[list[int]]] = {"chosen_ids": [], "rejected_ids": []}
        for pair in pairs:
            prompt = outer.encoder.encode_prompt(pair.prompt)
            for side in ("chosen", "rejected"):
                tail = outer.encoder.encode_completion(getattr(pair, side), after=pair.prompt)
                rows[f"{side}_ids"].append([*prompt, *tail])
        settings = LoraSettings()
        lora = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="SEQ_CLS",
        )
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            arguments = RewardConfig(
                output_dir=folder,
                per_device_train_batch_size=self.sizes.batch_size,
                num_train_epochs=1,
                learning_rate=1e-4,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=self.model.device.type == "cpu",
                seed=self.sizes.seed,
                **self.options,
            )
            trainer = Noted(
                model=self.model,
                args=arguments,
                train_dataset=Dataset.from_dict(rows),
                processing_class=self.encoder.tokenizer,
                peft_config=lora,
                callbacks=[Marks()],
            )
            trainer.train()
            self.model = trainer.model.unload()
        if math.isnan(self.first_loss):
            self.first_loss = losses[0]
        return _per_pair(marks, self.sizes)


ALIKE = {"bf16": False, "gradient_checkpointing": False, "disable_dropout": True}
"""What both sides do alike: no checkpointing, no half precision, no dropout."""


def measure_training(
    backbone: Backbone,
    sizes: TrainSizes = TrainSizes(),
    *,
    trl: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train in turns on the same pairs and return seconds a pair, their ratios and the first losses.

    Args:
        backbone: the network; adapters are put on views of it.
        sizes: of texts and rounds.
        trl: whether TRL takes part, once set like us and once with its own defaults.
        progress: called with (turns done, turns in all).

    Raises:
        MissingExtraError: if TRL is to take part and is not installed.
    """
    if trl and importlib.util.find_spec("trl") is None:
        raise MissingExtraError(
            "measuring against TRL needs the trl package: pip install 'rewardgap[trl]', or leave it out with --no-trl."
        )
    draw = torch.Generator().manual_seed(sizes.seed)
    direction = (torch.randn(backbone.width, generator=draw) / backbone.width**0.5).to(backbone.device)
    sides: dict[str, Any] = {"rewardgap": Packed(backbone, sizes, direction)}
    if trl:
        sides["trl"] = Trl(backbone, sizes, direction, ALIKE)
        sides["trl_defaults"] = Trl(backbone, sizes, direction, {})
    pairs = random_pairs(backbone, sizes, sizes.batch_size * sizes.steps)
    found: dict[str, list[float]] = {name: [] for name in sides}
    turns = sizes.rounds * len(sides)
    for turn in range(turns):
        name = list(sides)[turn % len(sides)]
        found[name].append(sides[name].seconds_a_pair(pairs))
        if progress is not None:
            progress(turn + 1, turns)
    out: dict[str, Any] = {
        "pairs_per_second": {name: 1 / statistics.median(values) for name, values in found.items()},
        "first_loss": {name: side.first_loss for name, side in sides.items()},
        "peak_bytes": torch.cuda.max_memory_allocated() if backbone.device.type == "cuda" else peak_bytes(),
    }
    for name in sides:
        if name != "rewardgap":
            out[f"{name}_over_rewardgap"] = ratio(found[name], found["rewardgap"])
    return out


def _per_pair(marks: Sequence[float], sizes: TrainSizes) -> float:
    steps = [end - begin for begin, end in itertools.pairwise(marks[1:])]
    return statistics.median(steps) / sizes.batch_size


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
