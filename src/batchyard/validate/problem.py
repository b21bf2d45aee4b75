"""What a check answers, and how the checks below it say so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request cannot run: the `error` of its `errored` line."""

    type: str
    message: str


class Refused(Exception):
    """A rule is broken. Ends the examination of one request and never leaves the package."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)
