"""Import: batches made elsewhere (a script, the console) become a run of their own.

Only results are known of such a batch, so its documents are its `custom_id`s. The journal says that
it was imported; everything that reads a run works on it, and nothing of it can be sent again,
unless the requests are given too. Safe to be killed at any point: the same call goes on.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from batchyard import crash, ids, limits, wire
from batchyard.client.answers import ApiError, Unreachable
from batchyard.client.problems import Detached, InputError, NeedsAttention
from batchyard.client.results import collect, receipt
from batchyard.client.results.outputs import Tree, output_names
from batchyard.client.running import durable, folder, journal, registry
from batchyard.client.running.folder import DocumentEntry, Files
from batchyard.client.running.journal import Phase
from batchyard.client.running.updates import backoff
from batchyard.errors import InvalidRequest, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from batchyard.client.answers import Batch
    from batchyard.client.api import Api
    from batchyard.client.results.receipt import Receipt
    from batchyard.client.running.journal import State
    from batchyard.clock import Clock

NAMES_FILE = "import.json"
SUFFIX = ".md"
DOWNLOADS_MAX = 3
INTERVAL_S, INTERVAL_MAX_S, INTERVAL_GROWTH = 2.0, 60.0, 1.25
YARD_INTERVAL_S, YARD_INTERVAL_MAX_S = 0.5, 5.0
_FINAL = frozenset({400, 401, 402, 403, 404})
_DIGEST_CHARS = 32  # of a SHA-256
_CREATE_BODY = re.compile(rb'\s*\{\s*"requests"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is imported.

    `names` are ids of batches and paths of files of results. `requests` is a file of what was sent:
    a create body, or a line for each request. `model` is the one whose price counts where an answer
    does not name one; by default that of the first answer.
    """

    out: Path
    names: tuple[str, ...]
    requests: Path | None = None
    model: str | None = None
    base_url: str | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """What is known of one batch beside its results."""

    batch: str
    counts: Mapping[str, int]
    billing: str | None
    assumed: bool


class _Message(msgspec.Struct, gc=False):
    model: str | None = None


class _Result(msgspec.Struct, gc=False):
    type: str
    message: _Message | None = None


class _Line(msgspec.Struct, gc=False):
    custom_id: str
    result: _Result


class _RequestLine(msgspec.Struct, gc=False):
    custom_id: str
    params: msgspec.Raw


_line = msgspec.json.Decoder(_Line)
_request_line = msgspec.json.Decoder(_RequestLine)


