"""The command line. Each command is one file, imported when it runs; so are the model libraries."""

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run a command line (None: that of this process, which it ends) and leave by SystemExit with the exit status.

    0: done. 2: wrong usage or input (InputError). 3: does not fit into memory (CapacityError). 75: busy, try again
    (BusyError). 130: Ctrl-C. 143: SIGTERM. 1: any other failure. stderr says in one line what went wrong.
    """
    from mistral_portable.cli.collector import end_quickly
    from mistral_portable.cli.signals import Signals

    signals, own_process = Signals(), arguments is None
    if own_process:
        end_quickly()
    with signals.handled(for_good=own_process):
        from mistral_portable.cli.app import run_app

        run_app(arguments, signals)
