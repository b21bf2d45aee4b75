"""What the version of the API changes for each request of a batch.

Source: the migration guide of version 2026-10-21. Versions are dates, and compare as text.
"""

from __future__ import annotations

_STRICTER_CONTENT = "2026-10-21"


def removes_sampling(version: str) -> bool:
    """Whether `temperature`, `top_p` and `top_k` are refused, even at their defaults.

    Of every model: it is what the client asked for by naming the version.
    """
    return version >= _STRICTER_CONTENT


def forbids_assistant_documents(version: str) -> bool:
    """Whether a `document` block may not stand directly in an assistant message."""
    return version >= _STRICTER_CONTENT


def forbids_user_citations(version: str) -> bool:
    """Whether text blocks of user messages may not have citations."""
    return version >= _STRICTER_CONTENT
