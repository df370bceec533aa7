"""A server of the completions protocol with vLLM's additions: a tiny network behind it, one obvious pass a token."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from chat_server import ChatServer, Reply, Request, chat_server
from peers.slow_decoding import next_log_probs
from rewardgap.core.records import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rewardgap.backbones.chat import ChatEncoder
    from rewardgap.backbones.hf import Backbone

MODEL = "tiny-served"
SAMPLING = {
    "n", "seed", "max_tokens", "min_tokens", "stop_token_ids", "temperature", "top_k", "top_p", "min_p",
    "presence_penalty", "frequency_penalty", "repetition_penalty",
}  # fmt: skip
CONTEXT = 256


def bad(message: str, status: int = 400) -> Reply:
    return Reply({"error": {"message": message}}, status)


class TinyServer:
    """Answers requests as `vllm serve` is documented to.

    Args:
        model: the network.
        encoder: its tokenizer; the template of the chat route.
        eos: the end token that the server knows by itself.
    """

    def __init__(self, model: Any, encoder: ChatEncoder, eos: int) -> None:
        self.model, self.encoder, self.eos = model, encoder, eos

    def __call__(self, request: Request) -> Reply:
        unknown = set(request) - SAMPLING - {"model", "prompt", "messages", "return_token_ids", "prompt_logprobs"}
        if unknown or request["model"] != MODEL:
            return bad(f"unknown: {sorted(unknown) or request['model']}")
        # What is left out would come from the model's generation_config.json.
        if SAMPLING - set(request):
            return bad(f"left out: {sorted(SAMPLING - set(request))}")
        chat = "messages" in request
        prompt = request.get("prompt")
        if chat:
            turns = tuple(Message(turn["role"], turn["content"]) for turn in request["messages"])
            prompt = list(self.encoder.encode_prompt(turns))
        if len(prompt) + request["max_tokens"] > CONTEXT:
            return bad(f"this model's maximum context length is {CONTEXT} tokens")
        ids, reason, stop = self.write(prompt, request)
        choice = {
            "index": 0, "finish_reason": reason, "stop_reason": stop, "token_ids": ids, "logprobs": None,
            "prompt_logprobs": self.read(prompt, request["prompt_logprobs"]) if "prompt_logprobs" in request else None,
        }  # fmt: skip
        text = self.encoder.decode(ids)
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        body = {"id": "x", "object": "text_completion", "created": 0, "model": MODEL, "choices": [choice]}
        (body if chat else choice)["prompt_token_ids"] = prompt
        body["usage"] = {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(ids),
            "total_tokens": len(prompt) + len(ids),
        }
        return Reply(body)

    def write(self, prompt: list[int], request: Request) -> tuple[list[int], str, int | None]:
        draw = np.random.Generator(np.random.PCG64(request["seed"]))
        closers = {self.eos, *request["stop_token_ids"]}
        ids: list[int] = []
        while len(ids) < request["max_tokens"]:
            log_probs = np.array(next_log_probs(self.model, prompt + ids))
            if len(ids) < request["min_tokens"]:
                log_probs[sorted(closers)] = -np.inf
            token = int(log_probs.argmax())
            if request["temperature"] > 0:
                order = np.argsort(-log_probs, kind="stable")
                # As the local sampler walks: candidates best first, the whole vocabulary by id.
                order = order[: request["top_k"]] if request["top_k"] > 0 else np.sort(order)
                share = np.exp((log_probs[order] - log_probs.max()) / request["temperature"])
                if request["top_p"] < 1:
                    best = np.argsort(-log_probs[order], kind="stable")
                    before = share[best].cumsum() - share[best]
                    share[best[before >= request["top_p"] * share.sum()]] = 0.0
                mass = share.cumsum()
                token = int(order[np.searchsorted(mass, draw.random() * mass[-1], side="right")])
            ids.append(token)
            if token in closers:
                return ids, "stop", None if token == self.eos else token
        return ids, "length", None

    def read(self, prompt: list[int], top: int) -> list[Any]:
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0].double()
        rows: list[Any] = [None]
        for token, row in zip(prompt[1:], torch.log_softmax(logits, -1).numpy(), strict=False):
            wanted = [token, *np.argsort(-row, kind="stable")[:top].tolist()]
            rows.append({
                str(t): {"logprob": max(float(row[t]), -9999.0), "rank": int((row >= row[t]).sum()), "decoded_token": "?"}
                for t in wanted
            })  # fmt: skip
        return rows


def models_reply(name: str = MODEL, **facts: Any) -> Reply:
    card = {"id": name, "object": "model", "created": 0, "owned_by": "vllm", "root": "/somewhere/tiny"}
    return Reply({"object": "list", "data": [card | {"max_model_len": CONTEXT} | facts]})


@contextmanager
def model_server(
    backbone: Backbone,
    *,
    eos: int | None = None,
    wrap: Callable[[TinyServer, Request], Reply] | None = None,
    models: Reply | None = None,
) -> Iterator[ChatServer]:
    """Serve a backbone's network until the block ends; `wrap` may change or replace its answers."""
    tiny = TinyServer(backbone.model, backbone.encoder, backbone.encoder.end_id if eos is None else eos)
    answer = tiny if wrap is None else lambda request: wrap(tiny, request)
    with chat_server(answer, models_reply() if models is None else models) as server:
        yield server
