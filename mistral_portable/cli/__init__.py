"""The command line. Each command is one file; the model libraries are imported when a command runs."""

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line (default: of this process) and leave by SystemExit with the exit status.

    0: done. 1: it failed; stderr says why in one line. 2: wrong usage. 130: Ctrl-C.
    """
    try:
        from mistral_portable.cli.app import run_app

        run_app(arguments)
    except KeyboardInterrupt:  # while the imports were still running
        raise SystemExit(130) from None
