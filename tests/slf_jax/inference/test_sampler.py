"""Sampled images do not depend on chunks, devices, order or memory."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from slf_common.errors import UserError
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.system import person_noise
from slf_jax.inference.metadata import _file_name
from slf_jax.inference.people import choose_people, person_number
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.scales import format_scale, parse_scales
from slf_jax.inference.trained import load
from tfrecords.reader import Clips, stack

SCALES = ((0, 0), (2, 2))


@pytest.fixture(scope="module")
def trained(run):
    return load(run.workdir)


@pytest.fixture(scope="module")
def people(run):
    clips = Clips(run.data.dir, "test")
    chosen = [clips[i] for i in range(5)]
    return stack(chosen), np.array([person_number(clip["clip_id"]) for clip in chosen])


@pytest.fixture(scope="module")
def one_chunk(trained, people):
    """A sampler with all five people in one chunk, and two samples of each: images [2, 5, 2, 128, 128, 3]."""
    sampler = Sampler(trained, chunk=10)
    return sampler, sampler(*people, SCALES, 7, samples=2)


def compilations(function):
    """How many programs XLA compiles while `function` runs."""
    count = []
    listen = lambda event, *_, **__: count.append(event) if "backend_compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    function()
    jax.monitoring.unregister_event_duration_listener(listen)
    return len(count)


def test_images_do_not_depend_on_the_chunk_size(trained, people, one_chunk):
    parts = Sampler(trained, chunk=4)(*people, SCALES, 7, samples=2)
    assert one_chunk[1].shape == parts.shape == (2, 5, 2, 128, 128, 3)
    assert np.abs(one_chunk[1].astype(int) - parts.astype(int)).max() <= 1


def test_rerun_is_bitwise_equal_and_new_scales_compile_nothing(people, one_chunk):
    sampler, images = one_chunk
    found = []
    assert compilations(lambda: found.append(sampler(*people, SCALES, 7, samples=2))) == 0
    np.testing.assert_array_equal(found[0], images)
    assert compilations(lambda: found.append(sampler(*people, ((1.5, 0.5), (8, 3)), 7, samples=2))) == 0
    assert compilations(lambda: found.append(sampler(*people, SCALES, 8, samples=2))) == 0
    assert all(np.abs(other - images.astype(int)).mean() > 0.1 for other in found[1:])
    assert compilations(lambda: sampler(*people, SCALES[:1], 7)) > 0  # checks the counter itself


def test_numbers_are_swept_like_scales(trained, people):
    """Noise on the upsampler's input: another value compiles nothing, and one for each scale gives the same images."""
    sampler, scales = Sampler(trained, stages=("upsampler",)), ((1, 1), (1, 1))
    none = sampler(*people, scales, 7)
    found = []
    assert compilations(lambda: found.append(sampler(*people, scales, 7, numbers={"lowres_aug": 0.2}))) == 0
    some = found[0].astype(int)
    assert np.abs(some - none).mean() > 0.1
    each = sampler(*people, scales, 7, numbers={"lowres_aug": (0.0, 0.2)})
    assert np.abs(each[0] - none[0].astype(int)).max() <= 1 and np.abs(each[1] - some[1]).max() <= 1
    with pytest.raises(ValueError, match="'steps': the numbers that can be changed are rescaled_phi"):
        sampler(*people, scales, 7, numbers={"steps": 9})


@pytest.mark.slow
def test_groups_of_inputs_have_their_own_scale(trained, people, one_chunk):
    """Equal scales are those of one group, a scale of 0 leaves a group out, and the order of the groups matters."""
    sampler, groups = one_chunk[0], (("mel",), ("age", "gender"))
    images = sampler(*people, ((2, 2), (2, 0), (0, 2)), 7, groups=groups).astype(int)
    whole = sampler(*people, ((2, 2),), 7).astype(int)
    assert np.abs(images[0] - whole[0]).max() <= 1
    assert compilations(lambda: sampler(*people, ((1, 3), (0.5, 0.1), (4, 0)), 7, groups=groups)) == 0
    voice = sampler(*people, ((2, 2),), 7, without=("age", "gender")).astype(int)
    assert np.abs(images[1] - voice[0]).max() <= 1
    alone = sampler(*people, ((2,),), 7, groups=groups[:1]).astype(int)  # inputs in no group are masked
    assert np.abs(alone[0] - voice[0]).max() <= 1
    reverse = sampler(*people, ((0, 2),), 7, groups=groups[::-1]).astype(int)
    assert np.abs(reverse[0] - images[1]).mean() > 0.01


