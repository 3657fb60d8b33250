"""The console commands that setup.py installs."""

import importlib.metadata
import re
import sys

import pytest

PREFIX = "slf-"
COMMANDS = {
    entry.name: entry
    for entry in importlib.metadata.distribution("slf-jax").entry_points
    if entry.group == "console_scripts"
}


@pytest.mark.parametrize("name", ["extract", "train", "sample", "sweep", "evaluate", "export", "face", "serve"])
def test_commands_are_those_of_python_m(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [PREFIX + name, "--help"])
    with pytest.raises(SystemExit) as end:
        COMMANDS[PREFIX + name].load()()
    usage = capsys.readouterr().out
    assert (
        end.value.code == 0
        and re.match(r"usage: python -m (extract|slf_jax|app)\.\w+ ", usage)
        and "examples:" in usage
    )


def test_a_mistake_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["slf-face", "--workdir", "nowhere", "--age", "30"])
    with pytest.raises(SystemExit) as end:
        COMMANDS["slf-face"].load()()
    assert end.value.code == 2 and capsys.readouterr().err.startswith("error: nowhere: ")
