"""Points about every call: credentials, versions, headers, ids, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard.probe import check
from batchyard.probe.check import NotRun, at, expect, ok, refused
from batchyard.probe.http import Connection
from batchyard.probe.points import Section, Source
from batchyard.probe.session import (
    BATCHES,
    NEW_VERSION,
    OLD_VERSION,
    is_plain_id,
    new_head,
    old_head,
    unknown_id,
)

if TYPE_CHECKING:
    from batchyard.probe.http import Exchange
    from batchyard.probe.session import Session

DOCUMENTED, OBSERVED, RECOMMENDED = Source.DOCUMENTED, Source.OBSERVED, Source.RECOMMENDED

CREDENTIALS = Section("1.1", "credentials and versions")
HEADERS = Section("1.2", "headers of answers")
ERRORS = Section("1.3", "errors and unknown paths")

_WRONG_KEY = "sk-ant-batchyard-probe-this-key-is-not-valid"
_BETA = "message-batches-2024-09-24"
_UNKNOWN_PATH = "/v1/batchyard-probe-unknown-path"
_QUERY = "?after_id=after_id&before_id=before_id&limit=1"


def _is_page(exchange: Exchange) -> None:
    expect(isinstance(at(ok(exchange), "data"), list), "a page with data", check.answer(exchange),
           exchange)  # fmt: skip


# Credentials and versions ------------------------------------------------------------------------


@CREDENTIALS.point("x-api-key with version 2023-06-01 is accepted", DOCUMENTED)
def _old_clients(probe: Session) -> None:
    _is_page(probe.send(probe.request("GET", head=old_head(probe.key))))


@CREDENTIALS.point("a Bearer key with version 2026-10-21 is accepted", DOCUMENTED)
def _new_clients(probe: Session) -> None:
    _is_page(probe.send(probe.request("GET", head=new_head(probe.key))))


@CREDENTIALS.point("x-api-key goes with version 2026-10-21 too", DOCUMENTED)
def _old_key_new_version(probe: Session) -> None:
    head = old_head(probe.key) | {"anthropic-version": NEW_VERSION}
    _is_page(probe.send(probe.request("GET", head=head)))


@CREDENTIALS.point("a Bearer key goes with version 2023-06-01 too", DOCUMENTED)
def _new_key_old_version(probe: Session) -> None:
    head = new_head(probe.key) | {"anthropic-version": OLD_VERSION}
    _is_page(probe.send(probe.request("GET", head=head)))


@CREDENTIALS.point("version 2023-01-01 is known", DOCUMENTED)
def _first_version(probe: Session) -> None:
    _is_page(probe.get(anthropic_version="2023-01-01"))


@CREDENTIALS.point("without a version header: 400, and the text says which is missing", OBSERVED)
def _no_version(probe: Session) -> None:
    refused(
        probe.get(anthropic_version=None),
        400, "invalid_request_error", "anthropic-version: header is required",
    )  # fmt: skip


@CREDENTIALS.point("an unknown version is refused: 400", RECOMMENDED)
def _unknown_version(probe: Session) -> None:
    refused(probe.get(anthropic_version="1999-12-31"), 400, "invalid_request_error")


@CREDENTIALS.point("without a key: 401 authentication_error", DOCUMENTED)
def _no_key(probe: Session) -> None:
    head = {"anthropic-version": OLD_VERSION}
    refused(probe.send(probe.request("GET", head=head)), 401, "authentication_error")


@CREDENTIALS.point("a wrong key: 401 authentication_error", DOCUMENTED)
def _wrong_key(probe: Session) -> None:
    exchange = probe.send(probe.request("GET", head=old_head(_WRONG_KEY)))
    _unless_open(probe, exchange)
    refused(exchange, 401, "authentication_error")


def _unless_open(probe: Session, wrong_key: Exchange) -> None:
    """Tell a server that asks nobody who he is from one that should.

    Raises:
        NotRun: it takes a wrong key, and is on this machine.
    """
    if wrong_key.status == 200 and probe.target.is_loopback:
        raise NotRun("this server takes any key on loopback")


@CREDENTIALS.point("?beta=true is ignored", DOCUMENTED)
def _beta_query(probe: Session) -> None:
    _is_page(probe.get(f"{BATCHES}?beta=true"))


@CREDENTIALS.point("a beta value may stand twice in its header", OBSERVED)
def _doubled_beta(probe: Session) -> None:
    _is_page(probe.get(f"{BATCHES}?beta=true", anthropic_beta=f"{_BETA},{_BETA}"))


@CREDENTIALS.point("the beta header may be repeated", DOCUMENTED)
def _repeated_beta(probe: Session) -> None:
    # A name in another case is another key here, and the same header on the wire.
    twice = {"anthropic-beta": _BETA, "Anthropic-Beta": _BETA}
    _is_page(probe.send(probe.request("GET", headers=dict(twice))))


@CREDENTIALS.point("a beta value that cannot be one: 400 with the known text", OBSERVED)
def _bad_beta(probe: Session) -> None:
    refused(
        probe.get(anthropic_beta="not a beta!"),
        400, "invalid_request_error", begins="Unexpected value(s) `not a beta!` for the",
    )  # fmt: skip


@CREDENTIALS.point("a malformed anthropic-workspace-id: 400 with the known text", DOCUMENTED)
def _bad_workspace(probe: Session) -> None:
    refused(
        probe.get(anthropic_workspace_id="not a workspace"),
        400, "invalid_request_error", "anthropic-workspace-id header must be a valid workspace ID.",
    )  # fmt: skip


@CREDENTIALS.point("an unknown workspace: 404 with the known text", DOCUMENTED)
def _unknown_workspace(probe: Session) -> None:
    name = unknown_id().replace("msgbatch_", "wrkspc_")
    exchange = probe.get(anthropic_workspace_id=name)
    if exchange.status == 200:
        _unless_open(probe, probe.send(probe.request("GET", head=old_head(_WRONG_KEY))))
    refused(exchange, 404, "not_found_error", f"Workspace `{name}` not found.")


@CREDENTIALS.point("Accept is not negotiated: never 406", OBSERVED)
def _accept(probe: Session) -> None:
    _is_page(probe.get(accept="application/binary"))


@CREDENTIALS.point("two calls go over one connection", RECOMMENDED)
def _keep_alive(probe: Session) -> None:
    with Connection(probe.target, probe.timeout_s) as connection:
        probe.send(probe.request("GET", f"{BATCHES}?limit=1"), connection)
        second = probe.send(probe.request("GET", f"{BATCHES}?limit=1"), connection)
        expect(connection.opened == 1, "the connection stays open",
               "closed after the first answer", second)  # fmt: skip


# Headers of answers ------------------------------------------------------------------------------


def _named(exchange: Exchange, name: str, begins: str = "") -> None:
    """Expect a header that is not empty and begins like this."""
    value = exchange.header(name)
    expect(value and value.startswith(begins), f"{name}: {begins}…",
           f"no {name}" if value is None else f"{name}: {value}", exchange)  # fmt: skip


@HEADERS.point("request-id: req_… on a success", DOCUMENTED)
def _request_id(probe: Session) -> None:
    _named(probe.get(), "request-id", "req_")


@HEADERS.point("request-id: req_… on an error", DOCUMENTED)
def _request_id_of_an_error(probe: Session) -> None:
    _named(probe.get(f"{BATCHES}/{unknown_id()}"), "request-id", "req_")


@HEADERS.point("every answer has a request-id of its own", DOCUMENTED)
def _request_ids_differ(probe: Session) -> None:
    first, second = probe.get(), probe.get()
    one, other = first.header("request-id"), second.header("request-id")
    if one is None or other is None:
        raise NotRun("there is no request-id")
    expect(one != other, "another request-id than the call before", other, second)


@HEADERS.point("anthropic-organization-id on an authenticated answer", OBSERVED)
def _organization(probe: Session) -> None:
    exchange = probe.get()
    _named(exchange, "anthropic-organization-id")


@HEADERS.point("anthropic-workspace-id on an authenticated answer", OBSERVED)
def _workspace(probe: Session) -> None:
    exchange = probe.get()
    _named(exchange, "anthropic-workspace-id")


@HEADERS.point("a success is application/json", OBSERVED)
def _json_success(probe: Session) -> None:
    exchange = probe.get()
    expect(exchange.media_type == "application/json", "content-type: application/json",
           exchange.media_type, exchange)  # fmt: skip


@HEADERS.point("an error is application/json", OBSERVED)
def _json_error(probe: Session) -> None:
    exchange = probe.get(f"{BATCHES}/{unknown_id()}")
    expect(exchange.media_type == "application/json", "content-type: application/json",
           exchange.media_type, exchange)  # fmt: skip


# Errors and unknown paths ------------------------------------------------------------------------


@ERRORS.point('an error is {"type":"error","error":{"type":…,"message":…}}', DOCUMENTED)
def _envelope(probe: Session) -> None:
    exchange = probe.get(f"{BATCHES}/{unknown_id()}")
    body = exchange.json()
    is_right = (
        at(body, "type") == "error"
        and isinstance(at(body, "error", "type"), str)
        and isinstance(at(body, "error", "message"), str)
    )
    expect(is_right, 'the envelope {"type":"error","error":{…},…}', exchange.body, exchange)


@ERRORS.point("request_id of an error equals its request-id header", DOCUMENTED)
def _envelope_request_id(probe: Session) -> None:
    exchange = probe.get(f"{BATCHES}/{unknown_id()}")
    header = exchange.header("request-id")
    if header is None:
        raise NotRun("there is no request-id header")
    expect(at(exchange.json(), "request_id") == header, f"request_id {header}",
           at(exchange.json(), "request_id"), exchange)  # fmt: skip


@ERRORS.point("an id may have any form: an unknown one is 404, not 400", DOCUMENTED)
def _opaque_ids(probe: Session) -> None:
    refused(probe.get(f"{BATCHES}/message_batch_id"), 404, "not_found_error")


@ERRORS.point("an id may be percent-encoded", DOCUMENTED)
def _encoded_id(probe: Session) -> None:
    batch, _ = probe.some_batch()
    known = batch.get("id")
    if not isinstance(known, str) or not is_plain_id(known):
        raise NotRun("the batch has no usable id")
    exchange = probe.get(f"{BATCHES}/%{ord(known[0]):02X}{known[1:]}")
    expect(at(ok(exchange), "id") == known, f"the batch {known}", check.answer(exchange), exchange)


@ERRORS.point("an id with odd characters is 404 in the envelope, never 5xx", RECOMMENDED)
def _odd_id(probe: Session) -> None:
    refused(probe.get(f"{BATCHES}/a%2Fb%00%C3%A9"), 404, "not_found_error")


@ERRORS.point("GET of an unknown path: 404 not_found_error", OBSERVED)
def _unknown_get(probe: Session) -> None:
    refused(probe.get(_UNKNOWN_PATH + _QUERY), 404, "not_found_error")


@ERRORS.point("POST to an unknown path: 404 not_found_error", OBSERVED)
def _unknown_post(probe: Session) -> None:
    refused(probe.post({}, _UNKNOWN_PATH), 404, "not_found_error")


@ERRORS.point("DELETE of an unknown path: 404 not_found_error", OBSERVED)
def _unknown_delete(probe: Session) -> None:
    refused(probe.send(probe.request("DELETE", _UNKNOWN_PATH)), 404, "not_found_error")


@ERRORS.point("a wrong method: 405 invalid_request_error", RECOMMENDED)
def _wrong_method(probe: Session) -> None:
    refused(probe.send(probe.request("PUT", body=b"{}")), 405, "invalid_request_error")


@ERRORS.point("a 405 names the methods in Allow", RECOMMENDED)
def _allow(probe: Session) -> None:
    exchange = probe.send(probe.request("PUT", body=b"{}"))
    if exchange.status != 405:
        raise NotRun("a wrong method is not answered with 405")
    allowed = {name.strip() for name in (exchange.header("allow") or "").split(",")}
    expect({"GET", "POST"} <= allowed, "allow: GET, POST", exchange.header("allow"), exchange)
