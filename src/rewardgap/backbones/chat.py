"""From prompts to token ids: chat templates, with every text of a user or a dataset encoded as text.

Prompt and completion are tokenised apart and joined, so that the prompt's ids never depend on the completion. A special
token written inside a user's text (`<|im_start|>`) becomes its characters, never a control token: the template's own
tokens are placed by id, everything else goes through a copy of the tokenizer that knows no control tokens.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from rewardgap.core.errors import ConfigError, DataError, ModelError
from rewardgap.core.records import Message, Prompt, prompt_messages
from rewardgap.core.store import content_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.hf import Backbone

OnLong = Literal["error", "truncate_prompt"]
_TEXT = "Name a colour,  e.g. red.\n\nÜber 3 words; don't\twait.\n\n\n    x = 1234567 "
_PROBE = (Message("user", _TEXT), Message("assistant", "\nBlue\n\n"), Message("user", " Why? "))
_CLOCK = "{% macro strftime_now(format) %}01 Jan 2025{% endmacro %}"
"""Stands in for the clock that some templates read, so that a prompt's ids do not change overnight."""


class ChatEncoder:
    """Encodes prompts and completions for one tokenizer.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        end_ids: ids that end generation, from the model's generation config.

    Attributes:
        end_id: the id that closes a completion (the template's turn end, else the tokenizer's end of sequence).
        end_ids: every id at which generation stops.

    Raises:
        ModelError: if the tokenizer is a slow one, or has no end token.
    """

    def __init__(self, tokenizer: Any, end_ids: Sequence[int] = ()) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"tokenizer {type(tokenizer).__name__} is a slow one; save it as tokenizer.json first.")
        from tokenizers import Tokenizer

        self.tokenizer = tokenizer
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        added = state.pop("added_tokens", [])
        template = str(tokenizer.get_chat_template()) if self.has_template else ""
        self._template = _CLOCK + template if "strftime_now" in template else template
        control = [row for row in added if row["special"] or (row["content"].strip() and row["content"] in template)]
        self._control = {row["content"]: int(row["id"]) for row in control}
        unknown = self._control.get(str(state["model"].get("unk_token")), tokenizer.unk_token_id)
        self._forbidden = set(self._control.values()) - {unknown}
        longest_first = sorted(self._control, key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(text) for text in longest_first)) if longest_first else None
        # Added tokens that control nothing, such as runs of blanks, are part of how plain text is read.
        kept = [row for row in added if row["content"] not in self._control]
        plain = state | {"added_tokens": kept, "post_processor": None, "truncation": None, "padding": None}
        self._plain = Tokenizer.from_str(json.dumps(plain))
        self._renumbered = {self._plain.token_to_id(row["content"]): int(row["id"]) for row in kept}
        self._hash = content_hash([plain, control])
        empty = tokenizer("")["input_ids"]
        self._opening = empty[:1] if empty and empty[0] == tokenizer.bos_token_id else []
        self._exact = self._matches_peer()
        self.end_id = self._find_end(end_ids)
        known = {self.end_id, *end_ids}
        if tokenizer.eos_token_id is not None:
            known.add(int(tokenizer.eos_token_id))
        self.end_ids = tuple(sorted(known))

    @cached_property
    def token_ids(self) -> dict[str, int]:
        """Every token and its id."""
        return dict(self.tokenizer.get_vocab())

    @property
    def template_hash(self) -> str:
        """Return a hash of what decides how a prompt becomes ids: template and tokenizer."""
        return content_hash([self._template, self._hash, self._opening, self._exact])

    def encode_prompt(
        self, prompt: Prompt, *, max_tokens: int | None = None, on_long: OnLong = "error"
    ) -> tuple[int, ...]:
        """Return the prompt's ids, ending where the completion begins.

        Args:
            prompt: text, or chat messages.
            max_tokens: the longest that is allowed.
            on_long: "error", or "truncate_prompt": drop text from the left of the oldest turns, never from the
                template or the system turn.

        Raises:
            DataError: if the prompt has no token, is longer than `max_tokens` and may not be cut, or cannot be cut
                enough.
        """
        messages = prompt_messages(prompt)
        excerpt = _excerpt(messages)
        ids = self._encode_messages(messages)
        if not ids:
            raise DataError("prompt '' has no token under this tokenizer; give a prompt with text.")
        if max_tokens is None or len(ids) <= max_tokens:
            return tuple(ids)
        if on_long == "error":
            raise DataError(
                f"prompt of {len(ids)} tokens is longer than the {max_tokens} allowed: '{excerpt}'. "
                "Raise max_prompt_tokens, or set on_long: truncate_prompt."
            )
        for index, message in enumerate(messages):
            if message.role == "system":
                continue
            body = self.encode_text(message.content)
            while len(ids) > max_tokens and body:
                body = body[len(ids) - max_tokens :]
                # A cut inside a character leaves bytes that are no text.
                shorter = Message(message.role, self.decode(body).lstrip("\ufffd"))
                messages = (*messages[:index], shorter, *messages[index + 1 :])
                ids = self._encode_messages(messages)
            if ids and len(ids) <= max_tokens:
                return tuple(ids)
        raise DataError(
            f"prompt '{excerpt}' cannot be cut to {max_tokens} tokens: template and system turn alone take {len(ids)}. "
            "Raise max_prompt_tokens."
        )

    def encode_completion(self, text: str, *, after: Prompt = ()) -> tuple[int, ...]:
        """Return the completion's ids without an end token."""
        return tuple(self.encode_text(self.joined(text, after)))

    def joined(self, text: str, after: Prompt) -> str:
        """Return a completion as it is read behind a prompt.

        Without a chat template a prompt and a completion that meet with no white space get one blank, which belongs to
        the completion (tokenizers of this family put the blank before the word).
        """
        before = "" if self.has_template else self.render(after)
        if before and text and not (before[-1].isspace() or text[0].isspace()):
            return f" {text}"
        return text

    @property
    def alone_ids(self) -> tuple[int, ...]:
        """Return what a completion is read behind where it is read alone.

        The template around an empty prompt; without a template the token that begins a text, else the one that ends it.
        """
        if self.has_template:
            return self.encode_prompt("")
        return tuple(self._opening) or (self.end_id,)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of plain text; special tokens in it are characters.

        Raises:
            DataError: if this tokenizer can only read a part of the text as a control token.
        """
        if self._exact:
            return self._encode_plain(text)
        return self._checked(text, self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode_plain(self, text: str) -> list[int]:
        ids = self._plain.encode(text, add_special_tokens=False).ids
        return self._checked(text, [self._renumbered.get(index, index) for index in ids])

    def _checked(self, text: str, ids: Sequence[int]) -> list[int]:
        found = self._pattern.search(text) if self._pattern is not None else None
        read = set(ids) & (set(self._control.values()) if found else self._forbidden)
        if read:
            what = found.group() if found else self.tokenizer.convert_ids_to_tokens(min(read))
            raise DataError(
                f"text holds '{what}', which this tokenizer can only read as a control token. "
                "Remove it from the text, or use a model with a byte-level tokenizer."
            )
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def render(self, prompt: Prompt) -> str:
        """Return the prompt as the model reads it, for records and for people."""
        if not self.has_template:
            return "\n\n".join(message.content for message in prompt_messages(prompt))
        return self._render(prompt_messages(prompt))

    @cached_property
    def line_break_ids(self) -> tuple[int, ...]:
        """Every id whose text holds a line break: the stop rule of one-line completions."""
        vocabulary = len(self.tokenizer)
        texts = self.tokenizer.batch_decode([[index] for index in range(vocabulary)])
        return tuple(index for index, text in enumerate(texts) if "\n" in text)

    def _render(self, messages: Sequence[Message], *, opens_answer: bool = True) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, chat_template=self._template, tokenize=False, add_generation_prompt=opens_answer
                )
            )
        except Exception as error:
            if type(error).__module__.startswith("jinja2"):
                raise DataError(f"this model's chat template refuses the conversation: {error}") from error
            raise

    def _encode_messages(self, messages: Sequence[Message]) -> list[int]:
        if not messages:
            raise DataError("prompt has no turn; give at least one user turn.")
        if not self.has_template:
            return [*self._opening, *self.encode_text(self.render(tuple(messages)))]
        if not self._exact:
            for message in messages:
                self.encode_text(message.content)
            return list(self.tokenizer(self._render(messages), add_special_tokens=False)["input_ids"])
        return self._encode_spans(messages)

    def _encode_spans(self, messages: Sequence[Message]) -> list[int]:
        contents = [message.content.strip() for message in messages]
        mark = next(c for c in map(chr, range(0xE000, 0xF8FF)) if not any(c in text for text in contents))
        # Blanks around a content go through the template, which may trim them for some roles or on one side.
        stand_ins = [
            Message(m.role, m.content.replace(text, f"{mark}{i}{mark}", 1) if text else m.content)
            for i, (m, text) in enumerate(zip(messages, contents, strict=True))
        ]
        parts = re.split(f"{mark}([0-9]+){mark}", self._render(stand_ins))
        ids: list[int] = []
        pending = ""
        for index, part in enumerate(parts):
            if index % 2:
                pending += contents[int(part)]
                continue
            begin = 0
            for found in self._pattern.finditer(part) if self._pattern else ():
                pending += part[begin : found.start()]
                ids += self._encode_plain(pending) if pending else []
                ids.append(self._control[found.group()])
                pending, begin = "", found.end()
            pending += part[begin:]
        return ids + (self._encode_plain(pending) if pending else [])

    def _matches_peer(self) -> bool:
        """Return whether our encoding equals the tokenizer's own where no text holds a special token."""
        if self._encode_plain(_TEXT) != self.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]:
            return False
        if not self.has_template:
            return True
        peer = self.tokenizer(self._render(_PROBE), add_special_tokens=False)["input_ids"]
        return self._encode_spans(_PROBE) == list(peer)

    def _find_end(self, end_ids: Sequence[int]) -> int:
        if self.has_template:
            turns = (Message("user", "x"), Message("assistant", "\ue000"))
            after = self._render(turns, opens_answer=False).split("\ue000")[-1]
            found = self._pattern.search(after) if self._pattern else None
            if found:
                return self._control[found.group()]
        for candidate in (self.tokenizer.eos_token_id, *end_ids):
            if candidate is not None:
                return int(candidate)
        raise ModelError("the tokenizer has no end token; set eos_token in its tokenizer_config.json.")