@pytest.mark.slow
def test_the_thumbnail_has_its_own_scale(people, one_chunk):
    """At 0 faces do not depend on it; equal scales are those of one group of thumbnail and inputs."""
    (batch, numbers), sampler, inputs = people, one_chunk[0], ("mel", "age", "gender")
    others = {**batch, "face": np.roll(batch["face"], 1, 0)}
    points, groups = ((0, 0), (1, 1), (3, 3), (0.5, 1)), (("thumbnail",), inputs)
    own, other = (sampler(each, numbers, points, 7, groups=groups).astype(int) for each in (batch, others))
    assert np.abs(own[0] - other[0]).max() <= 1
    assert all(np.abs(own[i] - other[i]).mean() > 1 for i in (1, 2, 3))
    assert np.abs(own[1] - sampler(*people, ((1, 1),), 7)[0]).max() <= 1
    whole = sampler(batch, numbers, ((0,), (3,)), 7, groups=(("thumbnail", *inputs),)).astype(int)
    assert np.abs(whole[0] - own[0]).max() <= 1 and np.abs(whole[1] - own[2]).max() <= 1


def test_samples_differ_and_the_first_equals_a_single_sample(trained, people, one_chunk):
    images = one_chunk[1].astype(int)
    assert np.abs(images[:, :, 0] - images[:, :, 1]).mean() > 0.1
    one = Sampler(trained)(*people, SCALES, 7)
    assert np.abs(images[:, :, :1] - one).max() <= 1


def test_noise_does_not_depend_on_order_or_count(one_chunk):
    four, two = (np.array([9, 4, 7, 4]), np.array([0, 0, 1, 1])), (np.array([4, 7]), np.array([1, 1]))
    many, few = one_chunk[0].first_noise(3, *four), one_chunk[0].first_noise(3, *two)
    keys = [person_noise(3, *ids) for ids in (four, two)]
    for name in STAGES:
        np.testing.assert_array_equal(np.asarray(many[name])[[3, 2]], few[name])
        assert not np.array_equal(many[name][1], many[name][3])
        all_keys, few_keys = (np.asarray(jax.random.key_data(each[name].keys)) for each in keys)
        np.testing.assert_array_equal(all_keys[[3, 2]], few_keys)


@pytest.mark.parametrize("count", [1, 3, 16, 33])
def test_noise_of_many_people_is_that_of_each_alone(one_chunk, count):
    """Bitwise: one dispatch for a chunk draws what one dispatch for each person drew."""
    numbers, draws = np.arange(count) * 7919 % 104729, np.arange(count) % 3
    noise = one_chunk[0].first_noise(5, numbers, draws)
    alone = jax.jit(lambda person, draw: {name: each.first for name, each in person_noise(5, person, draw).items()})
    for i in range(count):
        for name, first in alone(numbers[i : i + 1], draws[i : i + 1]).items():
            np.testing.assert_array_equal(noise[name][i], first[0])


