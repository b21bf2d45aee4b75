"""Everything that is decided before anything is sent: prompts, ids, shards, prices.

Pure but for a temporary file without a name: documents and templates in, a plan out. What is shown
to a person is what is sent, byte for byte.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from batchyard import limits, models, validate, wire
from batchyard.client.inputs.custom_ids import to_custom_id
from batchyard.client.inputs.params import checked, merged, override_of
from batchyard.client.planning import advice as advising
from batchyard.client.planning import caching, estimate, pricing, server_tools
from batchyard.client.planning.pricing import Basis, Measures, Price, Tokens
from batchyard.client.planning.spool import Spool, Spooled
from batchyard.client.problems import InputError
from batchyard.client.results.names import names_by
from batchyard.client.results.outputs import output_names
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from batchyard.client.inputs.documents import Document
    from batchyard.client.inputs.template import Outline, Template
    from batchyard.client.results.columns import Columns
    from batchyard.client.running.folder import DocumentEntry
    from batchyard.model import Billing

__all__ = [
    "API_VERSION", "Copy", "Plan", "Price", "Request", "Settings", "Shard", "Tokens",
    "closest_model", "make", "pack", "repriced", "request_of", "subset",
    "with_cache",
]  # fmt: skip

API_VERSION = "2023-06-01"  # understood by the hosted API, by relays and by the yard
# The documents say "256 MB". A server may read that as 10^6, so the smaller reading is sent.
SHARD_BYTES_MAX = min(limits.BATCH_BODY_BYTES_MAX, 256_000_000)
_OPEN, _CLOSE = b'{"requests":[', b"]}"
_PROBLEMS_SHOWN = 10  # different ones
_DOCUMENTS_SHOWN = 3  # of each
_TOLD_APART_MIN = 1_000  # requests in a shard from which on a few less cost nothing
_DIGEST_CHARS = 32  # of a SHA-256


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all requests of a run share.

    `params` are request parameters beside those that have a name here; `override` is the field of
    a row that holds parameters of its own; `cache` says whether a cache breakpoint is placed;
    `schema` is the JSON Schema of answers as it was given, `name` the template of report names.
    """

    model: str
    max_tokens: int
    betas: tuple[str, ...] = ()
    shard_requests: int = limits.RUN_BATCH_REQUESTS_DEFAULT
    suffix: str = ".md"
    params: Mapping[str, Any] = field(default_factory=dict)
    override: str | None = None
    cache: caching.Mode = "off"
    schema: Mapping[str, Any] | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """A document whose request is the same as that of another one, and is sent with it."""

    key: str
    sha256: str
    output: str


@dataclass(frozen=True, slots=True)
class Request:
    """One document, ready to be sent; `copies` are further ones that get the same answer.

    `digest` is of the rendered parameters, as they are before a cache breakpoint is placed.
    """

    custom_id: str
    key: str
    sha256: str
    output: str
    body: bytes | Spooled = field(repr=False)
    digest: str = ""
    copies: tuple[Copy, ...] = ()

    @property
    def params(self) -> bytes:
        """Return the parameters as they are sent."""
        return bytes(self.body)[len(_before_params(self.custom_id)) : -1]

    def documents(self) -> Iterator[Copy]:
        """Yield key, hash and output of every document of this request, its own first."""
        yield Copy(self.key, self.sha256, self.output)
        yield from self.copies


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
            body = bytes(request.body)
            yield b"," + body if number else body
        yield _CLOSE

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the body."""
        digest = hashlib.sha256()
        for piece in self.body():
            digest.update(piece)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that could be submitted. `batch` and `synchronous` are None: price unknown.

    `empty` are the documents without any text, which are sent as they are. `skipped` counts, by
    ending, the files of a folder that are left out. `notices` are what a person should know of how
    it was made. `billing` is how the server charges, None as long as it is not known. `unbounded`
    names the tools that the server runs as often as it likes: with one, the ceilings are without
    what it brings, and so no ceilings.
    """

    settings: Settings
    shards: Sequence[Shard]
    tokens: Tokens
    batch: Price | None
    synchronous: Price | None
    prompt_sha256: str
    system_sha256: str | None
    basis: Basis = field(repr=False)
    measures: Measures = field(repr=False)
    shared: caching.Shared = field(repr=False)
    outlines: Sequence[Outline] = field(repr=False, default=())
    breakpoint: caching.Breakpoint | None = None
    empty: Sequence[str] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    notices: Sequence[str] = ()
    columns: Columns | None = field(repr=False, default=None)
    billing: Billing | None = None
    unbounded: Sequence[str] = ()

    def __repr__(self) -> str:
        likely = None if self.batch is None else self.batch.likely
        return (
            f"<Plan model={self.settings.model!r} documents={self.documents} "
            f"shards={len(self.shards)} bytes={self.size} input_tokens={self.tokens.input} "
            f"batch_micros_likely={likely}>"
        )

    @property
    def requests(self) -> Sequence[Request]:
        """Return the requests of all shards."""
        return [request for shard in self.shards for request in shard.requests]

    @property
    def documents(self) -> int:
        """Return how many documents the run has, with those that share a request."""
        return sum(1 + len(request.copies) for request in self.requests)

    @property
    def size(self) -> int:
        """Return the bytes of all create bodies together."""
        return sum(shard.size for shard in self.shards)

    @property
    def advice(self) -> advising.Advice:
        """Return what prompt caching does or would do."""
        placed = None if self.breakpoint is None else self.breakpoint.ttl
        requests = min(self.shared.requests, len(self.measures))
        return advising.advise(
            self.shared, requests, self.settings.model, self.basis.weights, self.outlines, placed
        )