class Importer:
    """One import, from the server or from files into an output folder."""

    def __init__(
        self,
        wanted: Wanted,
        *,
        clock: Clock,
        pause: Callable[[float], bool],
        tell: Callable[[str], None],
        api_key: str | None = None,
    ) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            wanted: what is imported, and where to.
            clock: of the journal.
            pause: waits for seconds; returns True when the import is to be left.
            tell: gets what a person should know meanwhile.
            api_key: default `ANTHROPIC_API_KEY`.
        """
        self._wanted = wanted
        self._clock, self._pause, self._tell = clock, pause, tell
        self._api_key = api_key
        self._files = Files(wanted.out)
        self._api: Api | None = None

    def run(self) -> Receipt:
        """Import everything, and return the receipt; done before, it is only looked up.

        Raises:
            InputError: a name is neither a batch nor a file, a file is not what it has to be, or
                the folder holds another run.
            NeedsAttention: the server does not give the results.
            RunInUse: another process works on the folder.
            Detached: it was left on request.
        """
        requests = self._requests()
        keys = [_identity(name) for name in self._wanted.names]
        if len(set(keys)) != len(keys):
            raise InputError("a batch is named twice")
        for name in self._wanted.names:
            if not _is_batch(name):
                _check_results(Path(name))
            elif not self._files.state.exists():
                self._retrieved(self._connected(), name)  # or a folder is made for nothing
            else:
                self._connected()
        try:
            self._files.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self._wanted.out} cannot be used: {error.strerror}") from None
        with folder.Lock(self._wanted.out):
            try:
                return self._imported(keys, requests)
            finally:
                if self._api is not None:
                    self._api.close()

    def _imported(self, keys: Sequence[str], requests: Mapping[str, bytes] | None) -> Receipt:
        state = self._files.read_state()
        if state.run and not self._is_same(state, keys):
            raise InputError(
                f"{self._wanted.out} holds another run; an import needs a folder of its own: "
                "give another --out"
            )
        if state.config is not None and state.config.imported == "results" and requests is not None:
            folder.set_aside(self._files)  # it could not be repeated; with the requests it can
            state = journal.State()
            self._files.state.mkdir()
        if state.finished_us is not None:
            return receipt.refreshed(self._files, state)
        if not state.run:
            self._note(keys)
        parts = [self._part(index, name) for index, name in enumerate(self._wanted.names)]
        writer = folder.Journal(self._files, self._clock)
        try:
            if not writer.state.run:
                self._start(writer, parts, requests)
            registry.ensure(self._files.out, self._clock.now_us())
            return self._finish(writer, parts)
        finally:
            writer.close()

    def _is_same(self, state: State, keys: Sequence[str]) -> bool:
        if state.config is None or state.config.imported is None:
            return False
        path = self._files.state / NAMES_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[str]) == list(keys)
        except (OSError, msgspec.DecodeError):
            return False

    def _note(self, keys: Sequence[str]) -> None:
        """Note what is imported, so that results of another import are not taken for these."""
        path = self._files.state / NAMES_FILE
        encoded = wire.encode(list(keys))
        if not path.exists() or path.read_bytes() != encoded:
            for left in self._files.state.glob("results-*.jsonl"):
                left.unlink()
            crash.point("import_unnoted")
            durable.write(path, [encoded])

    # Getting

    def _part(self, index: int, name: str) -> _Part:
        """Bring the results of one batch here, and return what else is known of it."""
        target = self._files.results(index)
        if not _is_batch(name):
            source = Path(name)
            if not target.exists():
                with source.open("rb") as file:
                    durable.write(target, iter(lambda: file.read(limits.MIB), b""))
            return _Part(f"file:{source.name}", {}, receipt.BATCH, assumed=True)
        api = self._connected()
        batch = self._ended(api, name)
        billing: str | None = receipt.BATCH
        if api.is_yard:
            try:
                progress = api.progress(name)
            except (ApiError, Unreachable) as error:
                raise NeedsAttention(f"{name}: {error.message}") from None
            billing = None if progress is None else progress.billing
        total = batch.request_counts.total
        if not (target.exists() and collect.is_whole(target, total)):
            self._download(api, batch, target)
        counts = batch.request_counts
        return _Part(
            name,
            {
                "succeeded": counts.succeeded, "errored": counts.errored,
                "canceled": counts.canceled, "expired": counts.expired,
            },
            billing,
            assumed=not api.is_yard,
        )  # fmt: skip

    def _connected(self) -> Api:
        if self._api is None:
            from batchyard.client.api import Api  # noqa: PLC0415 - the HTTP client, when needed

            self._api = Api(
                self._wanted.base_url, self._api_key, pause=self._pause, now_us=self._clock.now_us
            )
        return self._api

    def _retrieved(self, api: Api, name: str) -> tuple[Batch, float | None]:
        """Return a batch as it stands, and when to look again."""
        try:
            return api.retrieve(name)
        except (ApiError, Unreachable) as error:
            # Who did not answer is named by the failure itself.
            where = f"{api.base_url}: " if isinstance(error, ApiError) else ""
            raise NeedsAttention(f"{where}{name}: {error.message}") from None

    def _ended(self, api: Api, name: str) -> Batch:
        """Return a batch that has ended; wait for it."""
        told, failures, interval = "", 0, 0.0
        while True:
            try:
                batch, wish = api.retrieve(name) if told else self._retrieved(api, name)
            except (ApiError, Unreachable) as error:
                if isinstance(error, ApiError) and error.http_status in _FINAL:
                    raise NeedsAttention(f"{api.base_url}: {name}: {error.message}") from None
                failures += 1
                self._tell(f"{name}: {error.message}")
                delay = backoff(failures)
            else:
                if batch.has_ended:
                    return batch
                first, cap = (
                    (YARD_INTERVAL_S, YARD_INTERVAL_MAX_S)
                    if api.is_yard
                    else (INTERVAL_S, INTERVAL_MAX_S)
                )
                counts, failures = batch.request_counts, 0
                text = f"{batch.processing_status}, {counts.done:,} of {counts.total:,} done"
                if not told:
                    self._tell(f"{name} has not ended: waiting; Ctrl-C leaves, nothing is lost")
                if text != told:
                    told = text
                    self._tell(f"{name}: {text}")
                interval = min(cap, interval * INTERVAL_GROWTH) or first
                delay = max(interval, wish or 0.0)
            if self._pause(delay):
                raise Detached("detached; the same command goes on")

    def _download(self, api: Api, batch: Batch, target: Path) -> None:
        why = ""
        for attempt in range(1, DOWNLOADS_MAX + 1):
            try:
                api.download_results(batch.id, target)
            except ApiError as error:
                raise NeedsAttention(
                    f"the results of {batch.id} are not available: {error.message}"
                ) from None
            except Unreachable as error:
                why = error.message
            else:
                if collect.is_whole(target, batch.request_counts.total):
                    return
                target.unlink()  # or it would be taken for whole when the count is not known
                why = "the results are not complete"
            if attempt < DOWNLOADS_MAX:
                self._tell(f"{batch.id}: downloading again: {why}")
                if self._pause(backoff(attempt)):
                    raise Detached("detached; the same command goes on")
        raise NeedsAttention(f"the results of {batch.id} do not come whole: {why}")

    # Writing

    def _requests(self) -> Mapping[str, bytes] | None:
        return None if self._wanted.requests is None else read_requests(self._wanted.requests)

    def _start(
        self,
        writer: folder.Journal,
        parts: Sequence[_Part],
        requests: Mapping[str, bytes] | None,
    ) -> None:
        """Put the documents on disk and begin the run with them."""
        files = self._files
        answered = [_custom_ids(files.results(index)) for index in range(len(parts))]
        if requests is not None:
            answered = _with_requests(answered, requests, self._wanted)
        shards = []
        for index, ids_ in enumerate(answered):
            size, digest = 0, ""
            if requests is not None:
                body = b'{"requests":[%b]}' % b",".join(
                    b'{"custom_id":"%b","params":%b}' % (each.encode(), requests[each])
                    for each in ids_
                )
                size, digest = len(body), hashlib.sha256(body).hexdigest()
                durable.write(files.requests(index), [body])
            shards.append(journal.PlannedShard(requests=len(ids_), bytes=size, sha256=digest))
        durable.write(files.documents, _entries(answered, self._wanted.names, requests))
        crash.point("import_unstarted")
        from batchyard.client.api import checked_url  # noqa: PLC0415 - the HTTP client

        config = journal.Config(
            model=self._wanted.model or self._model(len(parts), requests),
            max_tokens=0,
            prompt="",
            prompt_sha256="",
            shard_requests=limits.RUN_BATCH_REQUESTS_DEFAULT,
            base_url=checked_url(self._wanted.base_url),
            imported="results" if requests is None else "requests",
        )
        writer.record(
            journal.Started(
                run=ids.nonce(),
                config=config,
                shards=tuple(shards),
                format=journal.FORMAT,
                terms=journal.Terms(retries=0),  # what is sent, a person asks for
            )
        )
        crash.point("import_started")

    def _model(self, parts: int, requests: Mapping[str, bytes] | None) -> str:
        """Return the model of the first answer, or of the first request."""
        for index in range(parts):
            for line in _lines(self._files.results(index)):
                if line.result.message is not None and line.result.message.model:
                    return line.result.message.model
        for params in (requests or {}).values():
            return msgspec.json.decode(params, type=_Message).model or "unknown"
        return "unknown"

    def _finish(self, writer: folder.Journal, parts: Sequence[_Part]) -> Receipt:
        """Bring every shard to its end, from wherever the journal says."""
        if writer.state.terms.retries:  # begun by an earlier version
            writer.record(journal.Terms(retries=0))
        tree = Tree(self._files.out)
        for index, part in enumerate(parts):
            steps: dict[Phase, journal.Event] = {
                Phase.PLANNED: journal.Intent(shard=index, generation=0, key=""),
                Phase.INTENDED: journal.Created(shard=index, batch=part.batch),
                Phase.CREATED: journal.Ended(
                    shard=index, counts=dict(part.counts), billing=part.billing,
                    assumed=part.assumed,
                ),
                Phase.ENDED: journal.Downloaded(
                    shard=index, bytes=self._files.results(index).stat().st_size
                ),
            }  # fmt: skip
            while (phase := writer.state.shards[index].phase) in steps:
                writer.record(steps[phase])
            if phase is Phase.DOWNLOADED:
                self._collect(writer, tree, index)
        done = receipt.write(self._files, writer.state, self._clock.now_us())
        crash.point("import_unfinished")
        writer.record(journal.Finished())
        return done

    def _collect(self, writer: folder.Journal, tree: Tree, index: int) -> None:
        state = writer.state
        assert state.config is not None
        entries = {
            entry.custom_id: entry
            for entry in self._files.read_documents(len(state.shards))
            if entry.shard == index
        }
        summary = collect.collect(self._files, tree, index, entries, saved=lambda _: None)
        if summary.oddities:
            self._tell(f"{state.shards[index].batch}: {summary.oddities}")
        cost: int | None = 0
        for outcome in collect.read_outcomes(self._files, index):
            charge = receipt.charged(outcome, state.config.model, state.shards[index].billing)
            cost = None if cost is None or charge is None else cost + charge
        classes = {str(name): count for name, count in summary.classes.items()}
        crash.point("import_uncollected")
        writer.record(journal.Collected(shard=index, classes=classes, cost_micros=cost))


def read_requests(path: Path) -> dict[str, bytes]:
    """Return the parameters of each request of a file by custom id, as they stand there.

    Args:
        path: of a create body, or of a line for each request.

    Raises:
        InputError: it cannot be read, or is neither.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"--requests {path} cannot be read: {error.strerror}") from None
    try:
        return {entry.custom_id: bytes(entry.params) for entry in wire.split(data)}
    except InvalidRequest as error:
        if _CREATE_BODY.match(data):
            raise InputError(f"--requests {path}: {error.message}") from None
    found: dict[str, bytes] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            read = _request_line.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(
                f"--requests {path}:{number}: no request: {error}; a line is "
                '{"custom_id": …, "params": {…}}'
            ) from None
        if read.custom_id in found:
            raise InputError(f"--requests {path}:{number}: {shown(read.custom_id)} stands twice")
        found[read.custom_id] = bytes(read.params)
    return found


