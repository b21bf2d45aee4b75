"""A model inside the process: what the yard asks of an engine, and nothing of any engine.

An engine generates text for a conversation, many at a time, and batches them itself. `reading`
turns the params of a request into a conversation and how to sample, `answering` turns what comes
into a message, `adapter` makes an upstream of both, and `vllm` is the engine of that name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

Role = Literal["system", "user", "assistant"]
Finish = Literal["end_turn", "stop_sequence", "max_tokens", "model_context_window_exceeded"]


class EngineRefusedError(Exception):
    """The engine does not take this request, and never will. The text says why."""


class EngineFailedError(Exception):
    """This generation came to nothing; another one may do better. The text says why."""


class EngineDownError(Exception):
    """The engine does not work, or never began to. The text says why."""


class EngineAwayError(EngineDownError):
    """There was no engine that works when the request was to be given to it: it never was."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: Role
    text: str


class Prompt(NamedTuple):
    """A conversation, before any template: the system prompt is its first turn, if there is one."""

    turns: tuple[Turn, ...]

    @property
    def continues(self) -> bool:
        """Whether the answer goes on with the last turn, as the client has begun it."""
        return self.turns[-1].role == "assistant"


class Sampling(NamedTuple):
    """How the answer is chosen. None stands for no restriction."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    """JSON Schema that the answer must keep."""


class Piece(NamedTuple):
    """What was generated since the piece before."""

    text: str
    tokens: int
    prompt_tokens: int
    """Of the whole prompt, those read from a cache included; the same in each piece."""
    cached_tokens: int
    finish: Finish | None = None
    """Set in the last piece."""
    stop_sequence: str | None = None


class Engine(Protocol):
    """A model in this process."""

    async def start(self) -> None:
        """Load the model; may take minutes. Called again after `stop`.

        Raises:
            EngineDownError: it cannot be loaded.
        """

    def generate(
        self, name: str, prompt: Prompt, sampling: Sampling, *, in_pieces: bool
    ) -> AsyncGenerator[Piece, None]:
        """Yield an answer. Closing or canceling the generator ends the generation.

        Args:
            name: of the request, never used twice.
            prompt: the conversation.
            sampling: how the answer is chosen.
            in_pieces: whether pieces come as they are generated; otherwise one comes at the end,
                which costs less.

        Raises:
            EngineRefusedError: the request can never be answered: its prompt is too long, say.
            EngineFailedError: it failed, and the engine goes on.
            EngineAwayError: there is no engine, and nothing was generated.
            EngineDownError: the engine has died.
        """

    async def count(self, prompt: Prompt) -> int:
        """Return the tokens of a prompt, as the engine would see it.

        Raises:
            EngineRefusedError: the template does not take the conversation.
            EngineAwayError: there is no engine.
        """

    async def stop(self) -> None:
        """Let go of the model and its memory. Does nothing when there is none."""
