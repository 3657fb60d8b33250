"""Handles Ctrl-C while a command imports its libraries: one line and status 130, as `cli.run` does later.

Packages with commands import this module before their libraries: a `KeyboardInterrupt` during the import of a compiled
module can crash the process. Does nothing unless Python was started as `python -m`.
"""

import os
import signal
import sys

STATUS = 130  # 128 + SIGINT


def _end(*_: object) -> None:
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(STATUS)


def imports_done() -> None:
    """Restores the default handler: from now on, Ctrl-C raises `KeyboardInterrupt`."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# sys.argv[0] is "-m" until Python has located the module. Background jobs of a shell ignore SIGINT; keep it so.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
