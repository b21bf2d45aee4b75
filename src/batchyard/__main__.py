"""`python -m batchyard` is the command line, and so is `batchyard`."""

from __future__ import annotations


def main() -> None:
    """Run the command line; Ctrl-C ends it without a word, also while it is loading."""
    try:
        from batchyard.cli.main import main as run  # noqa: PLC0415 - that takes the time

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
