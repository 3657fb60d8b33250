"""Ctrl-C while a command still imports its libraries: one line and status 130, as `cli.run` gives it afterwards.

Imported by the packages with commands, before their libraries: an exception in the middle of a compiled module's
import can crash the process. Does nothing where Python was not started as `python -m`.
"""

import os
import signal
import sys

STATUS = 130  # 128 + SIGINT


def _end(*_: object) -> None:
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(STATUS)


def imports_done() -> None:
    """From here on, Ctrl-C raises `KeyboardInterrupt`."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Until the module's own file is found, sys.argv begins with -m. Background jobs of a shell ignore the signal.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
