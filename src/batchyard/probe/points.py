"""A point: one claim, where it comes from, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchyard.probe.session import Session


class Source(StrEnum):
    """How a claim is known."""

    DOCUMENTED = "documented"
    """In the API's documents or the types and docstrings of its official clients."""
    OBSERVED = "observed"
    """Seen on the hosted service."""
    RECOMMENDED = "recommended"
    """What a server should do where the hosted service's behaviour is not known, or an extension
    that clients may use. A server that differs does not fail."""


class Need(Enum):
    """What there must be before a point can be asked."""

    NOTHING = 0
    BATCHES = 1
    """The probe's own batches, fresh."""
    END = 2
    """The probe's own batches, ended."""


@dataclass(frozen=True, slots=True)
class Point:
    """One claim."""

    id: str
    section: str
    title: str
    source: Source
    need: Need
    ask: Callable[[Session], None]
    """Returns when the claim holds.

    Raises:
        Differs, NotRun, NoAnswer: it does not, it cannot be asked, nobody answers.
    """


@dataclass(slots=True)
class Section:
    """The points of one part of the contract, in order."""

    number: str
    name: str
    points: list[Point] = field(default_factory=list)

    def point(
        self, title: str, source: Source, need: Need = Need.NOTHING
    ) -> Callable[[Callable[[Session], None]], Callable[[Session], None]]:
        """Return a decorator that makes a function the next point of this section."""

        def add(ask: Callable[[Session], None]) -> Callable[[Session], None]:
            number = f"{self.number}.{len(self.points) + 1}"
            self.points.append(Point(number, self.name, title, source, need, ask))
            return ask

        return add