def test_the_next_chunk_is_dispatched_before_images_are_fetched(people, one_chunk, monkeypatch):
    """Nothing waits for the device before the last chunk is dispatched, except for the images of earlier chunks."""
    sampler, events = one_chunk[0], []
    ((chunk, program),) = sampler._programs[2, (), ()].items()

    class Images:
        def __init__(self, images):
            self.images = images

        def __array__(self, dtype=None, copy=None):
            events.append("fetched")
            return np.asarray(self.images)

    def run(*arguments):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(arguments))
        events.append("dispatched")
        return Images(program(*arguments))

    monkeypatch.setitem(sampler._programs[2, (), ()], chunk, run)
    sampler(*people, SCALES, 7, samples=3 * chunk // 5)
    assert "".join(event[0] for event in events) == "ddfdff"


def test_chunks_shrink_to_fit_the_memory(trained, people, one_chunk):
    ((chunk, program),) = one_chunk[0]._programs[2, (), ()].items()
    need = program.memory_analysis().temp_size_in_bytes
    small = Sampler(trained, chunk=10, memory=0.6 * need / 1e9)
    images = small(*people, SCALES, 7, samples=2)
    ((fewer, smaller),) = small._programs[2, (), ()].items()
    assert 1 <= fewer < chunk == 10
    assert smaller.memory_analysis().temp_size_in_bytes <= 0.6 * need
    assert np.abs(images.astype(int) - one_chunk[1].astype(int)).max() <= 1


def test_small_first_call_does_not_limit_later_chunks(trained, people):
    """After a call with one person, five people run in two chunks of four, not in five of one (fault 23)."""
    sampler = Sampler(trained, stages=("base",), chunk=4)
    batch, numbers = people
    first = {key: value[:1] for key, value in batch.items()}
    one = sampler(first, numbers[:1], SCALES[1:], 7)
    assert list(sampler._programs[1, (), ()]) == [1]
    five = sampler(batch, numbers, SCALES[1:], 7)
    assert list(sampler._programs[1, (), ()]) == [1, 4]
    assert np.abs(five[:, :1].astype(int) - one.astype(int)).max() <= 1
    three = {key: value[:3] for key, value in batch.items()}
    assert compilations(lambda: sampler(three, numbers[:3], SCALES[1:], 7)) == 0
    assert compilations(lambda: sampler(first, numbers[:1], SCALES[1:], 7)) == 0


PROGRAM = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from slf_jax.inference.people import person_number
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.trained import load
from tfrecords.reader import Clips, stack
clips = Clips({dataset!r}, "test")
chosen = [clips[i] for i in range(5)]
numbers = np.array([person_number(clip["clip_id"]) for clip in chosen])
sampler = Sampler(load({workdir!r}), chunk=10)
images = sampler(stack(chosen), numbers, ((0, 0), (2, 2)), 7, samples=2)
noise = sampler.first_noise(7, numbers, np.arange(5))
np.savez({out!r}, images=images, devices=sampler._mesh.size, **noise)
"""


@pytest.mark.slow
def test_eight_devices_sample_like_one(run, people, one_chunk, tmp_path):
    program = PROGRAM.format(dataset=run.data.dir, workdir=run.workdir, out=str(tmp_path / "eight.npz"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    eight = np.load(tmp_path / "eight.npz")
    assert eight["devices"] == 8
    assert np.abs(eight["images"].astype(int) - one_chunk[1].astype(int)).max() <= 1
    for name, noise in one_chunk[0].first_noise(7, people[1], np.arange(5)).items():
        np.testing.assert_array_equal(eight[name], noise)


def test_masked_input_has_no_effect_and_other_inputs_do(trained, people):
    batch, numbers = people
    louder = {**batch, "mel": batch["mel"] + 3}
    older = {**batch, "age": batch["age"] + 30}
    sampler = Sampler(trained)
    images = sampler(batch, numbers, SCALES, 7, without=("mel",))
    np.testing.assert_array_equal(sampler(louder, numbers, SCALES, 7, without=("mel",)), images)
    assert np.abs(sampler(older, numbers, SCALES, 7, without=("mel",))[1].astype(int) - images[1]).mean() > 0
    full = sampler(batch, numbers, SCALES, 7)
    assert np.abs(sampler(louder, numbers, SCALES, 7)[1].astype(int) - full[1]).mean() > 0
    assert compilations(lambda: sampler(batch, numbers, SCALES, 7, without=("age", "gender"))) == 0


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty"),
        (" , ", "empty"),
        ("1,-2", "at least 0"),
        ("0,nan", "finite"),
        ("0;1", "comma-separated"),
        ("1:2:3", "BASE:UPSAMPLER"),
        ("0,0,8", "--scales 0,0,8: 0 is given twice"),
        ("2,1,2.0", "2 is given twice"),
        ("4,4:4", "4 is given twice"),
        ("0,-0", "0 is given twice"),
        ("1,1.0000001", "1 is given twice"),
    ],
)
def test_invalid_scales_are_rejected(text, message):
    with pytest.raises(UserError, match=message):
        parse_scales(text)


def test_scales_are_parsed_and_formatted():
    scales = parse_scales("0, 2.5,4:1")
    assert scales == ((0, 0), (2.5, 2.5), (4, 1)) and [format_scale(s) for s in scales] == ["0", "2.5", "4:1"]


def test_first_clip_of_each_speaker_is_chosen(dataset):
    clips = Clips(dataset, "test")
    assert [clip["speaker_id"] for clip in choose_people(clips, 3)] == ["test0", "test1", "test2"]
    assert len(choose_people(clips, 100)) == 6


@pytest.mark.parametrize(
    "clip_id, name",
    [("p1/00001/2", "p1_00001_2"), ("../../etc/passwd", "_.._etc_passwd"), (".hidden", "hidden"), ("a b\0c", "a_b_c")],
)
def test_clip_ids_become_safe_file_names(clip_id, name):
    assert _file_name(clip_id) == name
    assert _file_name(".") and len(_file_name("x" * 999)) < 200
    assert json.dumps(_file_name("é" * 3)).isascii()
