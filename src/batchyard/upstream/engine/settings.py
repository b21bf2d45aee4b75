"""The settings of an in-process engine: a URL such as `vllm:/models/llama?max_model_len=8192`."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from urllib.parse import parse_qsl, unquote

from batchyard.errors import ConfigError, shown

SCHEME = "vllm"
# A directory, or a name under which the engine finds a model: `organisation/model`.
_MODEL = re.compile(r"/[^?#]+|[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SLOTS_MAX = 100_000
_DTYPES = ("auto", "bfloat16", "float16", "float32", "half", "float")
_QUANTIZATION = re.compile(r"[a-z0-9_-]{1,40}")


def is_engine(url: str) -> bool:
    """Whether a URL names an in-process engine."""
    return url.startswith(f"{SCHEME}:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an engine is started with. None leaves a setting to the engine."""

    model: str
    """Directory of the model, or its name."""
    max_num_seqs: int
    """Requests that the engine works on at once, which is also how many it is given."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together."""
    tensor_parallel_size: int = 1
    """GPUs that the model is divided over."""
    gpu_memory_utilization: float | None = None
    """The part of a GPU's memory that the engine takes, above 0 and up to 1."""
    dtype: str | None = None
    quantization: str | None = None
    seed: int | None = None

    @classmethod
    def parse(cls, url: str, slots: int) -> Settings:
        """Read settings from a URL.

        Args:
            url: `vllm:MODEL?name=value&…`.
            slots: in place of `max_num_seqs`, where the URL has none.

        Raises:
            ConfigError: not such a URL, an unknown setting or a value that is not allowed.
        """
        where, _, query = url.removeprefix(f"{SCHEME}:").partition("?")
        model = unquote(where)
        if not is_engine(url) or not _MODEL.fullmatch(model):
            raise ConfigError(
                f"{shown(url)} does not name a model: write vllm:/path/to/model or "
                "vllm:organisation/model, with settings as in ?max_model_len=8192"
            )
        names = [field.name for field in fields(cls) if field.name != "model"]
        found: dict[str, str] = {}
        for name, text in parse_qsl(query, keep_blank_values=True):
            if name not in names:
                raise ConfigError(
                    f"{shown(name)} is not a setting of an in-process engine; there are "
                    f"{', '.join(names)}"
                )
            if name in found:
                raise ConfigError(f"{name} of the engine is given twice")
            found[name] = text
        return cls(
            model=model,
            max_num_seqs=_whole(found, "max_num_seqs", 1, _SLOTS_MAX) or slots,
            max_model_len=_whole(found, "max_model_len", 16, 2**31 - 1),
            tensor_parallel_size=_whole(found, "tensor_parallel_size", 1, 1_024) or 1,
            gpu_memory_utilization=_part(found, "gpu_memory_utilization"),
            dtype=_one_of(found, "dtype", _DTYPES),
            quantization=_name(found, "quantization"),
            seed=_whole(found, "seed", 0, 2**31 - 1),
        )


def _whole(found: dict[str, str], name: str, least: int, most: int) -> int | None:
    text = found.get(name)
    if text is None:
        return None
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else least - 1
    if not least <= number <= most:
        raise ConfigError(
            f"{name} of the engine: {shown(text)}: a whole number from {least} to {most} is allowed"
        )
    return number


def _part(found: dict[str, str], name: str) -> float | None:
    text = found.get(name)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number <= 1.0:  # refuses NaN too
        raise ConfigError(
            f"{name} of the engine: {shown(text)}: a number above 0 and up to 1 is allowed"
        )
    return number


def _one_of(found: dict[str, str], name: str, allowed: tuple[str, ...]) -> str | None:
    text = found.get(name)
    if text is not None and text not in allowed:
        raise ConfigError(f"{name} of the engine: {shown(text)}: {', '.join(allowed)} are allowed")
    return text


def _name(found: dict[str, str], name: str) -> str | None:
    text = found.get(name)
    if text is not None and not _QUANTIZATION.fullmatch(text):
        raise ConfigError(f"{name} of the engine: {shown(text)}: a name such as awq is allowed")
    return text