def _is_batch(name: str) -> bool:
    """Whether a name is the id of a batch; else it is a file that exists.

    Raises:
        InputError: it looks like a file, and there is none.
    """
    if Path(name).is_file():
        return False
    if "/" in name or Path(name).suffix:
        raise InputError(f"{shown(name)} is no file, and not the id of a batch (msgbatch_…)")
    return True


def _identity(name: str) -> str:
    return name if _is_batch(name) else str(Path(name).absolute())


def _lines(path: Path) -> Iterator[_Line]:
    """Yield the lines that can be read; `collect` counts and names the others."""
    with path.open("rb") as file:
        for line in file:
            try:
                yield _line.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue


def _check_results(path: Path) -> None:
    if next(_lines(path), None) is None:
        raise InputError(
            f"{path} holds no result; a line of it is "
            '{"custom_id": …, "result": {"type": "succeeded", …}}'
        )


def _custom_ids(path: Path) -> list[str]:
    return list(dict.fromkeys(line.custom_id for line in _lines(path)))


def _with_requests(
    answered: Sequence[Sequence[str]], requests: Mapping[str, bytes], wanted: Wanted
) -> list[list[str]]:
    """Return the ids of each batch in the order of the requests; those without a result first.

    Raises:
        InputError: a result has no request.
    """
    known = {each for ids_ in answered for each in ids_}
    foreign = sorted(known - requests.keys())
    if foreign:
        raise InputError(
            f"{len(foreign):,} results have no request in {wanted.requests}, the first is that of "
            f"{shown(foreign[0])}: is this what was sent?"
        )
    ordered = []
    for index, ids_ in enumerate(answered):
        mine = set(ids_)
        # A request without any result is a document all the same; nobody knows of which batch.
        ordered.append(
            [each for each in requests if each in mine or (index == 0 and each not in known)]
        )
    return ordered


def _entries(
    answered: Sequence[Sequence[str]], names: Sequence[str], requests: Mapping[str, bytes] | None
) -> Iterator[bytes]:
    """Yield the lines of the list of documents; an id of several batches has theirs before it."""
    uses = Counter(each for ids_ in answered for each in ids_)
    labels = [name if _is_batch(name) else Path(name).stem for name in names]
    if len(set(labels)) != len(labels):
        labels = [f"{number}-{label}" for number, label in enumerate(labels, 1)]
    places = [
        (index, each, each if uses[each] == 1 else f"{labels[index]}/{each}")
        for index, ids_ in enumerate(answered)
        for each in ids_
    ]
    outputs = output_names([(key, True) for _, _, key in places], SUFFIX)
    for (index, custom_id, key), output in zip(places, outputs, strict=True):
        digest = content = ""
        if requests is not None:
            content = hashlib.sha256(requests[custom_id]).hexdigest()
            digest = content[:_DIGEST_CHARS]
        entry = DocumentEntry(custom_id, key, content, output, index, digest)
        yield wire.encode(entry) + b"\n"
