import errno
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from slf_common import cli
from slf_common.errors import UserError


def test_a_user_error_gives_one_line_and_status_2(capsys):
    def fail():
        raise UserError("what: where; what to do")

    with pytest.raises(SystemExit) as stop:
        cli.run(fail)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: what: where; what to do\n"


@pytest.mark.parametrize(
    "error, status, line",
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            2,
            "error: /x/y: No space left on device; free some space",
        ),
        (OSError(errno.EFBIG, "File too large"), 2, "error: File too large; free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 2, "error: a: Permission denied\n"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"a"), 2, "error: a: Is a directory\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("what is finished stays"), 130, "interrupted; what is finished stays\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_system_errors_give_one_line(capsys, error, status, line):

    def fail():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(fail)
    output = capsys.readouterr().err
    assert stop.value.code == status and output.startswith(line) and output.count("\n") == bool(line)


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("a bug"), FileNotFoundError(errno.ENOENT, "a bug")])
def test_a_bug_keeps_its_traceback(error):
    def fail():
        raise error

    with pytest.raises(type(error), match="a bug"):
        cli.run(fail)


def test_only_harmless_log_messages_are_suppressed(caplog):
    cli.run(lambda: None)
    absl = logging.getLogger("absl")
    absl.warning("Given directory is read only=%s", "/x")
    absl.warning("something is wrong with %s", "/x")
    assert [record.getMessage() for record in caplog.records] == ["something is wrong with /x"]


def test_a_warning_of_a_library_is_shown_once(capsys):
    for _ in range(2):
        with cli.quiet():
            print("chatter")
            warnings.warn("old", DeprecationWarning, stacklevel=1)
            warnings.warn("these weights\nare another model's", UserWarning, stacklevel=1)
    output = capsys.readouterr()
    assert output.out == "" and output.err == "note: UserWarning: these weights\n"


def test_a_closed_pipe_or_a_full_disk_on_stdout():
    command = [sys.executable, "-c", "from slf_common import cli; cli.run(lambda: print(1))"]
    environment = os.environ | {"PYTHONUNBUFFERED": ""}  # so that the line is written at exit
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe, open("/dev/full", "wb") as full:
        for output, status, line in ((pipe, 141, ""), (full, 2, "error: No space left on device; free some space")):
            done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, env=environment)
            assert done.returncode == status and done.stderr.startswith(line)
            assert done.stderr.count("\n") == bool(line)


def test_ctrl_c_during_imports_gives_one_line(tmp_path):
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "__init__.py").write_text("import slf_common.interrupt\n")
    (tmp_path / "slow" / "command.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    # Background jobs of a shell ignore SIGINT, and child processes inherit that; a handler set here is not inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "slow.command"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=400)[1] == "interrupted\n" and process.returncode == 130
