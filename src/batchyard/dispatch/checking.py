"""Whether a request can run here: decided by the worker before a call, shown by a dry run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batchyard import limits, validate
from batchyard.errors import shown
from batchyard.validate import Problem

if TYPE_CHECKING:
    from batchyard.upstream import Upstream


class _Profile(msgspec.Struct, gc=False):
    user_profile_id: str | None = None


_profile = msgspec.json.Decoder(_Profile)


def check(
    params: bytes,
    upstream: Upstream | None,
    *,
    version: str,
    betas: tuple[str, ...],
    user_profile: str | None,
) -> Problem | None:
    """Return why a request gets an `errored` line without a call, or None.

    Args:
        params: the JSON object as the client sent it.
        upstream: of its model, None when no route takes it.
        version: `anthropic-version` of the create call.
        betas: `anthropic-beta` values of the create call.
        user_profile: `anthropic-user-profile-id` of the create call.
    """
    if len(params) > limits.MESSAGE_BODY_BYTES_MAX:
        most = limits.MESSAGE_BODY_BYTES_MAX // limits.MIB
        return Problem("invalid_request_error", f"Request exceeds the maximum size of {most} MB")
    # Most requests are text and nothing else: no URL and no profile can be in them.
    is_plain = validate.is_plain(params, version)
    problem = None if is_plain else validate.examine(params, version=version, betas=betas)
    if problem is not None:
        return problem
    if user_profile is not None and not is_plain and _other_profile(params, user_profile):
        return Problem(
            "invalid_request_error",
            "user_profile_id: conflicts with the anthropic-user-profile-id header of the batch",
        )
    if upstream is None:
        return Problem("not_found_error", f"model: {shown(validate.model_of(params))}")
    if not (is_plain or upstream.fetches_urls):
        path = validate.names_url(params)
        if path is not None:
            return Problem(
                "invalid_request_error",
                f"{path}: URLs are not passed on to this upstream; send the content itself, or set "
                "fetches_urls for the upstream",
            )
    return None


def _other_profile(params: bytes, profile: str) -> bool:
    """Whether `params`, which are valid, name another profile."""
    try:
        named = _profile.decode(params).user_profile_id
    except msgspec.ValidationError:  # not a string: the upstream's business
        return False
    return named not in {None, profile}
