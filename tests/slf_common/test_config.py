import pytest

from slf_common import cli, rules
from slf_common.config import load_config
from slf_common.errors import UserError

CONFIG = """
import ml_collections

def get_config(x="0"):
    config = ml_collections.ConfigDict(dict(seed=0, x=x, rate=0.5, flip=True, names=("mel",), sizes=(1, 2), empty=()))
    config.windows = ((24, 24),)
    config.train = dict(steps=600, drop=dict(mel=0))
    config.systems = dict(full=dict(inputs=("mel", "age"), thumbnail=True))
    return config
"""
RULES = {
    "seed": rules.integer(0),
    "x": rules.text(),
    "rate": rules.real(0, 1),
    "flip": rules.flag(),
    "names": rules.each(rules.text(), distinct=str),
    "sizes": rules.each(rules.integer(1), 2, 2),
    "empty": rules.each(rules.real(0)),
    "windows": rules.each(rules.each(rules.real(0), 2, 2)),
    "train.steps": rules.integer(1),
    "train.drop.*": rules.real(0, 1),
    "systems.*.inputs": rules.each(rules.text()),
    "systems.*.thumbnail": rules.flag(),
}


@pytest.fixture
def path(tmp_path):
    (tmp_path / "small.py").write_text(CONFIG)
    return str(tmp_path / "small.py")


def test_values_are_parsed_as_the_type_of_the_setting(path):
    overrides = {"seed": "7", "x": "1e3", "rate": "1", "flip": "False", "names": "mel,age", "train.steps": "9"}
    config = load_config(path, overrides)
    assert (config.seed, config.x, config.flip, config.names, config.train.steps) == (
        7,
        "1e3",
        False,
        ("mel", "age"),
        9,
    )
    assert repr(config.rate) == "1.0"


def test_the_demo_config_can_be_overridden():
    overrides = {"seed": "5", "workdir": "here", "extract.deepface.estimate": "age,gender", "train.flip": "false"}
    config = load_config("configs/demo.py", overrides)
    assert (config.seed, config.workdir, config.train.flip) == (5, "here", False)
    assert tuple(config.extract.deepface.estimate) == ("age", "gender")


@pytest.mark.parametrize("text, value", [("1e3", 1000), ("1_000", 1000), ("2.0", 2), ("0", 0)])
def test_whole_numbers_accept_exponents_underscores_and_a_zero_fraction(path, text, value):
    assert repr(load_config(path, {"seed": text}).seed) == repr(value)


def test_tuples_are_parsed_with_and_without_brackets(path):
    overrides = {"names": "a", "sizes": "(8, 16)", "empty": "[0.5, 1e1]", "windows": "(24, 24), (3, 2)"}
    config = load_config(path, overrides)
    assert (config.names, config.sizes, config.empty) == (("a",), (8, 16), (0.5, 10))
    assert config.windows == ((24, 24), (3, 2))
    config = load_config(path, {"sizes": "1e3,2.0", "empty": "True,false"}, RULES)
    assert config.empty == (True, False)
    config.empty = ()
    rules.check(config, RULES)
    assert repr(config.sizes) == "(1000, 2)"


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("sed", "1", "--config.sed: no such key; did you mean --config.seed"),
        ("trian.steps", "1", "did you mean --config.train.steps"),
        ("train.steps.x", "1", "--config.train.steps.x: no such key"),
        ("train.drop.", "1", "--config.train.drop.: no such key"),
        ("train.drop.age", "0.2", "--config.train.drop.age: no such key"),
        ("rate", "many", "--config.rate=many: must be a number; it is 0.5 now"),
        ("seed", "2.5", "--config.seed=2.5: must be a whole number; it is 0 now"),
        ("flip", "perhaps", "must be true or false"),
        ("train", "1", "group of settings"),
    ],
)
def test_a_wrong_override_is_refused(path, key, value, message):
    with pytest.raises(UserError, match=message):
        load_config(path, {key: value})


def test_a_table_with_a_rule_accepts_new_keys(path):
    overrides = {"train.drop.age": "0.2", "train.drop.ecapa": "1", "systems.voice.inputs": "ecapa,mel"}
    config = load_config(path, overrides | {"systems.voice.thumbnail": "0", "systems.none.inputs": "()"}, RULES)
    assert config.train.drop.to_dict() == {"mel": 0, "age": 0.2, "ecapa": 1.0}
    assert config.systems.voice.to_dict() == {"inputs": ("ecapa", "mel"), "thumbnail": False}
    with pytest.raises(UserError, match="config.systems.none.thumbnail: missing from this config"):
        rules.check(config, RULES)
    with pytest.raises(UserError, match="--config.train.dorp.age: no such key; did you mean --config.train.drop.mel"):
        load_config(path, {"train.dorp.age": "0.2"}, RULES)
    config = load_config(path, {"train.drop.age": "often"}, RULES)
    with pytest.raises(UserError, match="config.train.drop.age='often': must be a finite number from 0 to 1"):
        rules.check(config, RULES)


