"""Children that may be killed, or crash, without taking the count with them.

A forked child has everything imported already. It must not wait for threads of its parent, so
that the parent runs with one thread: set OMP_NUM_THREADS=1 before torch is imported.
"""

from __future__ import annotations

import os
import signal
import time
import traceback

from seal_lite.errors import InputError

REFUSED = 2  # exit status of a child that raised an `InputError`


def fork(function, *args) -> int:
    """Run a function in a child, silently; returns its pid.

    The child's exit status is 0, or `REFUSED` for an `InputError`, else 1. With LOUD in the
    environment it may write to stderr.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        if not os.environ.get("LOUD"):
            os.dup2(null, 2)
        function(*args)
        status = 0
    except InputError:
        status = REFUSED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int, seconds: float = 600.0) -> int | None:
    """How a child has ended: an exit status or minus a signal; None if it still runs by then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
