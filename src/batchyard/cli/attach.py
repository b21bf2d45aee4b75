"""`attach` and `report`: come back to a run, or only to how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard.cli import render
from batchyard.cli.exits import WAITING, Exit, guarded
from batchyard.cli.options import Approving, Back, Moving, grouped
from batchyard.cli.outliving import outliving
from batchyard.cli.status import Folder, Json, opened
from batchyard.cli.terms import Going  # noqa: TC001 - the options are read from it

if TYPE_CHECKING:
    from batchyard.cli.pilots import Approval
    from batchyard.client.running.session import Session


@grouped
def attach(back: Back, going: Going, moving: Moving, approving: Approving) -> None:
    """Come back to a run: wait for it, and save its reports."""
    with guarded(back.folder), outliving():
        from batchyard.cli import work  # noqa: PLC0415 - so that other commands start quickly
        from batchyard.client.api import checked_url  # noqa: PLC0415

        going.check()
        opened(back.folder)
        url = None if moving.base_url is None else checked_url(moving.base_url)

        def prepare(session: Session) -> None:
            allowed = moving.allow_server_change
            if url is not None:
                session.check_move(url, is_allowed=allowed)
            going.agree(session)  # first, so that a kill leaves no run at the other without them
            if url is not None:
                text = session.move(url, is_allowed=allowed)
                if text:
                    render.notice(text, as_json=back.as_json)

        approval: Approval = "given" if approving.approve else "ask"
        work.go_on(
            back.folder, as_json=back.as_json, going=going, prepare=prepare, approval=approval
        )


def report(folder: Folder, as_json: Json = False) -> None:
    """Show again how a run ended, or where it stopped, and what it cost."""
    with guarded():
        from batchyard.cli import work  # noqa: PLC0415
        from batchyard.client.problems import InputError  # noqa: PLC0415
        from batchyard.client.results import receipt  # noqa: PLC0415

        files, state = opened(folder)
        done = receipt.standing(files, state)
        if done is None:
            raise InputError(f"{folder} is not finished; `batchyard attach {folder}` continues")
        work.show_end(folder, files, state, done, as_json=as_json)
        if done.waits_for is not None:
            raise SystemExit(WAITING[done.waits_for])
        if not done.is_complete:
            raise SystemExit(Exit.NEEDS_ATTENTION)
