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
from slf_common.config import load_config
from slf_common.errors import UserError


def load(**overrides):
    return load_config("configs/demo.py", {key.replace("__", "."): value for key, value in overrides.items()})


def test_any_leaf_can_be_set_and_keeps_its_type():
    config = load(train__steps="7", train__ema="0.5", train__flip="false", workdir="here", data__inputs="mel,age")
    assert tuple(config.train.steps) == (7,) and config.train.ema == 0.5 and config.train.flip is False
    assert tuple(load(sample__interval="0.2,5").sample.interval) == (0.2, 5)
    assert tuple(load(extract__deepface__estimate="age,gender").extract.deepface.estimate) == ("age", "gender")
    assert config.workdir == "here" and tuple(config.data.inputs) == ("mel", "age")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("train.step", "1", "did you mean --config.train.steps"),
        ("trian.steps", "1", "did you mean --config.train.steps"),
        ("train.ema", "many", "ema=many: must be a number; it is 0.998 now"),
        ("train.flip", "perhaps", "must be true or false"),
        ("train", "1", "group of settings"),
    ],
)
def test_a_wrong_override_is_refused(key, value, message):
    with pytest.raises(UserError, match=message):
        load_config("configs/demo.py", {key: value})


@pytest.mark.parametrize("path", ["configs/none.py", "README.md"])
def test_a_wrong_file_is_refused(path):
    with pytest.raises(UserError, match="config"):
        load_config(path)


@pytest.mark.parametrize("text, value", [("1e3", 1000), ("1_000", 1000), ("2.0", 2), ("0", 0)])
def test_whole_numbers_can_be_written_as_people_write_them(text, value):
    """(fault 16)"""
    config = load(train__warmup=text, train__steps=f"{text},{text}", extract__frames=text)
    assert repr(config.train.warmup) == repr(config.extract.frames) == repr(value)
    assert tuple(config.train.steps) == (value, value)


def test_tuples_are_read_with_and_without_brackets():
    """(fault 16)"""
    config = load(
        model__base__self_attention="True,false", train__batch_size="(8)", extract__ecapa__windows="(24, 24), (3, 2)",
        model__inputs="mel", sample__interval="[0.5, 1e1]",
    )  # fmt: skip
    assert tuple(config.model.base.self_attention) == (True, False) and tuple(config.train.batch_size) == (8,)
    assert config.extract.ecapa.windows == ((24, 24), (3, 2)) and tuple(config.model.inputs) == ("mel",)
    assert tuple(config.sample.interval) == (0.5, 10)


def test_overrides_come_with_an_equals_sign_or_a_space_and_the_last_one_counts():
    """(fault 16)"""
    arguments = cli.parser("module", "", [])
    arguments.add_argument("--names", nargs="+")
    given = ["--config.a.b=1", "--names", "x", "y", "--config.c", "-1", "--config.a.b", "a=b", "--config.d="]
    args, overrides = cli.parse_overrides(arguments, given)
    assert args.names == ["x", "y"] and overrides == {"a.b": "a=b", "c": "-1", "d": ""}


@pytest.mark.parametrize("rest", [["--config.a"], ["--config.a", "--config.b=1"], ["--config.a", "--names=x"]])
def test_an_override_without_a_value_is_refused(rest):
    """(fault 16)"""
    arguments = cli.parser("module", "", [])
    arguments.add_argument("--names")
    with pytest.raises(UserError, match="--config.a: an override needs a value, as in --config.a=VALUE"):
        cli.parse_overrides(arguments, rest)


BASE = "from configs import base\n\ndef get_config():\n    config = base.get_config()\n"


