"""An upstream that speaks the Messages dialect: Anthropic, relays, vLLM, SGLang, llama.cpp, Ollama.

`params` go out byte for byte. Of the client's headers only version, betas and user profile are
passed on; the client's own key never is.
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
        fetches_urls: bool = False,
    ) -> None:
        """Make an upstream.

        Args:
            name: of the configuration.
            base_url: without `/v1`; a path is kept.
            key: None sends none.
            timeout_s: for a whole call.
            fetches_urls: whether it may be sent URLs of images and documents.
        """
        self.name = name
        self.fetches_urls = fetches_urls
        self._base_url = base_url.rstrip("/")
        self._messages_url = f"{self._base_url}/v1/messages"
        headers = {"content-type": "application/json", "accept": "application/json"}
        if key:
            headers["x-api-key"] = key
            if urlsplit(base_url).hostname != "api.anthropic.com":
                # Servers that are OpenAI-compatible at heart know only this form.
                headers["authorization"] = f"Bearer {key}"
        self._client = HttpClient(headers, timeout_s=timeout_s)
        self._headers: dict[tuple[str, tuple[str, ...], str | None], dict[str, str]] = {}

    def send(self, call: Call) -> Coroutine[None, None, Outcome]:
        """Make one call of `POST /v1/messages`."""
        headers = self._headers_of(call)
        return self._client.post(self._messages_url, headers, call.params)

    def forward(self, request: Forward) -> AbstractAsyncContextManager[Forwarded]:
        """Pass one request through."""
        headers = self._headers_of(request)
        url = self._base_url + request.path
        return self._client.stream(request.method, url, headers, request.body)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _headers_of(self, call: Call | Forward) -> dict[str, str]:
        key = (call.version, call.betas, call.user_profile)
        headers = self._headers.get(key)
        if headers is None:
            headers = {"anthropic-version": call.version}
            if call.betas:
                headers["anthropic-beta"] = ",".join(call.betas)
            if call.user_profile is not None:
                headers["anthropic-user-profile-id"] = call.user_profile
            if len(self._headers) > 1_000:  # clients choose them: do not grow for ever
                self._headers.clear()
            self._headers[key] = headers
        return headers
