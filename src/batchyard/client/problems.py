"""Why a run cannot go on, by what the person in front of it can do.

The command line turns each into an exit code; the texts say what, where and what is allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard.errors import BatchyardError

if TYPE_CHECKING:
    from batchyard.client.running.journal import Wait


class InputError(BatchyardError):
    """The documents, the template or an option are not usable. Nothing was sent."""


class InputsChanged(InputError):
    """The folder holds a run of other inputs. Nothing was sent."""


class RunInUse(InputError):
    """Another process works on this run."""


class JournalError(BatchyardError):
    """The journal of the run cannot be read or written."""


class Unwritable(BatchyardError):
    """The disk does not take what the run has to write. Nothing that was recorded is lost."""


class NeedsAttention(BatchyardError):
    """The run stopped and a person has to decide. All state is on disk."""


class Paused(NeedsAttention):
    """The run does not go on until a person pays, or allows more; everything else is saved."""

    waits_for: Wait = "billing"


class BudgetReached(Paused):
    """What is left may cost more than the budget has left."""

    waits_for = "budget"


class ServerRefuses(NeedsAttention):
    """The server refuses or cannot be reached, whatever is sent to it."""


class Detached(BatchyardError):
    """The run was left on request. All state is on disk."""
