"""`python -m tools.slow_core CPU SECONDS`: take much of a CPU's time, as if the core were slow. For Linux and root.

It works and sleeps for 100 us in turn, before all other processes (SCHED_FIFO), so a thread on that CPU never stands
still for long, as it would beside a busy process of the usual kind. See docs/numba.md, "Threads".
"""

import os
import sys
import time

__all__ = ["main"]

_TURN = 100e-6  # seconds


def main(cpu: int, seconds: float) -> None:
    """Take every second turn on a CPU, and say what share of its time that was.

    Raises PermissionError where the user may not set priorities.
    """
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    begin, taken = time.perf_counter(), time.process_time()
    while time.perf_counter() < begin + seconds:
        end = time.perf_counter() + _TURN
        while time.perf_counter() < end:
            pass
        time.sleep(_TURN)
    share = (time.process_time() - taken) / (time.perf_counter() - begin)
    print(f"took {share:.0%} of CPU {cpu}")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
