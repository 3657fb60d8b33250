"""Every setting of the extraction is validated before anything is read, with one-line errors."""

import ml_collections
import pytest

from configs import base
from extract.dataset import extract
from extract.settings import RULES, check_config
from slf_common.config import load_config
from slf_common.errors import UserError
from slf_common.rules import find_leaves, find_rule


@pytest.mark.parametrize(
    "path", ["configs/base.py", "configs/demo.py", "configs/paper.py", "configs/ablations.py:demo"]
)
def test_every_setting_of_the_shipped_configs_has_a_rule_and_passes_unchanged(path):
    """(fault 16)"""
    settings = load_config(path).extract
    assert not [key for key, _ in find_leaves(settings, "extract.") if not find_rule(RULES, key)]
    before = settings.to_json(sort_keys=True)
    check_config(settings)
    assert settings.to_json(sort_keys=True) == before


def changed(values):
    """Returns the settings of base.py with some values replaced, which may have another type."""
    settings = ml_collections.ConfigDict(base.get_config().extract.to_dict())
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = settings[parents[0]] if parents else settings
        if leaf in node:
            del node[leaf]
        node[leaf] = value
    return settings


BAD = [
    ("videos", None),
    ("out", 5),
    ("attributes", ("a.csv",)),
    ("extractors", ()),
    ("extractors", "mel"),
    ("extractors", ("mell",)),
    ("extractors", ("mel", "mel")),
    ("detector", ""),
    ("frames", 0),
    ("frames", 2.5),
    ("frames", "5"),
    ("clips_per_shard", 0),
    ("clips_per_shard", -1),
    ("runner", "slurm"),
    ("workers", -1),
    ("workers", True),
    ("device", "gpu"),
    ("ecapa.weights", ""),
    ("ecapa.windows", ()),
    ("titanet.windows", (24, 24)),
    ("titanet.windows", ((24, 24, 24),)),
    ("speakernet.windows", (("24", 24),)),
    ("pyannote.windows", ((3, 0),)),
    ("pyannote.windows", ((float("nan"), 1),)),
    ("deepface.estimate", ("mood",)),
    ("deepface.estimate", ("age", "age")),
    ("deepface.engine", "jax"),
    ("deepface.home", None),
]


@pytest.mark.parametrize("key, value", BAD, ids=[f"{key}={value!r}" for key, value in BAD])
def test_an_invalid_value_is_reported_before_anything_is_read(key, value):
    """(fault 16)"""
    with pytest.raises(UserError) as error:
        extract(changed({key: value}))
    message = str(error.value)
    assert message.startswith(f"config.extract.{key}={value!r}: must be ") and "\n" not in message


@pytest.mark.parametrize(
    "values, message",
    [
        ({"worker": 1}, r"config.extract.worker=1: no such setting; did you mean config.extract.workers\?"),
        ({"ecapa": 5}, "config.extract.ecapa=5: must be a group of settings"),
        (
            {"pyannote.windows": ((25, 1),)},
            "config.extract.pyannote.windows: 25 s every 1 s does not fit clips of 24 s",
        ),
        ({"titanet.windows": ((0.5, 0.01),)}, "rows"),
    ],
)
def test_inconsistent_settings_are_reported_in_one_line(values, message):
    """(fault 16)"""
    with pytest.raises(UserError, match=message) as error:
        check_config(changed(values))
    assert "\n" not in str(error.value)


def test_a_missing_setting_is_reported():
    """(fault 16)"""
    settings = changed({})
    del settings.deepface.engine
    with pytest.raises(UserError, match="config.extract.deepface.engine: missing from this config"):
        check_config(settings)


def test_numbers_are_converted_and_windows_are_unchanged():
    """(fault 16)"""
    settings = changed({"frames": 3.0, "clips_per_shard": 1e2, "ecapa.windows": ((24, 24.0),)})
    check_config(settings)
    assert (repr(settings.frames), repr(settings.clips_per_shard)) == ("3", "100")
    assert repr(settings.ecapa.windows) == "((24, 24.0),)"