def make(
    documents: Sequence[Document],
    prompt: Template,
    system: Template | None,
    settings: Settings,
) -> Plan:
    """Render, validate, name and pack all documents; `with_cache` may follow.

    Raises:
        InputError: an option is out of range, a template fails, or a request would be refused.
    """
    _check_settings(settings)
    if settings.name is not None:
        names = names_by(settings.name, documents)
    else:
        names = output_names([(doc.key, doc.is_row) for doc in documents], settings.suffix)
    making = _Making(prompt, system, settings)
    for document, output in zip(documents, names, strict=True):
        making.add(document, output)
    if making.problems:
        raise InputError(_listed(making.problems, len(documents)))
    templates = [template for template in (system, prompt) if template is not None]
    outlines = [template.outline() for template in templates]
    basis = Basis(
        model=settings.model,
        weights=estimate.prior(settings.model),
        is_us=settings.params.get("inference_geo") == "us",
        searches=server_tools.searches_max(settings.params),
    )
    groups = making.measures.groups(basis)
    return Plan(
        settings=settings,
        shards=pack(making.finished(), settings.shard_requests),
        tokens=pricing.tokens(groups, basis),
        batch=pricing.cost(groups, basis, "batch"),
        synchronous=pricing.cost(groups, basis, "standard"),
        prompt_sha256=prompt.sha256,
        system_sha256=system.sha256 if system else None,
        basis=basis,
        measures=making.measures,
        shared=making.shared,
        outlines=outlines,
        empty=[doc.key for doc in documents if _is_empty(doc)],
        unbounded=list(making.unbounded),
        notices=[*_notices(documents, templates, settings), *map(_unknown, making.unknown)],
    )


def _notices(
    documents: Sequence[Document], templates: Sequence[Template], settings: Settings
) -> list[str]:
    """Return what is probably not meant."""
    differ = settings.override is not None or any(each.media is not None for each in documents)
    if differ or len(documents) == 1 or not all(each.is_constant for each in templates):
        return []
    return [
        "no template uses a document, such as {{ text }}: all get the answer to the same request"
    ]


def _unknown(name: str) -> str:
    """Say that a parameter is probably misspelled; no error, for other servers know more."""
    text = (
        f"{shown(name)} is not a known parameter; the hosted API refuses it unless a beta adds it"
    )
    closest = difflib.get_close_matches(name, sorted(validate.KNOWN_MEMBERS), 1)
    return f"{text}; the closest is {closest[0]}" if closest else text


