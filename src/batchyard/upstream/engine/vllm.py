"""vLLM inside the process: its asynchronous engine behind the interface of `engine`.

The engine has a process of its own for the model; what runs here is the tokenizer, the chat
template, and a queue for each request. Source: `AsyncLLM`, `SamplingParams` and `RequestOutput` of
vLLM, releases 0.11 and later. Nothing of vLLM is imported before `start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from batchyard.errors import ConfigError
from batchyard.upstream.engine import (
    EngineAwayError,
    EngineDownError,
    EngineFailedError,
    EngineRefusedError,
    Piece,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from batchyard.upstream.engine import Finish, Prompt, Sampling
    from batchyard.upstream.engine.settings import Settings


class VllmEngine:
    """One model on the GPUs that this process sees."""

    def __init__(self, settings: Settings) -> None:
        """Describe the engine.

        Args:
            settings: what it is started with.

        Raises:
            ConfigError: vLLM is not installed.
        """
        try:
            importlib.import_module("vllm")
        except ImportError as error:
            raise ConfigError(
                f"an in-process engine needs the extra: pip install 'batchyard[vllm]' ({error})"
            ) from None
        self._settings = settings
        self._loading: asyncio.Future[Any] | None = None
        self._ending: asyncio.Future[None] | None = None
        self._llm: Any = None
        self._tokenizer: Any = None
        self._length_max = 0
        # Tokenizers are not made for several threads at once.
        self._templates = ThreadPoolExecutor(1, thread_name_prefix="template")

    async def start(self) -> None:
        """Load the model; see the protocol."""
        try:
            # Minutes, in which leases must be renewed: not on the event loop.
            self._loading = asyncio.ensure_future(asyncio.to_thread(_load, self._settings))
            self._llm = await asyncio.shield(self._loading)
            tokenizer = self._llm.get_tokenizer()
            if inspect.isawaitable(tokenizer):  # as it was in earlier releases
                tokenizer = await tokenizer
            self._length_max = int(self._llm.model_config.max_model_len)
        except Exception as error:
            await self.stop()
            text = " ".join(str(error).split()) or type(error).__name__
            raise EngineDownError(f"cannot load {self._settings.model}: {text}") from error
        self._tokenizer = tokenizer

    async def generate(
        self, name: str, prompt: Prompt, sampling: Sampling, *, in_pieces: bool
    ) -> AsyncGenerator[Piece, None]:
        """Yield an answer; see the protocol."""
        llm, tokens = self._llm, await self._tokens(prompt)
        while llm is not self._llm:  # it was stopped, or started again, while the template worked
            llm, tokens = self._llm, await self._tokens(prompt)
        if getattr(llm, "errored", False):
            raise EngineAwayError("it died before the request was given to it")
        if len(tokens) >= self._length_max:
            raise EngineRefusedError(
                f"prompt is too long: {len(tokens)} tokens > {self._length_max - 1} maximum"
            )
        try:
            params = _sampling(sampling, in_pieces=in_pieces)
            # Closing the generator is how vLLM is told that nobody wants the rest.
            generation = llm.generate({"prompt_token_ids": tokens}, params, name)
            async with aclosing(generation) as outputs:
                async for output in outputs:
                    yield _piece(output, len(tokens), sampling, self._length_max)
        except ValueError as error:  # what is wrong with a request
            raise EngineRefusedError(str(error)) from error
        except EngineFailedError:
            raise
        except Exception as error:
            text = str(error) or type(error).__name__
            if getattr(llm, "errored", True):
                raise EngineDownError(text) from error
            raise EngineFailedError(f"the engine failed: {text}") from error

    async def count(self, prompt: Prompt) -> int:
        """Return the tokens of a prompt."""
        return len(await self._tokens(prompt))

    async def stop(self) -> None:
        """Let go of the model and its memory."""
        loading, self._loading = self._loading, None
        self._llm = self._tokenizer = None
        if loading is not None:
            self._ending = asyncio.ensure_future(_end(loading))
        if self._ending is not None:
            # Who waits may be canceled; the model goes all the same, and the next call waits on.
            await asyncio.shield(self._ending)

    async def _tokens(self, prompt: Prompt) -> list[int]:
        """Return the prompt by the model's own template.

        Raises:
            EngineRefusedError: the template does not take it.
            EngineAwayError: there is no engine.
        """
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise EngineAwayError("it was stopped")
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._templates, _template, tokenizer, prompt)
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise EngineRefusedError(f"the chat template of the model: {text}") from error


def _load(settings: Settings) -> Any:
    """Return the engine of vLLM, its model loaded. Blocks for as long as that takes."""
    arguments = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs
    engine = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM
    optional = {
        "max_model_len": settings.max_model_len,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "dtype": settings.dtype,
        "quantization": settings.quantization,
        "seed": settings.seed,
    }
    chosen = arguments(
        model=settings.model,
        max_num_seqs=settings.max_num_seqs,
        tensor_parallel_size=settings.tensor_parallel_size,
        enable_prefix_caching=True,  # requests come ordered by the prefix that they share
        **{name: value for name, value in optional.items() if value is not None},
    )
    return engine.from_engine_args(chosen)


async def _end(loading: asyncio.Future[Any]) -> None:
    with contextlib.suppress(Exception):  # it did not load, or is dead already
        llm = await loading
        await asyncio.to_thread(llm.shutdown)


def _template(tokenizer: Any, prompt: Prompt) -> list[int]:
    turns = [{"role": turn.role, "content": turn.text} for turn in prompt.turns]
    found = tokenizer.apply_chat_template(
        turns,
        tokenize=True,
        return_dict=False,  # the default differs between releases of transformers
        add_generation_prompt=not prompt.continues,
        continue_final_message=prompt.continues,
    )
    return list(found)


def _sampling(sampling: Sampling, *, in_pieces: bool) -> Any:
    vllm = importlib.import_module("vllm.sampling_params")
    optional: dict[str, Any] = {"top_p": sampling.top_p, "top_k": sampling.top_k}
    if sampling.schema is not None:
        optional["structured_outputs"] = vllm.StructuredOutputsParams(json=sampling.schema)
    return vllm.SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        stop=list(sampling.stop_sequences) or None,
        output_kind=vllm.RequestOutputKind.DELTA
        if in_pieces
        else vllm.RequestOutputKind.FINAL_ONLY,
        **{name: value for name, value in optional.items() if value is not None},
    )


def _piece(output: Any, prompt_tokens: int, sampling: Sampling, length_max: int) -> Piece:
    """Return what an output of vLLM says.

    Raises:
        EngineFailedError: the engine gave the request up, or its output is none.
    """
    if len(output.outputs) != 1:
        raise EngineFailedError(f"the engine gave {len(output.outputs)} completions, not one")
    completion = output.outputs[0]
    finish: Finish | None = None
    stop = completion.stop_reason if isinstance(completion.stop_reason, str) else None
    match completion.finish_reason:
        case None:
            pass
        case "stop":
            finish = "end_turn" if stop is None else "stop_sequence"
        case "length":
            room = length_max - prompt_tokens
            full = sampling.max_tokens > room
            finish = "model_context_window_exceeded" if full else "max_tokens"
        case reason:
            raise EngineFailedError(f"the engine gave the request up ({reason})")
    return Piece(
        completion.text,
        len(completion.token_ids),
        prompt_tokens,
        min(output.num_cached_tokens or 0, prompt_tokens),
        finish,
        stop,
    )
