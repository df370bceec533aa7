"""A real HTTP server on this machine that speaks the chat-completions protocol, with answers a test decides."""

from __future__ import annotations

import json
import math
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Request = dict[str, Any]


class Reply(NamedTuple):
    """A status and a body; a string is sent as it is, anything else as JSON."""

    body: Any
    status: int = 200
    kind: str = "application/json"


class ChatServer(NamedTuple):
    """Where a server is, and the requests that it got so far."""

    base_url: str
    requests: list[Request]


@contextmanager
def chat_server(answer: Callable[[Request], Reply], models: Reply | None = None) -> Iterator[ChatServer]:
    """Serve POST /v1/chat/completions and /v1/completions, and GET /v1/models, until the block ends."""
    requests: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({**request, "path": self.path, "key": self.headers.get("Authorization")})
            self.send(answer(request))

        def do_GET(self) -> None:
            self.send(models or Reply({"error": {"message": "not found"}}, 404))

        def send(self, reply: Reply) -> None:
            payload = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
            try:
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.kind)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)
            except BrokenPipeError:
                pass  # the client gave up waiting, which is what a test of timeouts wants

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield ChatServer(f"http://127.0.0.1:{server.server_address[1]}/v1", requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(text: str, log_probs: dict[str, float] | None = None) -> Reply:
    """Return an answer of the protocol: a text, and the log-probabilities of first tokens where given."""
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
    }
    if log_probs is not None:
        rows = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in log_probs.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "bytes": None, "top_logprobs": rows}]}
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    return Reply(
        {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    )


def labels_reply(difference: float, mass: float = 0.9, labels: tuple[str, str] = ("First", "Second")) -> Reply:
    """Return an answer in which the labels differ by `difference` nats and have `mass` together."""
    first = mass / (1 + math.exp(-difference))
    second = mass / (1 + math.exp(difference))
    return completion(labels[0], {labels[0]: math.log(first), labels[1]: math.log(second), "I": math.log(1 - mass)})


class Asked(NamedTuple):
    """What a judge's prompt says, read back from its words."""

    persona: str
    examples: list[str]
    question: str
    first: str
    second: str


def read_judge_prompt(request: Request) -> Asked:
    """Take a judge's prompt apart."""
    text = request["messages"][-1]["content"]
    persona = re.search(r"What is known about the user: (.*)", text)
    *examples, last = re.split(r"(?:^|\n\n)Question: ", text)[1:]
    found = re.fullmatch(r"(.*)\nFirst: (.*)\nSecond: (.*)\n\nWhich answer does the user prefer, .*", last, re.DOTALL)
    assert found, text
    return Asked(persona.group(1) if persona else "", examples, *found.groups())
