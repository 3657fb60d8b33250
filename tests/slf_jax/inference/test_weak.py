"""Autoguidance: a system guided with a worse version of itself."""

import dataclasses
import json

import numpy as np
import pytest

from slf_common.errors import UserError
from slf_jax import sweep
from slf_jax.cascade.settings import sample_settings
from slf_jax.cascade.system import AUTO
from slf_jax.inference import groups
from slf_jax.inference.people import person_number
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.trained import PRETRAINED, load
from slf_jax.inference.weak import with_weak
from tfrecords.reader import Clips, stack

pytestmark = pytest.mark.slow

INPUTS = ("mel", "age", "gender")
FLOW = {"diffusion.upsampler.preconditioning": "flow"}  # as in the system that comes with the repository


@pytest.fixture(scope="module")
def guided(run):
    """The tiny run with its earlier checkpoint: of the base stage; the upsampler has only one."""
    trained = with_weak(load(run.workdir), f"{run.workdir}@32:8")
    assert (trained.steps["base"], trained.weak.steps["base"]) == (40, 32)
    return trained


@pytest.fixture(scope="module")
def people(run):
    clips = Clips(run.data.dir, "test")
    chosen = [clips[i] for i in range(3)]
    return stack(chosen), np.array([person_number(clip["clip_id"]) for clip in chosen])


def draw(trained, people, points, **options):
    return Sampler(trained)(*people, points, 7, **options).astype(int)[:, :, 0]


def test_scale_zero_gives_the_weak_systems_faces_and_one_the_own(guided, people):
    found = draw(guided, people, ((0, 0), (1, 1), (6, 6)))
    weak, own = (draw(each, people, ((1, 1),))[0] for each in (guided.weak, dataclasses.replace(guided, weak=None)))
    assert np.abs(found[0] - weak).max() <= 1 and np.abs(found[1] - own).max() <= 1
    assert np.abs(weak - own).mean() > 0.1 and np.abs(found[2] - own).mean() > 0.1


def test_one_step_extrapolates_from_the_weak_estimate(guided, people):
    settings = sample_settings(guided.meta.config)
    settings = dataclasses.replace(settings, steps=1, x0_threshold="none", thumbnail_consistency=False)
    sampler = Sampler(guided, settings=settings, stages=("base",))
    weak, own, double = sampler(*people, ((0, 0), (1, 1), (2, 2)), 7)[:, :, 0].astype(int)
    inside = (np.minimum(weak, own) > 0) & (np.maximum(weak, own) < 255)
    assert inside.mean() > 0.5 and np.abs(double - own).mean() > 0.1
    assert np.abs(double - np.clip(2 * own - weak, 0, 255))[inside].max() <= 2


def test_guiding_with_itself_changes_nothing(guided, people):
    found = draw(dataclasses.replace(guided, weak=dataclasses.replace(guided, weak=None)), people, ((0, 0), (9, 9)))
    own = draw(dataclasses.replace(guided, weak=None), people, ((1, 1),))
    assert np.abs(found - own).max() <= 1


def test_combined_with_guidance_by_the_inputs(guided, people):
    both = draw(guided, people, ((2, 1), (1, 2), (0, 1), (2, 2)), groups=(INPUTS, (AUTO,)))
    cfg = draw(dataclasses.replace(guided, weak=None), people, ((2, 2), (0, 0)))
    auto = draw(guided, people, ((2, 2),))
    for found, expected in ((both[0], cfg[0]), (both[1], auto[0]), (both[2], cfg[1])):
        assert np.abs(found - expected).max() <= 1
    assert np.abs(both[3] - both[0]).mean() > 0.01 and np.abs(both[3] - both[1]).mean() > 0.01
    with pytest.raises(ValueError, match="must be .AUTO,. for a system with a weak one"):
        draw(guided, people, ((2, 2),), groups=(INPUTS,))


def test_weak_system_of_fewer_inputs_is_given_no_others(guided, people):
    fewer = dataclasses.replace(guided.weak, system=guided.weak.system.without(["mel"]))
    found = draw(dataclasses.replace(guided, weak=fewer), people, ((0, 0),))
    assert np.abs(found - draw(guided.weak, people, ((1, 1),), without=("mel",))).max() <= 1
    assert np.abs(found - draw(guided, people, ((0, 0),))).max() > 1


def test_both_scales_are_swept_as_a_grid(run, tmp_path):
    flags = ["--guide-with", f"{run.workdir}@32:8", "--scales", "auto=1:3,all=0:2", "--people", "2"]
    sweep.main(["--workdir", run.workdir, *flags, "--out", str(tmp_path)])
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert list(report["scales"]) == [f"all {s}, auto {a}" for s in (0, 2) for a in (1, 3)]
    assert report["guided_with"] == with_weak(load(run.workdir), f"{run.workdir}@32:8").weak.digests


@pytest.mark.parametrize(
    "overrides, source, message",
    [
        ({}, "{run}@7", "no checkpoint of stage 'base' at step 7; there are: 32, 40"),
        ({}, "{run}@32", "no checkpoint of stage 'upsampler' at step 32; there are: 8"),
        ({}, "nowhere", "nowhere: no checkpoint of stage 'base'"),
        ({}, str(PRETRAINED), "has diffusion.upsampler.preconditioning=flow, this system x0; it must have the same"),
        (FLOW, str(PRETRAINED), "uses 'pyaudioanalysis', which is not an input of this system"),
        ({}, f"{PRETRAINED}@3", "an exported system has one checkpoint; leave out @STEP"),
        ({"diffusion.base.sigma_data": "0.3"}, "{run}", "has diffusion.base.sigma_data=0.18, this system 0.3"),
    ],
)
def test_unsuitable_weak_systems_are_rejected_in_one_line(run, overrides, source, message):
    with pytest.raises(UserError, match=message) as error:
        with_weak(load(run.workdir, overrides=overrides), source.format(run=run.workdir))
    assert "\n" not in str(error.value)


def test_weak_system_of_other_features_is_rejected(run):
    trained = load(run.workdir)
    mel = {"mean": trained.meta.statistics["mel"]["mean"] + 40, "std": trained.meta.statistics["mel"]["std"]}
    other = dataclasses.replace(trained, meta=dataclasses.replace(trained.meta, statistics={"mel": mel}))
    with pytest.raises(UserError, match="--guide-with .*: the mean of 'mel' differs by"):
        with_weak(other, run.workdir)
    pretrained = load(PRETRAINED, overrides={"diffusion.upsampler.preconditioning": "x0"})
    assert with_weak(pretrained, run.workdir).weak.system.inputs == INPUTS  # other networks and fewer inputs


@pytest.mark.parametrize("text", ["all=1:2", "auto=1:2"])
def test_scales_of_groups_name_inputs_and_autoguidance(guided, text):
    with pytest.raises(UserError, match="with --guide-with, give all=1:2,auto=1:2, or its scales alone"):
        groups.parse(text, guided, ())
