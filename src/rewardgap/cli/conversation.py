"""One talk with a policy: history, user and guidance weight, and what is shown while an answer is written."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from rewardgap.cli.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from rewardgap.backbones.hf import Backbone
    from rewardgap.cli.stream import Palette, Piece
    from rewardgap.core.records import Message
    from rewardgap.policies.base import AdaptedPolicy, GenerationSettings
    from rewardgap.studies.single import States

COMMANDS = {"/new": "start over", "/user NAME": "another user", "/weight X": "another guidance weight"}


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@dataclass
class Conversation:
    """One talk: what was said so far, and who is answered how.

    Args:
        policy: the policy.
        settings: lengths and rules.
        decoder: its name.
        options: of the decoder, None where not given.
        states: the reward model that steers and the states of its users; None for the policy alone.
        user: whose state; the cold start where None.
        plain: also write what the policy alone would.
        palette: how changed tokens are marked.
        out: writes text at once.
    """

    policy: Backbone
    settings: GenerationSettings
    decoder: str
    options: dict[str, Any]
    states: States | None
    user: str | None
    plain: bool
    palette: Palette
    out: Callable[[str], None] = _show
    history: tuple[Message, ...] = ()

    def check(self) -> None:
        """Refuse a decoder that does not go with what is given, and say where a user has no state."""
        self._deployed()
        if self.states is not None:
            self._say_state()

    def answer(self, text: str, as_json: bool = False) -> bool:
        """Write an answer to a text, show it as it comes, and remember both; return whether it was left to end.

        Raises:
            DataError: if the conversation is longer than the policy reads, or the text holds what is no character.
        """
        from rewardgap.core.errors import DataError
        from rewardgap.core.records import Message

        if not text.isascii() and text.encode("utf-8", "ignore").decode() != text:
            raise DataError("the prompt holds bytes that are no UTF-8; set the terminal to UTF-8.")
        prompt = (*self.history, Message("user", text))
        policy, state = self._deployed()
        written = self._write(policy, state, prompt, as_json)
        # Texts without the policy's own answer are no conversation: the history holds what was shown.
        self.history = (*prompt, Message("assistant", written["completion"]))
        if self.plain and written["finished"]:
            from rewardgap.studies.single import build_decoder, deploy_plain

            alone = deploy_plain(self.policy, build_decoder("greedy"), self.settings, [""]).policy
            if not as_json:
                self.out("without guidance: ")
            other = self._write(alone, None, prompt, as_json)
            written["plain"] = {key: other[key] for key in ("completion", "reward", "new_tokens", "finished")}
            written["finished"] &= other["finished"]
        if as_json:
            self.out(json.dumps({"prompt": text, **written}) + "\n")
        return bool(written["finished"])

    def command(self, line: str) -> None:
        """Do what a line that begins with a slash asks for.

        Raises:
            ConfigError: if there is no such command, or it does not go with what is given.
        """
        from rewardgap.core.errors import ConfigError

        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word == "/new" and not rest:
            self.history = ()
        elif word in ("/user", "/weight") and self.states is None:
            raise ConfigError(f"{word} goes with a reward model; start with --model FOLDER.")
        elif word == "/user" and rest:
            self.user = rest
            self._say_state()
        elif word == "/weight" and rest:
            before = self.options
            self.options = {**before, "guidance_weight": _number(rest)}
            try:
                self._deployed()
            except ConfigError:
                self.options = before
                raise
        else:
            known = ", ".join(f"{name} ({what})" for name, what in COMMANDS.items())
            raise ConfigError(f"'{line}' is no command. Known: {known}. A text may begin with a blank and a slash.")

    def _deployed(self) -> tuple[AdaptedPolicy, Any]:
        from rewardgap.studies.single import build_decoder, deploy_guided, deploy_plain

        rule, user = build_decoder(self.decoder, **self.options), self.user or ""
        if self.states is None:
            return deploy_plain(self.policy, rule, self.settings, [user]).policy, None
        deployed = deploy_guided(self.policy, rule, self.settings, self.states, [user])
        return deployed.policy, deployed.states[user]

    def _say_state(self) -> None:
        from difflib import get_close_matches

        from rewardgap.studies.single import is_personal

        assert self.states is not None
        if self.states.find(self.user or "")[1] != "cold_start" or not is_personal(self.states.model):
            return
        known = [*self.states.adapted, *self.states.model.head.users]
        near = get_close_matches(self.user or "", known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        who = "no --user is given" if self.user is None else f"user '{self.user}' has no state"
        typer.echo(one_line(f"{who}: cold start.{hint}"), err=True)

    def _write(self, policy: AdaptedPolicy, state: Any, prompt: tuple[Message, ...], quiet: bool) -> dict[str, Any]:
        from rewardgap.cli.stream import TokenStream

        stream = TokenStream(self.policy.encoder)
        pieces: list[Piece] = []

        def show(new: list[Piece]) -> None:
            pieces.extend(new)
            if not quiet:
                for piece in new:
                    self.out(self.palette.show(piece))

        begin = time.perf_counter()
        finished = True
        try:
            policy.open([prompt], [state]).generate(watch=lambda _, decoded: show(stream.watch(decoded)))
        except KeyboardInterrupt:
            finished = False
        seconds = time.perf_counter() - begin
        show(stream.rest())
        if not quiet:
            self.out("\n")
        completion, changed, tokens = "", None, 0
        if stream.decoded is not None:
            generation = policy.finish(stream.decoded)
            completion, changed, tokens = generation.text, generation.changed, stream.decoded.steps
        reward = None
        if self.states is not None and completion:
            own = self.states.find(self.user or "")[0]
            reward = float(self.states.model.rewards([prompt], [completion], own)[0])
        if not quiet:
            self._footer(policy, tokens, seconds, changed, reward, finished)
        return {
            "user_id": self.user,
            "guidance_weight": policy.decoder.guidance_weight if self.states is not None else None,
            "completion": completion,
            "finished": finished,
            "new_tokens": tokens,
            "pieces": [
                {"text": piece.text, "steps": piece.steps, "instead": {str(k): v for k, v in piece.instead.items()}}
                for piece in pieces
            ],
            "changed": changed,
            "reward": reward,
            "seconds": seconds,
        }

    def _footer(
        self,
        policy: AdaptedPolicy,
        tokens: int,
        seconds: float,
        changed: float | None,
        reward: float | None,
        finished: bool,
    ) -> None:
        parts = [f"{tokens} tokens, {tokens / seconds:.1f} a second"]
        if changed is not None:
            parts.append(f"{100 * changed:.0f} % changed at λ = {policy.decoder.guidance_weight:g}")
        if reward is not None:
            parts.append(f"reward {reward:.2f}")
        parts += [] if finished else ["stopped"]
        line = ", ".join(parts)
        typer.echo(typer.style(line, dim=True) if self.palette.coloured else line, err=True)


def _number(text: str) -> float:
    from rewardgap.core.errors import ConfigError

    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"/weight '{text}' is no number; give one, for example /weight 2.") from None