class _Making:
    """The requests of a plan, one document after the other."""

    def __init__(self, prompt: Template, system: Template | None, settings: Settings) -> None:
        self._prompt, self._system, self._settings = prompt, system, settings
        self._spool = Spool()
        self._requests: list[Request] = []
        self._by_digest: dict[str, int] = {}
        self._copies: dict[int, list[Copy]] = {}
        self._owners: dict[str, str] = {}
        self._tools = _counted_tools(settings.params)
        self.problems: dict[str, list[str]] = {}
        self.unbounded: dict[str, None] = {}
        self.unknown: dict[str, None] = {}
        self.measures = Measures()
        self.shared = caching.Shared(settings.model)

    def add(self, document: Document, output: str) -> None:
        """Render and check one more document; a request that there is already is not made twice."""
        user = self._prompt.render(document)
        instructions = self._system.render(document) if self._system else None
        fields = _params(user, instructions, self._settings, document)
        params = _encoded(fields)
        problem = _problem(params, user, fields, self._settings)
        if problem:
            self.problems.setdefault(problem, []).append(document.key)
            return
        custom_id = to_custom_id(document.key)
        owner = self._owners.setdefault(custom_id, document.key)
        if owner != document.key:
            raise InputError(f"{document.key} and {owner} have the same id {custom_id}")
        digest = hashlib.sha256(params).hexdigest()[:_DIGEST_CHARS]
        first = self._by_digest.setdefault(digest, len(self._requests))
        if first < len(self._requests):
            copy = Copy(document.key, document.sha256, output)
            self._copies.setdefault(first, []).append(copy)
            return
        body = self._spool.add(_entry(custom_id, params))
        self._requests.append(
            Request(custom_id, document.key, document.sha256, output, body, digest)
        )
        self.unbounded.update(dict.fromkeys(server_tools.unbounded(fields)))
        self.unknown.update((name, None) for name in fields if name not in validate.KNOWN_MEMBERS)
        self.shared.add(fields)
        system_text = fields.get("system") or ""
        text = user + (system_text if isinstance(system_text, str) else "")
        counts = [a + b for a, b in zip(estimate.count(text), self._tools, strict=True)]
        counts[-1] += document.media.tokens if document.media is not None else 0
        self.measures.append(counts, fields["model"], fields["max_tokens"])

    def finished(self) -> list[Request]:
        """Return the requests with the documents that share them."""
        for index, copies in self._copies.items():
            self._requests[index] = replace(self._requests[index], copies=tuple(copies))
        return self._requests


def request_of(entries: Sequence[DocumentEntry], custom_id: str, body: bytes | Spooled) -> Request:
    """Return the request of documents that share one, from their entries and what is sent."""
    first, *others = entries
    copies = tuple(Copy(each.key, each.sha256, each.output) for each in others)
    return Request(custom_id, first.key, first.sha256, first.output, body, first.request, copies)


def with_cache(plan: Plan) -> Plan:
    """Return the plan with the cache breakpoint that its settings ask for, and its price."""
    mode, breakpoint_ = plan.settings.cache, None
    if mode != "off" and plan.breakpoint is None:
        advice = plan.advice
        if advice.prefix is not None and (mode != "auto" or advice.is_sensible):
            ttl = caching.TTL_OF_A_BATCH if mode == "auto" else mode
            breakpoint_ = caching.Breakpoint(advice.prefix, ttl)
    if breakpoint_ is None:
        return plan
    spool = Spool()
    requests = [_placed(request, breakpoint_, plan.settings, spool) for request in plan.requests]
    placed = replace(
        plan, shards=pack(requests, plan.settings.shard_requests), breakpoint=breakpoint_
    )
    return repriced(placed, plan.basis)


def repriced(plan: Plan, basis: Basis) -> Plan:
    """Return the plan with the tokens and prices that follow from `basis`."""
    if plan.breakpoint is not None:
        prefix = plan.advice.prefix
        cached = 0 if prefix is None else prefix.tokens
        minimum = plan.advice.minimum or 0
        ttl = plan.breakpoint.ttl if cached >= minimum else None
        basis = replace(basis, cached_tokens=cached, ttl=ttl)
    groups = plan.measures.groups(basis)
    return replace(
        plan,
        basis=basis,
        tokens=pricing.tokens(groups, basis),
        batch=pricing.cost(groups, basis, "batch"),
        synchronous=pricing.cost(groups, basis, "standard"),
    )


def subset(
    plan: Plan, keys: Collection[str], *, round_: int = 0, names: Mapping[str, str] | None = None
) -> Plan:
    """Return the plan of some of its documents: same requests, shards of their own, their price.

    Args:
        plan: of more documents.
        keys: of those to keep.
        round_: of the run, which is part of the ids of the requests.
        names: of the reports, where they are others than in the plan.
    """
    names = names or {}
    requests: list[Request] = []
    indexes: list[int] = []
    spool = Spool()
    for index, request in enumerate(plan.requests):
        kept = [
            replace(each, output=names.get(each.key, each.output))
            for each in request.documents()
            if each.key in keys
        ]
        if kept:
            requests.append(_carried_by(kept, request, round_, spool))
            indexes.append(index)
    some = replace(
        plan,
        shards=pack(requests, plan.settings.shard_requests),
        measures=plan.measures.chosen(indexes),
        empty=[key for key in plan.empty if key in keys],
    )
    return repriced(some, plan.basis)


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
    room = (requests_max, len(requests))
    for request in requests:
        added = len(request.body) + (1 if batch else 0)
        if batch and (len(batch) >= _at_most(len(shards), room) or size + added > bytes_max):
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


