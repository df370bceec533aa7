"""Pairing rules: how a prompt and what its user wrote become a pair of completions. The rule decides what is measured.

- `closest`: two samples of the policy; the one closer to the user's text is chosen. Both sides are machine-written, so
  nothing but closeness tells them apart.
- `generated`: the user's text against the policy's zero-shot completion. Tests authorship as much as preference.
- `other_user`: the user's text against a completion in another user's manner: that user's own text for the same prompt
  where there is one, else one written by the policy with that user's demonstrations.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rewardgap.backbones.serving import ServedBackbone
from rewardgap.backbones.session import TrieSession
from rewardgap.core.records import PreferencePair
from rewardgap.core.seeds import child_seed
from rewardgap.decoding.loop import decode
from rewardgap.decoding.plain import Sample
from rewardgap.metrics.catalog import METRICS
from rewardgap.policies.base import complete
from rewardgap.policies.in_context import Demonstrations, in_context
from rewardgap.policies.zero_shot import zero_shot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.core.records import AuthoredText
    from rewardgap.data.base import AuthoredDataset
    from rewardgap.policies.base import GenerationSettings
    from rewardgap.studies.spec import PairingSpec

DEMONSTRATIONS = 4


def shortened_prompt(
    dataset: AuthoredDataset, text: AuthoredText, encoder: Any, max_tokens: int | None
) -> tuple[str, bool]:
    """Return the prompt of a text in at most `max_tokens`, its source cut at the end at a word, and whether it was cut.

    The instruction around the source is never cut, so every deployment reads the same task.
    """
    whole = dataset.prompt(text)
    if max_tokens is None or len(encoder.encode_prompt(whole)) <= max_tokens:
        return whole, False
    words = text.prompt_source.split()
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        short = dataset.prompt(text, " ".join(words[:middle]))
        low, high = (middle, high) if len(encoder.encode_prompt(short)) <= max_tokens else (low, middle - 1)
    short = dataset.prompt(text, " ".join(words[:low]))
    encoder.encode_prompt(short, max_tokens=max_tokens)
    return short, True


class Pairer:
    """Makes pairs of authored texts under one rule.

    Args:
        dataset: the texts.
        policy: writes the alternatives.
        spec: the rule.
        settings: lengths and the completion rule.
        seed: decides samples.
        donors: for `other_user`: user -> that user's texts that may be shown.
    """

    def __init__(
        self,
        dataset: AuthoredDataset,
        policy: Backbone,
        spec: PairingSpec,
        settings: GenerationSettings,
        seed: int,
        donors: dict[str, list[AuthoredText]],
    ) -> None:
        self.dataset, self.policy, self.spec, self.settings, self.seed = dataset, policy, spec, settings, seed
        self.donors = donors
        self._closeness = [METRICS[name].build() for name in ("rouge1", "rougeL")]
        rules: dict[str, Callable[[Sequence[AuthoredText], Sequence[str]], list[tuple[str, str] | str]]]
        rules = {"closest": self._closest, "generated": self._generated, "other_user": self._other_user}
        self._rule = rules[spec.rule]
        # Alternatives come from what may be shown: a user's query texts are in nobody's training pair.
        self._by_prompt: dict[str, list[AuthoredText]] = {}
        for text in (text for texts in donors.values() for text in texts):
            self._by_prompt.setdefault(text.prompt_source, []).append(text)

    def records(self, texts: Sequence[AuthoredText]) -> list[dict[str, Any]]:
        """Return one record a text: a pair, or the reason why there is none."""
        shown = [self._prompt(text) for text in texts]
        made = self._rule(texts, [prompt for prompt, _ in shown])
        out = []
        for text, (prompt, cut), sides in zip(texts, shown, made, strict=True):
            record: dict[str, Any] = {
                "user_id": text.user_id,
                "example_id": text.example_id,
                "prompt": prompt,
                "prompt_cut": cut,
                "reference": text.reference,
                "timestamp": text.timestamp,
                "dropped": sides if isinstance(sides, str) else None,
            }
            if not isinstance(sides, str):
                chosen, rejected = sides
                scores = [self._close(side, text.reference)[0] for side in sides]
                record |= {
                    "chosen": chosen,
                    "rejected": rejected,
                    "chosen_score": scores[0],
                    "rejected_score": scores[1],
                }
            out.append(record)
        return out

    def check_batches(self, texts: Sequence[AuthoredText], batch_size: int) -> None:
        """Refuse batches that would not fit into memory, demonstrations of others left out.

        Raises:
            OutOfMemoryError: naming a batch size that fits.
        """
        policy = zero_shot(self.policy, settings=self.settings)
        policy.rows_a_prompt = 2 if self.spec.rule == "closest" else 1
        policy.check_batches([self._prompt(text)[0] for text in texts], [None] * len(texts), batch_size)

    def _closest(self, texts: Sequence[AuthoredText], prompts: Sequence[str]) -> list[tuple[str, str] | str]:
        out: list[tuple[str, str] | str] = ["no two samples of different closeness"] * len(texts)
        waiting = list(range(len(texts)))
        for attempt in range(self.spec.tries):
            drawn = self._samples([texts[i] for i in waiting], [prompts[i] for i in waiting], attempt)
            left = []
            for place, (first, second) in zip(waiting, drawn, strict=True):
                reference = texts[place].reference
                a, b = self._close(first, reference), self._close(second, reference)
                if not first or not second or a == b:
                    left.append(place)
                    continue
                out[place] = (first, second) if a > b else (second, first)
            waiting = left
            if not waiting:
                break
        return out

    def _samples(self, texts: Sequence[AuthoredText], prompts: Sequence[str], attempt: int) -> list[tuple[str, str]]:
        """Draw two completions of each prompt; a local policy reads the prompt once for both."""
        policy = zero_shot(self.policy, decoder=Sample(self.spec.temperature), settings=self.settings)
        encoder = self.policy.encoder
        seeds = [child_seed(self.seed, "pair", t.example_id, attempt, side) for t in texts for side in range(2)]
        if isinstance(self.policy, ServedBackbone):
            written = policy.open([prompt for prompt in prompts for _ in range(2)], seeds=seeds).generate()
            return [(a.text, b.text) for a, b in zip(written[::2], written[1::2], strict=True)]
        ids = [encoder.encode_prompt(prompt) for prompt in prompts]
        session = TrieSession(self.policy, len(ids), max(map(len, ids)) + self.settings.max_new_tokens + 2)
        tips = session.prefill(ids)
        twice = [row for row in range(len(ids)) for _ in range(2)]
        session.select(twice)
        rows = decode(session, tips[twice], policy.decoder, policy.stop_rule(), seeds=seeds)
        drawn = [complete(encoder.decode(row.ids), self.settings.first_line) for row in rows]
        return list(zip(drawn[::2], drawn[1::2], strict=True))

    def _close(self, text: str, reference: str) -> tuple[float, float, float]:
        rouge = [float(metric.score([text], [reference])[0]) for metric in self._closeness]
        return rouge[0], rouge[1], bigram_dice(text, reference)

    def _generated(self, texts: Sequence[AuthoredText], prompts: Sequence[str]) -> list[tuple[str, str] | str]:
        written = zero_shot(self.policy, settings=self.settings).generate(prompts)
        return [_against(text.reference, other) for text, other in zip(texts, written, strict=True)]

    def _other_user(self, texts: Sequence[AuthoredText], prompts: Sequence[str]) -> list[tuple[str, str] | str]:
        users = sorted(user for user, rows in self.donors.items() if rows)
        states, natural = [], []
        for text in texts:
            same = [t for t in self._by_prompt.get(text.prompt_source, ()) if t.user_id != text.user_id]
            natural.append(min(same, key=lambda t: child_seed(self.seed, t.example_id)).reference if same else None)
            others = [user for user in users if user != text.user_id]
            donor = others[child_seed(self.seed, "donor", text.example_id) % len(others)]
            states.append(Demonstrations(tuple(self._shown(t) for t in self.donors[donor][:DEMONSTRATIONS])))
        policy = in_context(self.policy, (), num_demonstrations=DEMONSTRATIONS, settings=self.settings)
        written = policy.generate(prompts, states)
        return [
            _against(text.reference, own if own is not None else other)
            for text, own, other in zip(texts, natural, written, strict=True)
        ]

    def _prompt(self, text: AuthoredText) -> tuple[str, bool]:
        limit = self.settings.max_prompt_tokens or self.policy.context - self.settings.max_new_tokens
        return shortened_prompt(self.dataset, text, self.policy.encoder, limit)

    def _shown(self, text: AuthoredText) -> PreferencePair:
        prompt, _ = self._prompt(text)
        return PreferencePair(
            user_id=text.user_id, example_id=text.example_id, prompt=prompt, chosen=text.reference, rejected="",
            reference=text.reference,
        )  # fmt: skip


def _against(reference: str, other: str) -> tuple[str, str] | str:
    if not other:
        return "the policy wrote nothing"
    return "both sides are equal" if other.strip() == reference.strip() else (reference, other)


def bigram_dice(text: str, reference: str) -> float:
    """Return the Dice overlap of character bigrams, in [0, 1]: it breaks ties between texts that share no word."""
    a, b = (Counter(zip(t.lower(), t.lower()[1:], strict=False)) for t in (text, reference))
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else float(text == reference)