def _excerpt(messages: Sequence[Message], length: int = 60) -> str:
    text = " ".join(messages[-1].content.split()) if messages else ""
    return text if len(text) <= length else text[: length - 1] + "…"


def same_tokens(policy: Backbone, reward: Backbone) -> bool:
    """Return whether a token id means the same to both.

    Models of one family pad their embeddings to different sizes behind the last token: that makes no other tokenizer,
    as long as every token has a row in both.
    """
    own, other = policy.encoder.token_ids, reward.encoder.token_ids
    if own is not other and own != other:
        return False
    return policy.vocabulary == reward.vocabulary or max(own.values()) < min(policy.vocabulary, reward.vocabulary)


def check_readable(tokens: Any, reward: Backbone) -> None:
    """Refuse ids that stand for no token, where the reward model's embedding is padded less than the policy's.

    Args:
        tokens: candidates, an array or tensor of ids.
        reward: the reward model's backbone.

    Raises:
        ModelError: naming the id.
    """
    highest = int(tokens.max())
    if highest >= reward.vocabulary:
        raise ModelError(
            f"the policy proposes id {highest}, a row that pads its embedding and stands for no token; {reward.name} "
            f"has {reward.vocabulary} rows and cannot read it. Lower top_k: a trained policy proposes such ids last."
        )


def check_vocabulary(policy: Backbone, reward: Backbone) -> None:
    """Refuse to mix a policy and a reward model over its tokens whose token ids do not mean the same.

    Raises:
        ConfigError: naming both sizes, or a token id and its two meanings.
    """
    if same_tokens(policy, reward) and policy.vocabulary <= reward.vocabulary:
        return
    hint = (
        "token-level guidance is impossible. Use a reward backbone with the policy's tokenizer; whole texts can still "
        "be ranked, judged and picked from (best-of-N), since each side reads them with its own tokenizer."
    )
    if policy.vocabulary != reward.vocabulary:
        raise ConfigError(
            f"the policy has {policy.vocabulary} tokens and the reward model {reward.vocabulary}: token ids do not "
            f"match, so {hint}"
        )
    own, other = policy.encoder.token_ids, reward.encoder.token_ids
    text, index = min((own.items() ^ other.items()), key=lambda item: (item[1], item[0]))
    raise ConfigError(
        f"token {index} ('{text}') of {policy.name} or {reward.name} means something else to the other, so {hint}"
    )
