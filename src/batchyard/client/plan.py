"""Everything that is decided before anything is sent: prompts, ids, shards, prices.

Pure: documents and templates in, a plan out. What is shown to a person is what is sent, byte for
byte.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchyard import limits, models, price, validate, wire
from batchyard.client import estimate
from batchyard.client.custom_ids import to_custom_id
from batchyard.client.outputs import output_names
from batchyard.client.problems import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from batchyard.client.documents import Document
    from batchyard.client.template import Template

API_VERSION = "2023-06-01"  # understood by the hosted API, by relays and by the yard
# The documents say "256 MB". A server may read that as 10^6, so the smaller reading is sent.
SHARD_BYTES_MAX = min(limits.BATCH_BODY_BYTES_MAX, 256_000_000)
OUTPUT_TOKENS_GUESS = 2_000
_OPEN, _CLOSE = b'{"requests":[', b"]}"
_PROBLEMS_SHOWN = 10  # different ones
_DOCUMENTS_SHOWN = 3  # of each


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all requests of a run share."""

    model: str
    max_tokens: int
    betas: tuple[str, ...] = ()
    shard_requests: int = limits.RUN_BATCH_REQUESTS_DEFAULT
    suffix: str = ".md"


@dataclass(frozen=True, slots=True)
class Request:
    """One document, ready to be sent."""

    custom_id: str
    key: str
    sha256: str
    output: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Shard:
    """The requests of one batch; `size` is the bytes of the create body."""

    index: int
    requests: Sequence[Request] = field(repr=False)
    size: int

    def body(self) -> Iterator[bytes]:
        """Yield the create body in pieces, always the same bytes."""
        yield _OPEN
        for number, request in enumerate(self.requests):
            yield b"," + request.body if number else request.body
        yield _CLOSE

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the body."""
        digest = hashlib.sha256()
        for piece in self.body():
            digest.update(piece)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Price:
    """Three prices in micro-dollars.

    All rest on an estimate of the input. `low` and `likely` guess the output; `ceiling` takes as
    much of it as is allowed, and the input with its spread. It bounds the cost of the output; an
    input that was estimated far too low can exceed it.
    """

    low: int
    likely: int
    ceiling: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a run: the input is an estimate, `output_ceiling` is a bound."""

    input: int
    output_low: int
    output_likely: int
    output_ceiling: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that could be submitted. `batch` and `synchronous` are None: price unknown.

    `empty` are the documents without any text, which are sent as they are. `skipped` counts, by
    ending, the files of a folder that are left out.
    """

    settings: Settings
    shards: Sequence[Shard]
    tokens: Tokens
    batch: Price | None
    synchronous: Price | None
    prompt_sha256: str
    system_sha256: str | None
    first_prompt: str = field(repr=False, default="")
    empty: Sequence[str] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        likely = None if self.batch is None else self.batch.likely
        return (
            f"<Plan model={self.settings.model!r} documents={self.documents} "
            f"shards={len(self.shards)} bytes={self.size} input_tokens={self.tokens.input} "
            f"batch_micros_likely={likely}>"
        )

    @property
    def documents(self) -> int:
        """Return how many documents the run has."""
        return sum(len(shard.requests) for shard in self.shards)

    @property
    def size(self) -> int:
        """Return the bytes of all create bodies together."""
        return sum(shard.size for shard in self.shards)


def make(
    documents: Sequence[Document],
    prompt: Template,
    system: Template | None,
    settings: Settings,
) -> Plan:
    """Render, validate, name and pack all documents.

    Raises:
        InputError: an option is out of range, a template fails, or a request would be refused.
    """
    _check_settings(settings)
    names = output_names([(doc.key, doc.is_row) for doc in documents], settings.suffix)
    requests: list[Request] = []
    problems: dict[str, list[str]] = {}
    sizes: Counter[int] = Counter()
    first_prompt = ""
    owners: dict[str, str] = {}
    for doc, output in zip(documents, names, strict=True):
        user = prompt.render(doc)
        instructions = system.render(doc) if system else None
        params = _params(user, instructions, settings)
        problem = _problem(params, user, settings)
        if problem:
            problems.setdefault(problem, []).append(doc.key)
            continue
        custom_id = to_custom_id(doc.key)
        if custom_id in owners:
            raise InputError(f"{doc.key} and {owners[custom_id]} have the same id {custom_id}")
        owners[custom_id] = doc.key
        body = b'{"custom_id":"%b","params":%b}' % (custom_id.encode(), params)
        requests.append(Request(custom_id, doc.key, doc.sha256, output, body))
        sizes[estimate.tokens(user + (instructions or ""), settings.model)] += 1
        first_prompt = first_prompt or user
    if problems:
        raise InputError(_listed(problems, len(documents)))
    return Plan(
        settings=settings,
        shards=pack(requests, settings.shard_requests),
        tokens=_tokens(sizes, settings),
        batch=_price(sizes, settings, "batch"),
        synchronous=_price(sizes, settings, "standard"),
        prompt_sha256=prompt.sha256,
        system_sha256=system.sha256 if system else None,
        first_prompt=first_prompt,
        empty=[doc.key for doc in documents if _is_empty(doc)],
    )


def pack(
    requests: Sequence[Request], requests_max: int, bytes_max: int = SHARD_BYTES_MAX
) -> list[Shard]:
    """Fill shards in order, by count and by exact bytes.

    Raises:
        InputError: one request alone is larger than `bytes_max`.
    """
    shards: list[Shard] = []
    batch: list[Request] = []
    size = len(_OPEN) + len(_CLOSE)
    for request in requests:
        added = len(request.body) + (1 if batch else 0)
        if batch and (len(batch) >= requests_max or size + added > bytes_max):
            shards.append(Shard(len(shards), batch, size))
            batch, size = [], len(_OPEN) + len(_CLOSE)
            added = len(request.body)
        if size + added > bytes_max:
            raise InputError(f"{request.key}: {len(request.body):,} bytes do not fit in one batch")
        batch.append(request)
        size += added
    if batch:
        shards.append(Shard(len(shards), batch, size))
    return shards


def _check_settings(settings: Settings) -> None:
    if not 1 <= settings.shard_requests <= limits.BATCH_REQUESTS_MAX:
        raise InputError(
            f"--shard-size is {settings.shard_requests}; 1 to {limits.BATCH_REQUESTS_MAX} requests "
            "fit in a batch"
        )
    if not settings.suffix.startswith(".") or len(settings.suffix) < 2 or "/" in settings.suffix:
        raise InputError(f"--suffix is {settings.suffix!r}; it looks like .md")


def _params(user: str, system: str | None, settings: Settings) -> bytes:
    params: dict[str, Any] = {"model": settings.model, "max_tokens": settings.max_tokens}
    if system is not None:
        params["system"] = system
    params["messages"] = [{"role": "user", "content": user}]
    try:
        return wire.encode(params)
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt holds a character that is not Unicode: {error}") from None


def _is_empty(document: Document) -> bool:
    text = document.fields.get("text")
    return isinstance(text, str) and not text.strip()


def closest_model(model_id: str) -> str | None:
    """Return the known model that an unknown `claude-` id was probably meant to be."""
    if models.find(model_id) is not None or not model_id.startswith("claude-"):
        return None
    usable = [each.id for each in models.table().models.values() if each.lifecycle != "retired"]
    closest = difflib.get_close_matches(model_id, usable, 1, 0.0)
    return closest[0] if closest else None


def _problem(params: bytes, user: str, settings: Settings) -> str | None:
    if not user.strip():
        return "the prompt is empty"
    if len(params) > limits.MESSAGE_BODY_BYTES_MAX:
        return (
            f"the request has {len(params):,} bytes; one request may have "
            f"{limits.MESSAGE_BODY_BYTES_MAX:,}"
        )
    problem = validate.check(params, version=API_VERSION, betas=settings.betas)
    if problem is None:
        return None
    text = f"{problem.type}: {problem.message}"
    model = models.find(settings.model)
    longer = models.EXTENDED_OUTPUT_BETA
    if model is None or not model.extended or longer in settings.betas:
        return text
    if settings.max_tokens > model.max_output:
        return f"{text} (up to {models.EXTENDED_OUTPUT_TOKENS} with --beta {longer})"
    return text


def _listed(problems: Mapping[str, Sequence[str]], documents: int) -> str:
    """Return what people read of problems and the documents that have them."""
    refused = sum(map(len, problems.values()))
    lines = [f"{refused} of {documents} requests would be refused; nothing was sent"]
    for text, keys in list(problems.items())[:_PROBLEMS_SHOWN]:
        more = len(keys) - _DOCUMENTS_SHOWN
        names = ", ".join(keys[:_DOCUMENTS_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
        lines.append(f"  {names}: {text}")
    if len(problems) > _PROBLEMS_SHOWN:
        left = sum(map(len, list(problems.values())[_PROBLEMS_SHOWN:]))
        lines.append(f"  … and {left:,} more with other problems")
    return "\n".join(lines)


def _tokens(sizes: Mapping[int, int], settings: Settings) -> Tokens:
    requests = sum(sizes.values())
    low, likely, ceiling = _outputs(settings)
    return Tokens(
        input=sum(size * count for size, count in sizes.items()),
        output_low=requests * low,
        output_likely=requests * likely,
        output_ceiling=requests * ceiling,
    )


def _outputs(settings: Settings) -> tuple[int, int, int]:
    """Return the output tokens of one request: few, likely, and as many as it may have."""
    likely = min(settings.max_tokens, OUTPUT_TOKENS_GUESS)
    return (likely + 1) // 2, likely, settings.max_tokens


def _price(sizes: Mapping[int, int], settings: Settings, tier: price.Tier) -> Price | None:
    """Price each request by itself, because a long prompt may have a price of its own.

    Args:
        sizes: how many requests there are of each number of input tokens.
        settings: of all requests.
        tier: the price list.
    """

    def cost(output: int, input_percent: int) -> int | None:
        total = 0
        for size, count in sizes.items():
            usage = price.Usage(input_tokens=-(-size * input_percent // 100), output_tokens=output)
            micros = price.cost_micros(settings.model, usage, tier)
            if micros is None:
                return None
            total += micros * count
        return total

    few, likely, most = _outputs(settings)
    spread = estimate.SPREAD_PERCENT
    prices = cost(few, 100 - spread), cost(likely, 100), cost(most, 100 + spread)
    if prices[0] is None or prices[1] is None or prices[2] is None:
        return None
    return Price(prices[0], prices[1], prices[2])


def describe_changes(
    before: Mapping[str, str], after: Mapping[str, str], *, limit: int = 3
) -> list[str]:
    """Return one line for each kind of difference between two maps of key to content hash."""
    kinds = {
        "new": sorted(after.keys() - before.keys()),
        "gone": sorted(before.keys() - after.keys()),
        "changed": sorted(k for k in after.keys() & before.keys() if after[k] != before[k]),
    }
    lines = []
    for kind, keys in kinds.items():
        if keys:
            some = ", ".join(keys[:limit]) + (", …" if len(keys) > limit else "")
            lines.append(f"{len(keys)} {kind} document{'s' if len(keys) > 1 else ''}: {some}")
    return lines