@pytest.mark.parametrize(
    "text, message",
    [
        (f'{BASE}    config.train.warmup = "100"\n    return config\n', "line 5: TypeError: .*'warmup'"),
        (f"{BASE}    config.trian.steps = 5\n    return config\n", "line 5: AttributeError: .*trian"),
        (f"{BASE}    return config(\n", "line 5: SyntaxError"),
        ("import nothing_of_this_name\n", "line 1: ModuleNotFoundError: .*nothing_of_this_name"),
        (BASE, "must return an ml_collections.ConfigDict, not NoneType"),
        ("def get_config():\n    return {'seed': 0}\n", "must return an ml_collections.ConfigDict, not dict"),
        ("get_config = 5\n", r"defines get_config\(\)"),
        ("def get_config(name):\n    return name\n", "takes a name"),
    ],
)
def test_a_config_file_that_fails_is_told_with_its_line(tmp_path, text, message):
    """(fault 16)"""
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=f"mine.py.*{message}") as error:
        load_config(str(tmp_path / "mine.py"))
    assert "\n" not in str(error.value)


def test_a_mistake_is_one_line_and_status_two(capsys):
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
            "error: /x/y: No space left on device; make room",
        ),
        (OSError(errno.EFBIG, "File too large"), 2, "error: File too large; make room"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 2, "error: a: Permission denied\n"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"a"), 2, "error: a: Is a directory\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("what is finished stays"), 130, "interrupted; what is finished stays\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_system_refuses_is_one_line(capsys, error, status, line):
    """(fault 17)"""

    def fail():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(fail)
    told = capsys.readouterr().err
    assert stop.value.code == status and told.startswith(line) and told.count("\n") == bool(line)


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("a bug"), FileNotFoundError(errno.ENOENT, "a bug")])
def test_a_bug_keeps_its_traceback(error):
    def fail():
        raise error

    with pytest.raises(type(error), match="a bug"):
        cli.run(fail)


def test_only_what_is_known_to_be_harmless_is_kept_quiet(caplog):
    """(fault 3)"""
    cli.run(lambda: None)
    absl = logging.getLogger("absl")
    absl.warning("Given directory is read only=%s", "/x")
    absl.warning("something is wrong with %s", "/x")
    assert [record.getMessage() for record in caplog.records] == ["something is wrong with /x"]


def test_a_librarys_warning_reaches_the_user_once(capsys):
    """(fault 3)"""
    for _ in range(2):
        with cli.quiet():
            print("chatter")
            warnings.warn("old", DeprecationWarning, stacklevel=1)
            warnings.warn("these weights\nare another model's", UserWarning, stacklevel=1)
    told = capsys.readouterr()
    assert told.out == "" and told.err == "note: UserWarning: these weights\n"


def test_nobody_reads_on_or_the_disk_is_full():
    """(fault 17)"""
    command = [sys.executable, "-c", "from slf_common import cli; cli.run(lambda: print(1))"]
    environment = os.environ | {"PYTHONUNBUFFERED": ""}  # so that the line is written at the end
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe, open("/dev/full", "wb") as full:
        for output, status, told in ((pipe, 141, ""), (full, 2, "error: No space left on device; make room there")):
            done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, env=environment)
            assert done.returncode == status and done.stderr.startswith(told)
            assert done.stderr.count("\n") == bool(told)


def test_ctrl_c_while_libraries_are_imported_is_one_line(tmp_path):
    """(fault 17)"""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "__init__.py").write_text("import slf_common.interrupt\n")
    (tmp_path / "slow" / "command.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    # A shell's background jobs ignore interrupts and hand that down; what has a handler here has none there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "slow.command"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=400)[1] == "interrupted\n" and process.returncode == 130


def test_a_config_may_lie_in_a_folder_with_a_colon(tmp_path):
    """(fault 3)"""
    (tmp_path / "a:b").mkdir()
    path = tmp_path / "a:b" / "small.py"
    path.write_text("import ml_collections\ndef get_config(x='0'):\n    return ml_collections.ConfigDict(dict(x=x))\n")
    assert load_config(str(path)).x == "0" and load_config(f"{path}:7").x == "7"
