"""Exported programs: the sampler gives the same faces, names its platforms; training steps can be exported, too."""

import builtins

import jax
import jax.export
import numpy as np
import pytest
import safetensors.flax

from slf_common import cli
from slf_common.errors import UserError
from slf_jax import distributed, export
from slf_jax.cascade.images import to_float
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.stage import LowResCond, Noise
from slf_jax.diffusion.guidance import area_average
from slf_jax.inference import exported
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.trained import load
from slf_jax.models.conditioning import Cond
from slf_jax.training.optimizer import make_optimizer
from slf_jax.training.settings import train_settings
from slf_jax.training.state import TrainState, init_state
from slf_jax.training.step import make_step

ACCELERATORS = ("cuda", "tpu")


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    pytest.importorskip("flatbuffers")
    out = tmp_path_factory.mktemp("exports") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_open_data", lambda *_: None)  # no examples, which take long to draw
        export.main(["--workdir", run.workdir, "--out", str(out), "--platforms", "cpu,cuda,tpu"])
    return out


@pytest.mark.slow
def test_the_sampler_gives_the_faces_of_the_run(run, folder, batch):
    sampler = jax.export.deserialize(bytearray((folder / exported.PROGRAM).read_bytes()))
    assert sampler.platforms == ("cpu", "cuda", "tpu")
    weights = safetensors.flax.load_file(folder / exported.WEIGHTS)
    trained, people = load(run.workdir), np.arange(5, 8, dtype=np.int32)
    clips, scales = {name: value[:3] for name, value in batch.items()}, np.array([(0, 0), (3, 2)], np.float32)
    thumbnail = np.array(area_average(to_float(clips["face"]), 8))
    inputs = {name: clips[name] for name in trained.system.inputs}
    found = np.asarray(sampler.call(weights, inputs, thumbnail, scales, people, 7))
    draw = Sampler(trained)
    expected = draw(clips, people, scales, 7)[:, :, 0]
    assert found.shape == expected.shape == (2, 3, 128, 128, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1
    # Other numbers of people and scales, and no thumbnail.
    one = {name: value[:1] for name, value in inputs.items()}
    found = np.asarray(sampler.call(weights, one, np.full_like(thumbnail[:1], np.nan), scales[1:], people[:1], 7))
    expected = draw(clips, people, scales, 7, use_thumbnail=False)[1:, :1, 0]
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("text", ["", "gpu", "cpu,cpu", "cpu, tpu"])
def test_platforms_are_checked(text, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: export.main(["--workdir", "unused", "--out", "unused", "--platforms", text]))
    reason = "must be some of cpu, cuda, rocm, tpu, with commas between"
    assert end.value.code == 2 and capsys.readouterr().err == f"error: --platforms {text}: {reason}\n"


def test_missing_flatbuffers_is_one_line(monkeypatch, tmp_path):
    actual = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "flatbuffers":
            raise ImportError(name)
        return actual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match="^--platforms needs flatbuffers: pip install"):
        export.main(["--workdir", str(tmp_path), "--out", str(tmp_path / "out"), "--platforms", "cpu"])


def test_our_pytrees_are_serialised():
    pytest.importorskip("flatbuffers")
    x = np.arange(3, dtype=np.float32)
    cond = Cond(x, x, (x, x), (x, x))
    tree = cond, LowResCond(x, x, x), Noise(x, x), TrainState(x, x, x, {"w": x}, {"w": x}, ())
    double = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree))
    found = jax.export.deserialize(jax.export.export(double)(tree).serialize()).call(tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    assert all(np.array_equal(leaf, 2 * x) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", STAGES)
def test_training_steps_lower_for_accelerators(config, system, batch, name):
    settings, mesh = train_settings(config, name), distributed.make_mesh()
    optimizer, schedule = make_optimizer(settings)
    shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)  # noqa: E731
    count = mesh.size * 4
    records = {k: np.resize(v, (1, count, *v.shape[1:])) for k, v in batch.items() if v.dtype.kind not in "OU"}
    records |= {"batch_index": np.zeros((1, count), np.int32), "stop": np.zeros((1, count), bool)}
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: init_state(system.stages[name], optimizer, key))
    step = distributed.compile_steps(make_step(system, name, optimizer, schedule, settings), mesh, "shard_map")
    found = jax.export.export(step, platforms=ACCELERATORS)(state, shapes(records), shapes(key))
    assert found.platforms == ACCELERATORS and found.nr_devices == mesh.size
    assert "stablehlo.convolution" in found.mlir_module()
