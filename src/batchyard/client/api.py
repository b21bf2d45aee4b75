"""A thin, typed, blocking client of the Message Batches wire: one server, one key.

The create call is made exactly once, and its failure says whether a batch can exist. Everything
that only reads is repeated. Nothing here knows what a run is. This is the only module of the run
that touches the HTTP client.
"""

from __future__ import annotations

import os
import random
import threading
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from pyreqwest.client import SyncClient, SyncClientBuilder
from pyreqwest.exceptions import PyreqwestError

from batchyard import __version__, crash
from batchyard.client.answers import (
    Answer,
    ApiError,
    Batch,
    CreateUnknown,
    NotCreated,
    Page,
    Progress,
    TokenCount,
    Unreachable,
    Validation,
    created,
    decode,
    retry_after,
)
from batchyard.client.cache_report import CacheReport
from batchyard.client.planning.plan import API_VERSION
from batchyard.client.problems import InputError
from batchyard.client.running import durable
from batchyard.clock import SystemClock
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pyreqwest.response import SyncResponse

BASE_URL_DEFAULT = "https://api.anthropic.com"
YARD_HEADER = "batchyard-version"
CALL_TIMEOUT_S = 60.0
ASK_TIMEOUT_S = 20.0
CREATE_ANSWER_TIMEOUT_S = 600.0  # what the official clients wait
UPLOAD_BYTES_PER_S_MIN = 100_000
STALL_TIMEOUT_S = 300.0
ATTEMPTS = 4
_CHUNK = 256 * 1024
_FIRST_CHUNK, _LINE_BYTES_MAX = 16 * 1024, 64 * 1024 * 1024
_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.5, 8.0
_RETRY_AFTER_CAP_S = 60.0  # longer waits are the business of the caller, who can be interrupted
_RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504, 529})


