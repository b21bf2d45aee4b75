"""What the rules need to know of a request besides the value in hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchyard.models import Model
    from batchyard.validate.caching import Breakpoint


@dataclass(slots=True)
class Context:
    """One request that is examined by the rules of the hosted API."""

    model: Model
    version: str
    betas: tuple[str, ...]
    block_types: frozenset[str]
    tool_types: frozenset[str]
    """Types that the table of models lets through beside those that are known here."""
    breakpoints: list[Breakpoint] = field(default_factory=list)
    """Found so far, in the order of the prompt."""

    @property
    def lenient(self) -> bool:
        """Whether types and keys that are not known may be those of a beta."""
        return bool(self.betas)
