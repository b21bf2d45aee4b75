"""What a run may do and whom it tells: options that `run`, `attach` and `retry` share.

Those that are not given leave what the journal says, so that a run keeps its terms over a detach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

if TYPE_CHECKING:
    from batchyard.client.running.session import Session

BUDGET_HELP = "Dollars that the run may cost, from now on; nothing is sent that might exceed it."
NO_BUDGET_HELP = "Take back the budget that an earlier command gave."
RETRIES_HELP = "Rounds in which what failed and can succeed is sent again. [default: 3]"
ORPHAN_HELP = "What to do about a create call without an answer, where the server cannot tell."
NOTIFY_HELP = "Command that is run at the end, without a shell; BATCHYARD_RECEIPT names the file."
PILOT_HELP = "Send N documents first, show what came, and ask before the rest."
WEBHOOK_HELP = "Address that gets the receipt at the end, as a POST of JSON."

Budget = Annotated[str | None, typer.Option(metavar="USD", help=BUDGET_HELP)]
NoBudget = Annotated[bool, typer.Option("--no-budget", help=NO_BUDGET_HELP)]
Retries = Annotated[int | None, typer.Option(min=0, max=100, metavar="N", help=RETRIES_HELP)]
OnOrphan = Annotated[str | None, typer.Option(metavar="adopt|wait|resubmit|fail", help=ORPHAN_HELP)]
Notify = Annotated[str | None, typer.Option(metavar="COMMAND", help=NOTIFY_HELP)]
Webhook = Annotated[str | None, typer.Option(metavar="URL", help=WEBHOOK_HELP)]


@dataclass(kw_only=True)
class Going:
    """The options, with the fields that make up the terms in the journal."""

    budget: Budget = None
    no_budget: NoBudget = False
    retries: Retries = None
    on_orphan: OnOrphan = None
    notify: Notify = None
    webhook: Webhook = None

    def check(self) -> None:
        """Refuse what is not usable, before anything is read or sent.

        Raises:
            InputError: an option is not what it has to be.
        """
        from batchyard.client.running import notify  # noqa: PLC0415 - so that other commands start quickly

        self.changes()
        if self.notify is not None:
            notify.checked_command(self.notify)
        if self.webhook is not None:
            notify.checked_url(self.webhook)

    def changes(self) -> dict[str, Any]:
        """Return the terms that are given.

        Raises:
            InputError: an option is not what it has to be.
        """
        from batchyard.client.problems import InputError  # noqa: PLC0415
        from batchyard.client.running.budget import parse  # noqa: PLC0415
        from batchyard.client.running.journal import OrphanPolicy  # noqa: PLC0415

        given: dict[str, Any] = {}
        if self.no_budget:
            if self.budget is not None:
                raise InputError("--budget and --no-budget exclude each other")
            given["budget_micros"] = None
        if self.budget is not None:
            given["budget_micros"] = parse(self.budget)
        if self.retries is not None:
            given["retries"] = self.retries
        if self.on_orphan is not None:
            allowed = get_args(OrphanPolicy)
            if self.on_orphan not in allowed:
                raise InputError(f"--on-orphan is {self.on_orphan!r}; it is {', '.join(allowed)}")
            given["on_orphan"] = self.on_orphan
        return given

    def agree(self, session: Session) -> None:
        """Put the terms that are given in the journal."""
        session.agree(**self.changes())


@dataclass(kw_only=True)
class Piloting:
    """Whether a few documents go first."""

    pilot: Annotated[int, typer.Option(min=0, metavar="N", help=PILOT_HELP)] = 0
