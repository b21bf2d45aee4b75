"""Stand-in."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from vllm.engine.arg_utils import AsyncEngineArgs


class EngineDeadError(Exception):
    pass


class EngineGenerateError(Exception):
    pass


class Tokenizer:
    """Each word is a token; each turn begins with one that names its role."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.gate = threading.Event()
        self.held = threading.Event()
        self._ids: dict[str, int] = {}

    def encode(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self.words)
            self.words.append(word)
        return self._ids[word]

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        tokenize: bool,
        return_dict: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> list[int]:
        assert tokenize
        assert not return_dict
        if add_generation_prompt and continue_final_message:
            raise ValueError("both cannot be")
        words: list[str] = []
        for turn in conversation:
            if "untemplatable" in turn["content"]:
                raise ValueError("the template takes no such\nturn")
            if "slow" in turn["content"]:
                self.held.set()
                assert self.gate.wait(60)
            words += [f"<{turn['role']}>", *turn["content"].split()]
        if add_generation_prompt:
            words.append("<assistant>")
        return [self.encode(word) for word in words]


class AsyncLLM:
    """Answers as many at once as `max_num_seqs`; the others wait."""

    started: ClassVar[list[AsyncLLM]] = []

    def __init__(self, args: AsyncEngineArgs) -> None:
        if not Path(args.model).is_dir():
            raise OSError(f"{args.model} does not appear\nto be a model")
        self.args = args
        self.model_config = SimpleNamespace(max_model_len=args.max_model_len or 4_096)
        self.running = self.most = 0
        self.aborted: list[str] = []
        self.asked: dict[str, SamplingParams] = {}
        self.prompts: dict[str, str] = {}
        self.stopped = False
        self._dead = False
        self._tokenizer = Tokenizer()
        self._seen: list[list[int]] = []
        self._room: asyncio.Semaphore | None = None
        type(self).started.append(self)

    @classmethod
    def from_engine_args(cls, engine_args: AsyncEngineArgs) -> AsyncLLM:
        return cls(engine_args)

    @property
    def errored(self) -> bool:
        return self._dead

    async def get_tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def shutdown(self) -> None:
        self.stopped = True

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        assert request_id not in self.asked, "a request id was used twice"
        tokens = prompt["prompt_token_ids"]
        self.asked[request_id] = sampling_params
        self.prompts[request_id] = " ".join(self._tokenizer.words[token] for token in tokens)
        if self._room is None:
            self._room = asyncio.Semaphore(self.args.max_num_seqs or 256)
        try:
            async with self._room:
                self.running += 1
                self.most = max(self.most, self.running)
                try:
                    async for output in self._answer(request_id, tokens, sampling_params):
                        yield output
                finally:
                    self.running -= 1
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request_id)
            print(f"stand-in aborted {request_id}", file=sys.stderr, flush=True)
            raise

    async def _answer(
        self, name: str, tokens: list[int], params: SamplingParams
    ) -> AsyncGenerator[RequestOutput, None]:
        cached = self._cached(tokens)
        words = self._words(tokens)
        room = self.model_config.max_model_len - len(tokens)
        most = min(params.max_tokens or room, room)
        delta = params.output_kind is RequestOutputKind.DELTA
        found: list[str] = []
        for word in words:
            await asyncio.sleep(0)
            if self._dead or word == "die":
                self._dead = True
                raise EngineDeadError("EngineCore encountered an issue")
            if word == "fail":
                raise EngineGenerateError
            if word == "hang":
                yield self._output(name, tokens, cached, ["hang "])
                await asyncio.Event().wait()
            if word == "cut":
                yield self._output(name, tokens, cached, found)
                return
            if word.startswith("many:"):
                output = self._output(name, tokens, cached, found, "stop")
                output.outputs *= int(word.removeprefix("many:"))
                yield output
                return
            stop = next((s for s in params.stop or () if s in word), None)
            if word == "abort" or stop is not None:
                reason = "abort" if stop is None else "stop"
                yield self._output(name, tokens, cached, found, reason, stop)
                return
            found.append(f"{word} ")
            ends = len(found) == most
            if delta and not ends:
                yield self._output(name, tokens, cached, [f"{word} "])
            if ends:
                last = [f"{word} "] if delta else found
                yield self._output(name, tokens, cached, last, "length")
                return
        yield self._output(name, tokens, cached, [] if delta else found, "stop")

    def _output(
        self,
        name: str,
        tokens: list[int],
        cached: int,
        words: list[str],
        reason: str | None = None,
        stop: str | None = None,
    ) -> RequestOutput:
        ids = [self._tokenizer.encode(word) for word in words]
        completion = CompletionOutput(0, "".join(words), ids, reason, stop)
        return RequestOutput(name, tokens, [completion], reason is not None, cached)

    def _words(self, tokens: list[int]) -> list[str]:
        words = [self._tokenizer.words[token] for token in tokens]
        starts = [index for index, word in enumerate(words) if word.startswith("<")]
        if starts[-1] == len(words) - 1:  # where the answer is to begin
            starts.pop()
        last = words[starts[-1] + 1 :]
        last = last[: last.index("<assistant>")] if "<assistant>" in last else last
        found = []
        for word in last:
            name, _, number = word.partition(":")
            found += ["word"] * int(number) if name == "long" else [word]
        return found

    def _cached(self, tokens: list[int]) -> int:
        """Return how many tokens from the beginning have been seen before, in blocks of four."""
        best = 0
        for seen in self._seen:
            same = 0
            while same < min(len(seen), len(tokens)) and seen[same] == tokens[same]:
                same += 1
            best = max(best, same)
        self._seen.append(tokens)
        return best // 4 * 4
