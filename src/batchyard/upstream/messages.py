"""An upstream that speaks the Messages dialect: Anthropic, relays, vLLM, SGLang, llama.cpp, Ollama.

`params` go out byte for byte. Of the client's headers only version and betas are passed on; the
client's own key never is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from batchyard import limits
from batchyard.upstream.http import HttpClient

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from contextlib import AbstractAsyncContextManager

    from batchyard.model import Billing
    from batchyard.upstream import Call, Forward, Forwarded, Outcome


class MessagesUpstream:
    """One endpoint with one key."""

    billing: Billing = "standard"

    def __init__(
        self,
        name: str,
        base_url: str,
        key: str | None,
        *,
        timeout_s: float = limits.UPSTREAM_TIMEOUT_S,
    ) -> None:
        """Make an upstream.

        Args:
            name: of the configuration.
            base_url: without `/v1`; a path is kept.
            key: None sends none.
            timeout_s: for a whole call.
        """
        self.name = name
        self._base_url = base_url.rstrip("/")
        self._messages_url = f"{self._base_url}/v1/messages"
        headers = {"content-type": "application/json", "accept": "application/json"}
        if key:
            headers["x-api-key"] = key
            if urlsplit(base_url).hostname != "api.anthropic.com":
                # Servers that are OpenAI-compatible at heart know only this form.
                headers["authorization"] = f"Bearer {key}"
        self._client = HttpClient(headers, timeout_s=timeout_s)
        self._headers: dict[tuple[str, tuple[str, ...]], dict[str, str]] = {}

    def send(self, call: Call) -> Coroutine[None, None, Outcome]:
        """Make one call of `POST /v1/messages`."""
        headers = self._versions(call.version, call.betas)
        return self._client.post(self._messages_url, headers, call.params)

    def forward(self, request: Forward) -> AbstractAsyncContextManager[Forwarded]:
        """Pass one request through."""
        headers = self._versions(request.version, request.betas)
        url = self._base_url + request.path
        return self._client.stream(request.method, url, headers, request.body)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _versions(self, version: str, betas: tuple[str, ...]) -> dict[str, str]:
        headers = self._headers.get((version, betas))
        if headers is None:
            headers = {"anthropic-version": version}
            if betas:
                headers["anthropic-beta"] = ",".join(betas)
            if len(self._headers) > 1_000:  # clients choose betas: do not grow for ever
                self._headers.clear()
            self._headers[version, betas] = headers
        return headers