def _at_most(number: int, room: tuple[int, int]) -> int:
    """Return how many requests go into shard `number`.

    A batch whose create call was not answered is recognised by their number. So several large
    shards of one run have different ones, and none that other people would choose.
    """
    requests_max, requests = room
    if requests_max < _TOLD_APART_MIN or requests <= requests_max:
        return requests_max
    return requests_max - (3 + 7 * number) % (requests_max // 20)


def _check_settings(settings: Settings) -> None:
    if not 1 <= settings.shard_requests <= limits.BATCH_REQUESTS_MAX:
        raise InputError(
            f"--shard-size is {settings.shard_requests}; 1 to {limits.BATCH_REQUESTS_MAX} requests "
            "fit in a batch"
        )
    if not settings.suffix.startswith(".") or len(settings.suffix) < 2 or "/" in settings.suffix:
        raise InputError(f"--suffix is {settings.suffix!r}; it looks like .md")
    if settings.cache not in caching.MODES:
        raise InputError(f"--cache is {settings.cache!r}; it is {', '.join(caching.MODES)}")
    checked(settings.params)


def _params(
    user: str, system: str | None, settings: Settings, document: Document
) -> dict[str, Any]:
    """Return the parameters of one document, in the order in which they are sent."""
    params: dict[str, Any] = {"model": settings.model, "max_tokens": settings.max_tokens}
    params |= settings.params
    if system is not None:
        params["system"] = system
    if settings.override is not None:
        params = merged(params, override_of(document, settings.override))
    content: object = user
    if document.media is not None:
        text = [{"type": "text", "text": user}] if user.strip() else []
        content = [document.media.block(), *text]
    return {**params, "messages": [{"role": "user", "content": content}]}


def _encoded(params: Mapping[str, Any]) -> bytes:
    try:
        return wire.encode(params)
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt holds a character that is not Unicode: {error}") from None


def _before_params(custom_id: str) -> bytes:
    return b'{"custom_id":"%b","params":' % custom_id.encode()


def _entry(custom_id: str, params: bytes) -> bytes:
    return _before_params(custom_id) + params + b"}"


def _placed(request: Request, at: caching.Breakpoint, settings: Settings, spool: Spool) -> Request:
    """Return the request with a breakpoint, as it was when it does not begin like the others."""
    fields = caching.place(wire.decode(request.params), at)
    if fields is None:
        return request
    params = _encoded(fields)
    problem = validate.check(params, version=API_VERSION, betas=settings.betas)
    if problem is not None:
        raise InputError(f"{request.key}: with --cache {at.ttl}: {problem.type}: {problem.message}")
    return replace(request, body=spool.add(_entry(request.custom_id, params)))


def _carried_by(kept: Sequence[Copy], request: Request, round_: int, spool: Spool) -> Request:
    """Return the request of some of its documents; the first of them gives it its id."""
    first, *copies = kept
    custom_id = to_custom_id(first.key, round_)
    body = request.body
    if custom_id != request.custom_id:
        body = spool.add(_entry(custom_id, request.params))
    return Request(
        custom_id, first.key, first.sha256, first.output, body, request.digest, tuple(copies)
    )


def _counted_tools(params: Mapping[str, Any]) -> estimate.Counts:
    """Count the characters of what every request has beside its texts."""
    tools = [params[name] for name in ("tools", "output_config") if name in params]
    return estimate.count(wire.encode(tools).decode()) if tools else estimate.Counts()


def _is_empty(document: Document) -> bool:
    text = document.fields.get("text")
    return isinstance(text, str) and not text.strip() and document.media is None


def closest_model(model_id: str) -> str | None:
    """Return the known model that an unknown `claude-` id was probably meant to be."""
    if models.find(model_id) is not None or not model_id.startswith("claude-"):
        return None
    usable = [each.id for each in models.table().models.values() if each.lifecycle != "retired"]
    closest = difflib.get_close_matches(model_id, usable, 1, 0.0)
    return closest[0] if closest else None


def _problem(params: bytes, user: str, fields: Mapping[str, Any], settings: Settings) -> str | None:
    if not user.strip() and isinstance(fields["messages"][0]["content"], str):
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
    name, limit = fields.get("model"), fields.get("max_tokens")  # a row may take them away
    model = models.find(name) if isinstance(name, str) else None
    longer = models.EXTENDED_OUTPUT_BETA
    if model is None or not model.extended or longer in settings.betas:
        return text
    if isinstance(limit, int) and limit > model.max_output:
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
