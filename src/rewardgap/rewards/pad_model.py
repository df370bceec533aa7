"""The autoregressive model whose networks read a text about the user in every prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import prompt_text
from rewardgap.core.seeds import child_seed
from rewardgap.rewards.autoregressive import AutoregressiveModel
from rewardgap.rewards.pad_text import with_text
from rewardgap.rewards.states import UserState
from rewardgap.rewards.token_networks import batch_loss
from rewardgap.rewards.training import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from rewardgap.core.records import PreferencePair, Prompt
    from rewardgap.rewards.pad import PAD
    from rewardgap.rewards.token_networks import TokenNetworks
    from rewardgap.rewards.token_rewards import Branches

PROBE = "x"


class Renewed(Schedule):
    """A schedule under which N examples are other rows in every epoch: those of epoch e begin at e times N."""

    def batch(self, count: int, step: int) -> list[int]:
        """Return the rows of a step."""
        epoch = step // math.ceil(count / self.batch_size)
        return [epoch * count + row for row in super().batch(count, step)]


@dataclass
class PADModel(AutoregressiveModel):
    """A reward model of a head whose users are texts: each row's network reads its prompt with its user's text.

    A prompt is cut, where that is allowed, as if its user's text were of the largest size, and for network and
    reference alike; the text itself is never cut with it.
    """

    head: PAD

    def __post_init__(self) -> None:
        """Refuse a text that leaves the prompt no room, and a turn that the template does not take."""
        super().__post_init__()
        encoder, head = self.base.encoder, self.head
        try:
            whole = encoder.encode_prompt(with_text(PROBE, PROBE, head.text_turn))
        except DataError as error:
            raise ConfigError(f"{self.method}: {str(error).rstrip('.')}. Give text_turn: user.") from error
        # What the text's turn takes beside the text, and beside what a template puts there by itself.
        self._frame = max(0, len(whole) - len(encoder.encode_prompt(PROBE)))
        self._room = self.base.context - head.conditioning.text_tokens - self._frame
        if self._room < 1:
            raise ConfigError(
                f"{self.method}: text_tokens is {head.conditioning.text_tokens}, which leaves no room for a prompt in "
                f"the {self.base.context} tokens that {self.base.name} reads; lower text_tokens."
            )

    def text_of(self, state: UserState) -> str:
        """Return the text about a user, as the networks read it; empty where the tokenizer spells none of it.

        Raises:
            ConfigError: if the state is another method's or of another size, or nothing was fitted.
        """
        self.head.condition([state])
        texts = self.head.conditioning
        return texts.writer.text(texts.ids(state.values))

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """Return the ids of prompts without a text, the largest text's room kept."""
        longest = self.limit.max_tokens or self._room
        encoder = self.base.encoder
        return [encoder.encode_prompt(p, max_tokens=longest, on_long=self.limit.on_long) for p in prompts]

    def read_prompts(
        self, prompts: Sequence[Prompt], states: Sequence[UserState | None]
    ) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Return the ids of prompts as the networks read them for users, and as the reference does.

        Args:
            prompts: B prompts.
            states: B user states; None for no text at all.

        Raises:
            DataError: if a prompt has to be cut and its text stands in the turn that would be.
        """
        plain = self.encode_prompts(prompts)
        told = [self._with_text(*row) for row in zip(prompts, plain, states, strict=True)]
        return told, told if self.head.ref == "same" else plain

    def training_rows(
        self, pairs: Sequence[PreferencePair], seed: int, epochs: int
    ) -> tuple[list[Branches], list[Branches]]:
        """Return the N training pairs behind texts of their users' other pairs, drawn anew for each epoch, N an epoch.

        A share of them has the generic text. Pairs are ranked behind those of the first epoch as they were before that
        share was drawn.
        """
        texts, writer = self.head.conditioning, self.head.conditioning.writer
        own: dict[str, list[PreferencePair]] = {user: [] for user in self.head.users}
        for pair in pairs:
            own[pair.user_id].append(pair)
        drawn = [writer.training_texts(pairs, child_seed(seed, "texts", epoch)) for epoch in range(epochs)]
        texts.keep([writer.write(rows) for rows in own.values()], drawn[0])
        nobody = UserState(self.method, texts.cold_start(), 0)
        rows: list[Branches] = []
        judged: list[Branches] = []
        for epoch, of_pairs in enumerate(drawn):
            draw = np.random.Generator(np.random.PCG64(child_seed(seed, "generic", epoch)))
            for pair, text, chance in zip(pairs, of_pairs, draw.random(len(pairs)).tolist(), strict=True):
                told = self._pair(pair, UserState(self.method, texts.values(text), text.shown))
                rows.append(self._pair(pair, nobody) if chance < self.head.generic_share else told)
                judged += [told] if epoch == 0 else []
        return rows, judged

    def _objective(
        self, networks: TokenNetworks, rows: Sequence[Branches], index: torch.Tensor, schedule: Schedule
    ) -> tuple[Callable[[list[int]], torch.Tensor], Schedule]:
        """Return the loss of a batch, and a schedule under which each epoch reads rows of its own."""

        def loss_of(batch: list[int]) -> torch.Tensor:
            users = index[[row % len(index) for row in batch]]
            return batch_loss(self.head, networks, [rows[row] for row in batch], users)

        return loss_of, Renewed(schedule.epochs, schedule.batch_size, schedule.seed)

    def warm(self, pairs: Sequence[PreferencePair], progress: Callable[[int, int], None] | None = None) -> None:
        """Compute log π_ref of pairs ahead; where the reference reads users' texts there is nothing to compute yet."""
        if self.head.ref == "base":
            super().warm(pairs, progress)

    def _with_text(self, prompt: Prompt, plain: tuple[int, ...], state: UserState | None) -> tuple[int, ...]:
        """Return the ids of a prompt with a user's text, given those without, cut as much as they were."""
        if state is None:
            return plain
        encoder, turn = self.base.encoder, self.head.text_turn
        asked = with_text(prompt, self.text_of(state), turn)
        ids = encoder.encode_prompt(asked)
        cut = len(encoder.encode_prompt(prompt)) - len(plain) if self.limit.on_long == "truncate_prompt" else 0
        if cut <= 0:
            return ids
        if turn == "user":
            raise DataError(
                f"prompt '{prompt_text(prompt)[:60]}' is {cut} tokens too long, and with text_turn: user it cannot be "
                "cut, since the text about the user stands where the cut begins. Raise max_prompt_tokens, or lower "
                "text_tokens."
            )
        return encoder.encode_prompt(asked, max_tokens=len(ids) - cut, on_long="truncate_prompt")

    def _check_room(self, prompt: Prompt, length: int, longest: int) -> None:
        """Refuse a prompt with its user's text and a completion, without its end token, that are too long together."""
        if length + longest > self.base.context:
            raise DataError(
                f"prompt of {length} tokens, with the text about its user, and completion of {longest} are longer than "
                f"the {self.base.context} that {self.base.name} reads: '{prompt_text(prompt)[:60]}'. Lower "
                "max_prompt_tokens or text_tokens, or shorten the completion."
            )
