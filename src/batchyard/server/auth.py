"""Who is asking: the credential of a request, and the workspace it may act in.

Both generations of clients are served: `Authorization: Bearer` and `x-api-key`. A key is compared
by its digest only, and appears in no message and no log.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from batchyard import limits
from batchyard.errors import InvalidRequest, Unauthenticated, shown

if TYPE_CHECKING:
    from starlette.requests import Request

DEFAULT_WORKSPACE = "wrkspc_default"

# Source: the API's versioning page.
VERSIONS = ("2023-01-01", "2023-06-01", "2026-10-21")

_BETA = re.compile(r"[A-Za-z0-9._:-]+")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
_WORKSPACE = re.compile(r"wrkspc_[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and in which dialect."""

    workspace: str
    credential: str
    """SHA-256 of the key, hexadecimal."""
    version: str
    betas: tuple[str, ...]
    user_profile: str | None = None


class KeyRing(Protocol):
    """Which keys there are."""

    def workspace_of(self, digest: str, asked: str | None) -> str | None:
        """Return the workspace that a key acts in, None when the key is unknown.

        Args:
            digest: SHA-256 of the key, hexadecimal.
            asked: the workspace that the request names, if any.

        Raises:
            NotFound: the key may not act in that workspace.
        """


class OpenKeyRing:
    """Any key opens any workspace, the default one unless another is named.

    Only for a yard that listens on loopback alone.
    """

    def workspace_of(self, digest: str, asked: str | None) -> str | None:
        """Return the workspace that was asked for, or the default one."""
        return asked or DEFAULT_WORKSPACE


def identify(request: Request, keys: KeyRing) -> Caller:
    """Check the head of a request, before its body is read.

    Raises:
        Unauthenticated: no key, or an unknown one.
        InvalidRequest: a bad version, beta or workspace header.
        NotFound: a workspace that is not the key's.
    """
    digest = hashlib.sha256(_credential(request).encode()).hexdigest()
    version, betas = _version(request), _betas(request)
    workspace = keys.workspace_of(digest, _workspace(request))
    if workspace is None:
        raise Unauthenticated
    return Caller(workspace, digest, version, betas, _user_profile(request))


def _workspace(request: Request) -> str | None:
    asked = request.headers.get("anthropic-workspace-id")
    if asked is not None and not _WORKSPACE.fullmatch(asked):
        raise InvalidRequest("anthropic-workspace-id header must be a valid workspace ID.")
    return asked


def _user_profile(request: Request) -> str | None:
    profile = request.headers.get("anthropic-user-profile-id")
    if profile is not None and not _TOKEN.fullmatch(profile):
        raise InvalidRequest("anthropic-user-profile-id header must be a valid user profile ID.")
    return profile


def _credential(request: Request) -> str:
    api_key = request.headers.get("x-api-key", "")
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip() if scheme.lower() == "bearer" else ""
    if api_key and token and api_key != token:
        raise Unauthenticated("x-api-key and Authorization hold different keys; send one of them")
    credential = token or api_key
    if not credential:
        raise Unauthenticated("x-api-key header is required")
    if len(credential) > limits.CREDENTIAL_CHARS_MAX:
        raise Unauthenticated
    return credential


def _version(request: Request) -> str:
    version = request.headers.get("anthropic-version")
    if version is None:
        raise InvalidRequest("anthropic-version: header is required")
    if version not in VERSIONS:
        raise InvalidRequest(
            f"anthropic-version: {shown(version)} is not a known version; "
            f"known are {', '.join(VERSIONS)}"
        )
    return version


def _betas(request: Request) -> tuple[str, ...]:
    """Return the beta values, each once, in order. Unknown ones are the upstream's business."""
    values = ",".join(request.headers.getlist("anthropic-beta")).split(",")
    betas = tuple(dict.fromkeys(value.strip() for value in values if value.strip()))
    if len(betas) > limits.BETA_VALUES_MAX:
        raise InvalidRequest(f"anthropic-beta: at most {limits.BETA_VALUES_MAX} values are allowed")
    for beta in betas:
        if len(beta) > limits.BETA_VALUE_CHARS_MAX or not _BETA.fullmatch(beta):
            raise InvalidRequest(
                f"Unexpected value(s) `{shown(beta)}` for the `anthropic-beta` header. Please "
                "consult our documentation at platform.claude.com/docs or try again without the "
                "header."
            )
    return betas
