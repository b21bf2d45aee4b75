"""Tell somebody that a run has ended: a command of the user's, a POST to an address of theirs.

A notice that fails never changes how the run ended. No shell reads what a document or a server
wrote: the command is split once, and everything about the run comes in its environment.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from batchyard.client.problems import InputError
from batchyard.client.results.outputs import RECEIPT_FILE
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

COMMAND_TIMEOUT_S = 60.0
POST_TIMEOUT_S, POST_ATTEMPTS, POST_PAUSE_S = 10.0, 3, 2.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_SECRETS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")


def checked_command(text: str) -> list[str]:
    """Return the words of a command line.

    Raises:
        InputError: it is empty, or a quote is not closed.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"--notify {shown(text)}: {error}") from None
    if not words:
        raise InputError("--notify is empty; it is a command such as 'notify-send done'")
    return words


def checked_url(url: str) -> str:
    """Return the address.

    Raises:
        InputError: it is not an http(s) address.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InputError(f"--webhook is {shown(url)}; it is like https://example.org/done")
    return url


def run_command(
    words: Sequence[str], out: Path, state: str, *, has_receipt: bool = True
) -> str | None:
    """Run the command; return what went wrong, None when nothing did.

    Its environment has `BATCHYARD_STATE` (finished, attention, budget, billing), `BATCHYARD_OUT`
    and `BATCHYARD_RECEIPT`, and not the API key; its output is not shown.

    Args:
        words: the command and its arguments.
        out: the output folder of the run.
        state: how the run stands.
        has_receipt: whether there is a receipt of that; the variable is empty without one.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    environment |= {
        "BATCHYARD_STATE": state,
        "BATCHYARD_OUT": str(out.resolve()),
        "BATCHYARD_RECEIPT": str(out.resolve() / RECEIPT_FILE) if has_receipt else "",
    }
    try:
        done = subprocess.run(  # noqa: S603 - the user's own command, without a shell
            list(words),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        return f"{words[0]}: {error.strerror or error}"
    except subprocess.TimeoutExpired:
        return f"{words[0]} did not end in {COMMAND_TIMEOUT_S:.0f} s and was stopped"
    if done.returncode == 0:
        return None
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"{words[0]} ended with {done.returncode}" + (f": {said[-1]}" if said else "")


def post(url: str, body: bytes, *, pause: Callable[[float], object]) -> str | None:
    """POST a JSON body, a few times if need be; return what went wrong, None when nothing did.

    Args:
        url: the address; a redirect is not followed.
        body: JSON.
        pause: waits for seconds between two attempts.
    """
    opener = _opener(url)
    problem = None
    for attempt in range(POST_ATTEMPTS):
        if attempt:
            pause(POST_PAUSE_S * attempt)
        request = Request(url, body, {"content-type": "application/json"})  # noqa: S310 - checked
        try:
            with opener.open(request, timeout=POST_TIMEOUT_S):
                return None
        except HTTPError as error:
            error.close()
            problem = f"{url} answers {error.code}"
            if error.code < 500 and error.code not in {408, 429}:
                return problem
        except (URLError, OSError) as error:
            problem = f"{url}: {getattr(error, 'reason', error)}"
    return problem


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        """Follow nothing: the receipt goes where the user said."""


def _opener(url: str) -> OpenerDirector:
    if urlsplit(url).hostname in _LOOPBACK:
        return build_opener(_NoRedirect, ProxyHandler({}))
    return build_opener(_NoRedirect)
