"""Put the pieces of an answer together: a message, or the events of its stream. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchyard import ids, wire

if TYPE_CHECKING:
    from batchyard.upstream.engine import Finish, Piece


class Answer:
    """One answer that is being generated."""

    def __init__(self, model: str) -> None:
        """Begin with nothing.

        Args:
            model: as the client named it.
        """
        self._id = ids.mint("msg")
        self._model = model
        self._texts: list[str] = []
        self._tokens = 0
        self._last: Piece | None = None

    @property
    def finish(self) -> Finish | None:
        """Return why the answer ended; None while it has not."""
        return self._last.finish if self._last is not None else None

    def add(self, piece: Piece) -> None:
        """Take up the next piece."""
        if piece.text:
            self._texts.append(piece.text)
        self._tokens += piece.tokens
        self._last = piece

    def message(self) -> dict[str, Any]:
        """Return the message of an answer that has ended."""
        text = "".join(self._texts)
        return self._head() | {
            "content": [{"type": "text", "text": text}] if text else [],
            "stop_reason": self.finish,
            "stop_sequence": self._last.stop_sequence if self._last is not None else None,
            "usage": self._usage(self._tokens),
        }

    def begin(self) -> bytes:
        """Return the events that stand before the first text, when one piece is there."""
        start = self._head() | {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(0),
        }
        block = {"type": "text", "text": ""}
        return event("message_start", {"message": start}) + event(
            "content_block_start", {"index": 0, "content_block": block}
        )

    def end(self) -> bytes:
        """Return the events after the last text of an answer that has ended."""
        message = self.message()
        delta = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
        return (
            event("content_block_stop", {"index": 0})
            + event("message_delta", {"delta": delta, "usage": message["usage"]})
            + event("message_stop", {})
        )

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model}

    def _usage(self, output_tokens: int) -> dict[str, Any]:
        """Return the counts. What is read from a cache is not input.

        Source: the API's page on prompt caching.
        """
        prompt, cached = 0, 0
        if self._last is not None:
            prompt, cached = self._last.prompt_tokens, self._last.cached_tokens
        return {
            "input_tokens": prompt - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": output_tokens,
            "service_tier": "standard",
        }


def text_event(piece: Piece) -> bytes:
    """Return the event of one piece; nothing when it has no text."""
    if not piece.text:
        return b""
    delta = {"type": "text_delta", "text": piece.text}
    return event("content_block_delta", {"index": 0, "delta": delta})


def event(name: str, fields: dict[str, Any]) -> bytes:
    """Return one server-sent event, blank line included."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), wire.encode({"type": name} | fields))


def error_body(error_type: str, message: str, request_id: str) -> bytes:
    """Return the body of an error reply."""
    return wire.encode(
        {
            "type": "error",
            "error": {"type": error_type, "message": message},
            "request_id": request_id,
        }
    )
