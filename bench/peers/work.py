"""The work that all systems are given: the same logical requests, in the dialect of each."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

SEED = 5
MODEL = "bench"
MAX_TOKENS = 256
ALL = slice(None)
WORDS = (
    "what does this project do",
    "who is it for",
    "how is it installed",
    "and why would you use it",
)


@dataclass(frozen=True)
class Work:
    """`size` requests of about 600 bytes each, the same for the same size."""

    size: int

    def prompts(self) -> list[tuple[str, str]]:
        """Return pairs of custom id and prompt; the id is part of the prompt."""
        source = random.Random(SEED)
        ids = [f"doc-{number:06d}" for number in range(self.size)]
        return [(name, f"{name} " + " ".join(source.choices(WORDS, k=25))) for name in ids]

    def ids(self) -> set[str]:
        return {name for name, _ in self.prompts()}

    def messages(self, model: str = MODEL, part: slice = ALL) -> bytes:
        """Return a body for `POST /v1/messages/batches`, of all requests or a part."""
        requests = [
            {"custom_id": name, "params": _params(text, model)}
            for name, text in self.prompts()[part]
        ]
        return json.dumps({"requests": requests}, separators=(",", ":")).encode()

    def lines(self) -> bytes:
        """Return the same as a file for `POST /v1/batches` of the other dialect."""
        return b"".join(
            json.dumps(
                {
                    "custom_id": name,
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": _params(text),
                },
                separators=(",", ":"),
            ).encode()
            + b"\n"
            for name, text in self.prompts()
        )


def _params(text: str, model: str = MODEL) -> dict[str, object]:
    # These members mean the same in both dialects.
    return {
        "model": model,
        "max_tokens": MAX_TOKENS,
        "messages": [{"role": "user", "content": text}],
    }