class _FileBody:
    """A request body that is read from a file as it is sent, and counts what it handed out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size
        self.handed_out = 0

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                self.handed_out += len(chunk)
                yield chunk


class Api:
    """One server and one key.

    After any answer, `is_yard` tells whether the server is a batchyard (it then knows idempotency
    keys and progress), and `skew_us` is its clock minus ours, to about a second.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        betas: tuple[str, ...] = (),
        pause: Callable[[float], bool] | None = None,
        now_us: Callable[[], int] | None = None,
        locate: Callable[[], str] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            base_url: without `/v1`; default `ANTHROPIC_BASE_URL`, else the hosted API.
            api_key: default `ANTHROPIC_API_KEY`.
            betas: values of `anthropic-beta`, for create.
            pause: waits for seconds and returns True when waiting should end; default no wait is
                cut short.
            now_us: the wall time in microseconds since 1970.
            locate: returns the address of now, before each call; it may raise. For a server that
                can come back elsewhere.
            say: gets the reason when a call is repeated.

        Raises:
            InputError: the address is not an http(s) URL, or there is no key.
        """
        self._base_url = checked_url(base_url)
        self._locate = locate
        self._say = say or (lambda _: None)
        key = checked_key(api_key)
        self.is_yard = False
        self.skew_us: int | None = None
        self._betas = betas
        self._pause = pause or threading.Event().wait
        self._now_us = now_us or SystemClock().now_us
        self._client = _client(self._base_url, key, read_timeout_s=None)
        self._stream = _client(self._base_url, key, read_timeout_s=STALL_TIMEOUT_S)

    @property
    def base_url(self) -> str:
        """Return the address, without `/v1`, that the last call was made to."""
        return self._base_url

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
        self._stream.close()

    def create(self, body: Path, idempotency_key: str) -> Batch:
        """Create a batch from the exact bytes of a file, with one attempt.

        Raises:
            NotCreated: no batch was created.
            CreateUnknown: the whole body was sent, and no usable answer came.
        """
        upload = _FileBody(body)
        timeout = CREATE_ANSWER_TIMEOUT_S + upload.size / UPLOAD_BYTES_PER_S_MIN
        request = (
            self._client.post(self._address() + "/v1/messages/batches")
            .header("content-type", "application/json")
            .header("content-length", str(upload.size))
            .header("idempotency-key", idempotency_key)
            .timeout(timedelta(seconds=timeout))
        )
        if self._betas:
            request = request.header("anthropic-beta", ",".join(self._betas))
        try:
            answer = self._read(request.body_stream(upload).build().send())
        except PyreqwestError as error:
            reason = _reason(error)
            # The client's error classes do not tell the phase (a time-out of the answer is
            # reported as one of connecting). What was handed out does: the length was announced,
            # so a body that is not complete is not a request.
            if upload.handed_out < upload.size:
                raise NotCreated(f"{self.base_url}: {reason}", may_retry=True) from None
            raise CreateUnknown(f"{self.base_url}: {reason}") from None
        crash.point("create_answered")
        return created(answer)

    def retrieve(self, batch_id: str) -> tuple[Batch, float | None]:
        """Return a batch, and after how many seconds the server wants to be asked again.

        Raises:
            ApiError, Unreachable: after some repetitions.
        """
        answer = self._get(f"/v1/messages/batches/{quote(batch_id, safe='')}")
        return decode(answer.body, Batch), answer.retry_after_s

    def list_page(self, *, limit: int = 100, after_id: str | None = None) -> Page:
        """Return batches, newest first, after `after_id`.

        Raises:
            ApiError, Unreachable: after some repetitions.
        """
        query = f"?limit={limit}" + (f"&after_id={quote(after_id, safe='')}" if after_id else "")
        return decode(self._get(f"/v1/messages/batches{query}").body, Page)

    def count_tokens(self, body: bytes) -> int:
        """Return the input tokens of a request, given without its output limit; one attempt.

        Raises:
            ApiError, Unreachable: refused, or not answered in time.
        """
        return decode(self._asked("count_tokens", body), TokenCount).input_tokens

    def billing(self, body: bytes) -> str | None:
        """Return how a yard would charge the requests of a create body; None when not known.

        Nobody is asked who has not shown to be a yard: elsewhere the call does not exist. A yard
        that would refuse one of the requests does not tell either.

        Raises:
            ApiError, Unreachable: refused, or not answered in time; one attempt.
        """
        if not self.is_yard:
            return None
        found = decode(self._asked("batches/validate", body), Validation)
        return None if found.invalid else found.billing

    def cancel(self, batch_id: str) -> Batch:
        """Cancel a batch; repeated, since canceling twice is canceling once.

        Raises:
            ApiError, Unreachable: after some repetitions.
        """
        path = f"/v1/messages/batches/{quote(batch_id, safe='')}/cancel"
        return decode(self._repeated("POST", path).body, Batch)

    def delete(self, batch_id: str) -> None:
        """Delete an ended batch with its results.

        Raises:
            ApiError, Unreachable: after some repetitions; 404 also when an answer was lost.
        """
        self._repeated("DELETE", f"/v1/messages/batches/{quote(batch_id, safe='')}")

    def progress(self, batch_id: str) -> Progress | None:
        """Return live counts from a yard; None from any other server.

        Raises:
            ApiError, Unreachable: after some repetitions.
        """
        if not self.is_yard:
            return None
        try:
            answer = self._get(f"/v1/messages/batches/{quote(batch_id, safe='')}/progress")
        except ApiError as error:
            if error.http_status == 404:
                return None
            raise
        return decode(answer.body, Progress)

    def cache_report(self, batch_id: str) -> CacheReport:
        """Return what prompt caching has done for an ended batch; only a yard tells.

        Raises:
            ApiError, Unreachable: refused, or after some repetitions.
        """
        path = f"/v1/messages/batches/{quote(batch_id, safe='')}/cache"
        return decode(self._get(path).body, CacheReport)

    def download_results(self, batch_id: str, target: Path) -> int:
        """Write the results of an ended batch to `target`, whole or not at all; return the bytes.

        On return the file is durable, its name included.

        The address is made of our own base URL: a `results_url` never decides who gets the key.

        Raises:
            ApiError, Unreachable: refused, or cut; repeating is up to the caller.
        """
        path = f"/v1/messages/batches/{quote(batch_id, safe='')}/results"
        partial = target.with_name(target.name + ".partial")
        request = self._stream.get(self._address() + path).build_streamed()
        try:
            with request as response:
                self._note(response)
                if response.status != 200:
                    raise ApiError(self._answer(response))
                total = _save(response, partial)
        except PyreqwestError as error:
            raise Unreachable(f"{self.base_url}: {_reason(error)}") from None
        crash.point("results_before_rename")
        partial.replace(target)
        durable.sync_directory(target.parent)
        return total

    def first_result(self, batch_id: str) -> bytes | None:
        """Return the first line of the results of an ended batch, None when there is none.

        Raises:
            ApiError, Unreachable: refused, or cut.
        """
        path = f"/v1/messages/batches/{quote(batch_id, safe='')}/results"
        line = b""
        try:
            with self._stream.get(self._address() + path).build_streamed() as response:
                self._note(response)
                if response.status != 200:
                    raise ApiError(self._answer(response))
                while b"\n" not in line and len(line) < _LINE_BYTES_MAX:
                    chunk = response.body_reader.read(_FIRST_CHUNK)
                    if chunk is None:
                        break
                    line += chunk.to_bytes()
        except PyreqwestError as error:
            raise Unreachable(f"{self.base_url}: {_reason(error)}") from None
        return line.partition(b"\n")[0] or None

    def _address(self) -> str:
        if self._locate is not None:
            self._base_url = self._locate()
        return self._base_url

    def _asked(self, what: str, body: bytes) -> bytes:
        """Return the answer to a question that costs nothing; one attempt.

        Raises:
            ApiError, Unreachable: refused, or not answered in time.
        """
        request = (
            self._client.post(f"{self._address()}/v1/messages/{what}")
            .header("content-type", "application/json")
            .timeout(timedelta(seconds=ASK_TIMEOUT_S))
        )
        if self._betas:
            request = request.header("anthropic-beta", ",".join(self._betas))
        try:
            answer = self._read(request.body_bytes(body).build().send())
        except PyreqwestError as error:
            raise Unreachable(f"{self.base_url}: {_reason(error)}") from None
        if answer.status != 200:
            raise ApiError(answer)
        return answer.body

    def _get(self, path: str) -> Answer:
        return self._repeated("GET", path)

    def _repeated(self, method: str, path: str) -> Answer:
        """Make a call that may be made twice, until it is answered or the attempts are used up."""
        for attempt in range(ATTEMPTS):
            delay = min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2**attempt)
            delay *= random.uniform(0.75, 1.0)  # noqa: S311 - jitter, not a secret
            failure: ApiError | Unreachable
            try:
                answer = self._call(method, path)
            except PyreqwestError as error:
                failure = Unreachable(f"{self.base_url}: {_reason(error)}")
            else:
                if answer.status == 200:
                    return answer
                failure = ApiError(answer)
                retried = answer.status in _RETRIED
                if not (retried if answer.may_retry is None else answer.may_retry):
                    raise failure
                delay = max(delay, answer.retry_after_s or 0.0)
            if attempt + 1 == ATTEMPTS or delay > _RETRY_AFTER_CAP_S:
                raise failure
            self._say(failure.message)
            if self._pause(delay):
                raise failure
        raise AssertionError("the last attempt returns or raises")

    def _call(self, method: str, path: str) -> Answer:
        request = self._client.request(method, self._address() + path)
        request = request.timeout(timedelta(seconds=CALL_TIMEOUT_S))
        return self._read(request.build().send())

    def _read(self, response: SyncResponse) -> Answer:
        self._note(response)
        return self._answer(response)

    def _answer(self, response: SyncResponse) -> Answer:
        should = response.get_header("x-should-retry")
        return Answer(
            status=response.status,
            body=response.bytes().to_bytes(),
            retry_after_s=retry_after(
                response.get_header("retry-after-ms"),
                response.get_header("retry-after"),
                self._now_us(),
            ),
            may_retry=None if should not in {"true", "false"} else should == "true",
            request_id=response.get_header("request-id"),
        )

    def _note(self, response: SyncResponse) -> None:
        """Learn from the headers who the server is and what time it has."""
        # A proxy in front of a yard may answer in its place, so one sign is enough.
        self.is_yard = self.is_yard or response.get_header(YARD_HEADER) is not None
        date = response.get_header("date")
        if date:
            try:
                moment = parsedate_to_datetime(date)
            except ValueError:
                return
            if moment.tzinfo is not None:
                self.skew_us = int(moment.timestamp() * 1_000_000) - self._now_us()


def _client(base_url: str, key: str, *, read_timeout_s: float | None) -> SyncClient:
    builder = (
        SyncClientBuilder()
        .follow_redirects(enable=False)  # a redirect would carry the key to a host of its choice
        .referer(enable=False)
        .user_agent(f"batchyard/{__version__}")
        .connect_timeout(timedelta(seconds=10))
        .default_headers({"x-api-key": key, "anthropic-version": API_VERSION})
    )
    if read_timeout_s is not None:
        builder = builder.read_timeout(timedelta(seconds=read_timeout_s))
    if urlsplit(base_url).hostname in {"127.0.0.1", "::1", "localhost"}:
        builder = builder.no_proxy()
    return builder.build()


def checked_url(url: str | None) -> str:
    """Return the base URL to use: the given one, `ANTHROPIC_BASE_URL`, or the hosted API.

    Raises:
        InputError: it is not an http(s) address, or it holds a password.
    """
    url = (url or os.environ.get("ANTHROPIC_BASE_URL") or BASE_URL_DEFAULT).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
        raise InputError(f"the base URL {shown(url)} is not like https://api.anthropic.com")
    if parts.username or parts.password:
        raise InputError("the base URL holds a password; the key goes into ANTHROPIC_API_KEY")
    return url.removesuffix("/v1")


def checked_key(key: str | None = None) -> str:
    """Return the key to use: the given one, or `ANTHROPIC_API_KEY`.

    Raises:
        InputError: there is none.
    """
    key = key or os.environ.get("ANTHROPIC_API_KEY")
    if not key:
        raise InputError(
            "there is no API key: set ANTHROPIC_API_KEY (a yard without keys of its own takes "
            "any, such as ANTHROPIC_API_KEY=any), or use --local to run the requests through a "
            "server of your own"
        )
    return key


def _reason(error: PyreqwestError) -> str:
    """Return the innermost cause, which is the one that helps."""
    details = getattr(error, "details", None) or {}
    causes = details.get("causes") or []
    return str(causes[-1]["message"]) if causes else error.message


def _save(response: SyncResponse, path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    total = 0
    with durable.naming(path), os.fdopen(os.open(path, flags, 0o644), "wb") as file:
        reader = response.body_reader
        while (chunk := reader.read(_CHUNK)) is not None:
            data = chunk.to_bytes()
            file.write(data)
            total += len(data)
            crash.point("results_chunk")
        file.flush()
        os.fsync(file.fileno())
    return total