def test_a_value_may_be_of_another_type_than_now_if_it_fits_the_rule(path):
    """The table holds the integer 0, but its rule accepts fractions."""
    assert load_config(path, {"train.drop.mel": "0.5"}, RULES).train.drop.mel == 0.5
    with pytest.raises(UserError, match="must be a whole number"):
        load_config(path, {"train.drop.mel": "0.5"})
    with pytest.raises(UserError, match="train.steps=0.5: must be a whole number"):
        load_config(path, {"train.steps": "0.5"}, RULES)


def test_overrides_accept_an_equals_sign_or_a_space_and_the_last_value_is_used():
    arguments = cli.parser("module", "", [])
    arguments.add_argument("--names", nargs="+")
    given = ["--config.a.b=1", "--names", "x", "y", "--config.c", "-1", "--config.a.b", "a=b", "--config.d="]
    args, overrides = cli.parse_overrides(arguments, given)
    assert args.names == ["x", "y"] and overrides == {"a.b": "a=b", "c": "-1", "d": ""}


def test_a_command_line_sets_values_and_new_keys_of_tables(path):
    flags = ["--config", path, "--config.train.steps", "1e3", "--config.train.drop.age=0.2", "--config.rate", "1"]
    _, config = cli.parse_with_config(cli.parser("module", "", []), flags, RULES)
    assert repr(config.train.steps) == "1000" and config.train.drop.age == 0.2 and config.rate == 1


@pytest.mark.parametrize("rest", [["--config.a"], ["--config.a", "--config.b=1"], ["--config.a", "--names=x"]])
def test_an_override_without_a_value_is_refused(rest):
    arguments = cli.parser("module", "", [])
    arguments.add_argument("--names")
    with pytest.raises(UserError, match="--config.a: an override needs a value, as in --config.a=VALUE"):
        cli.parse_overrides(arguments, rest)


@pytest.mark.parametrize("file", ["configs/none.py", "README.md"])
def test_a_file_that_is_no_config_is_refused(file):
    with pytest.raises(UserError, match="config"):
        load_config(file)


BASE = "from configs import base\n\ndef get_config():\n    config = base.get_config()\n"


@pytest.mark.parametrize(
    "text, message",
    [
        (f'{BASE}    config.seed = "100"\n    return config\n', "line 5: TypeError: .*'seed'"),
        (f"{BASE}    config.trian.steps = 5\n    return config\n", "line 5: AttributeError: .*trian"),
        (f"{BASE}    return config(\n", "line 5: SyntaxError"),
        ("import nothing_of_this_name\n", "line 1: ModuleNotFoundError: .*nothing_of_this_name"),
        (BASE, "must return an ml_collections.ConfigDict, not NoneType"),
        ("def get_config():\n    return {'seed': 0}\n", "must return an ml_collections.ConfigDict, not dict"),
        ("get_config = 5\n", r"must define get_config\(\)"),
        ("def get_config(name):\n    return name\n", "takes a name"),
    ],
)
def test_an_error_in_a_config_file_is_reported_with_its_line(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=f"mine.py.*{message}") as error:
        load_config(str(tmp_path / "mine.py"))
    assert "\n" not in str(error.value)


def test_the_path_of_a_config_may_contain_a_colon(tmp_path):
    (tmp_path / "a:b").mkdir()
    path = tmp_path / "a:b" / "small.py"
    path.write_text(CONFIG)
    assert load_config(str(path)).x == "0" and load_config(f"{path}:7").x == "7"


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("names", ("a", "a"), "must be a tuple of distinct entries, each entry a string; an entry is repeated"),
        ("sizes", (1,), "must be a tuple of 2 entries, each entry a whole number of at least 1"),
        ("rate", 1e-40, "must be a finite number from 0 to 1; it is out of the range of float32"),
        ("seed", 2**31, "must be a whole number of at least 0; at most 2147483647"),
        ("flip", 1, "must be true or false"),
    ],
)
def test_an_invalid_value_is_reported_with_its_rule(path, key, value, message):
    config = load_config(path)
    rules.set_value(config, key, value)
    with pytest.raises(UserError, match=f"config.{key}=.*: {message}$"):
        rules.check(config, RULES)
