"""The command line. Each command is one file; the model libraries are imported when a command runs."""

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run a command line (None: that of this process) and leave by SystemExit with the exit status.

    0: done. 2: wrong usage or input (InputError). 3: does not fit into memory (CapacityError). 75: busy, try again
    (BusyError). 130: Ctrl-C. 1: any other failure. stderr says in one line what went wrong.
    """
    try:
        from mistral_portable.cli.app import run_app

        run_app(arguments)
    except KeyboardInterrupt:  # while the imports were still running
        raise SystemExit(130) from None
