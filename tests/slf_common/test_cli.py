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
        ("train.ema", "many", "type float"),
        ("train.flip", "perhaps", "type bool"),
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


def test_a_mistake_is_one_line_and_status_two(capsys):
    def fail():
        raise UserError("what: where; what to do")

    with pytest.raises(SystemExit) as stop:
        cli.run(fail)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: what: where; what to do\n"
