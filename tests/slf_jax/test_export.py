"""Exported systems: equal to the run, portable, and refused in one line where they are damaged."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from slf_common import cli
from slf_common.errors import UserError
from slf_jax import evaluate, export, sample, sweep
from slf_jax.inference import exported, hub
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.trained import PRETRAINED, load
from tfrecords.reader import Clips, stack


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "model"
    export.main(["--workdir", run.workdir, "--out", str(out), "--about", "random numbers."])
    return out


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def faces_of(source, run):
    clips = Clips(run.data.dir, "test")
    batch = stack([clips[i] for i in range(2)])
    return Sampler(load(source))(batch, np.arange(2), [(0.0, 0.0), (2.0, 2.0)], 0)


def test_weights_and_faces_are_those_of_the_run(run, folder):
    before, after = load(run.workdir), load(folder)
    assert before.digests == after.digests and before.steps == after.steps == {"base": 40, "upsampler": 8}
    assert jax.tree.all(jax.tree.map(np.array_equal, before.params, after.params))
    assert np.array_equal(faces_of(run.workdir, run), faces_of(folder, run))


def test_bfloat16_is_half_the_size_and_close(run, folder, tmp_path):
    export.main(["--workdir", run.workdir, "--out", str(tmp_path), "--dtype", "bfloat16"])
    sizes = [(path / exported.WEIGHTS).stat().st_size for path in (tmp_path, folder)]
    assert sizes[0] < 0.6 * sizes[1]
    error = faces_of(tmp_path, run).astype(float) - faces_of(folder, run)
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 45


def test_an_export_can_be_exported_again(folder, tmp_path):
    export.main(["--workdir", str(folder), "--out", str(tmp_path / "again")])
    assert load(tmp_path / "again").digests == load(folder).digests


def test_the_card_describes_the_run(run, folder):
    card = (folder / exported.CARD).read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: other\nlibrary_name: slf-jax\n") and "Data: random numbers." in card
    assert "mel, age, gender" in card and "| steps | 40 | 8 |" in card and load(folder).digests["base"] in card
    assert "| mel | 111 × 768 |" in card and "pyaudioanalysis" not in card  # not an input of this system
    assert (folder / exported.EXAMPLES).stat().st_size > 1000 and exported.EXAMPLES in card


def test_no_path_of_this_machine_is_published(run, tmp_path):
    """Neither in the config nor in the provenance."""
    trained = load(run.workdir)
    trained.meta.config.extract.ecapa.weights = "/home/me/ecapa"
    trained.meta.config.extract.deepface.home = "~/me"
    provenance = {"extractors": {"ecapa": {"weights": "~/models/ecapa"}, "pyannote": {"weights": "pyannote/embedding"}}}
    trained.meta.provenance.update(provenance)
    exported.write(tmp_path, trained.meta, trained.params, trained.steps, "float32")
    text = (tmp_path / exported.CONFIG).read_text()
    for private in (run.workdir, run.data.dir, "/home/me", "~/me", "~/models", os.getcwd()):
        assert private not in text
    config = json.loads(text)
    assert config["provenance"]["extractors"] == {
        "ecapa": {"weights": "ecapa"}, "pyannote": {"weights": "pyannote/embedding"},
    }  # fmt: skip


def test_verbs_take_an_export_with_a_dataset(run, folder, tmp_path, monkeypatch):
    before = sorted(path.name for path in folder.iterdir())
    sweep.main(
        ["--workdir", str(folder), "--data", run.data.dir, "--people", "2", "--scales", "0,2", "--out", str(tmp_path)]
    )
    assert json.loads((tmp_path / "metrics.json").read_text())["checkpoints"] == load(folder).digests
    monkeypatch.chdir(tmp_path)
    sample.main(["--workdir", str(folder), "--data", run.data.dir, "--people", "1"])
    assert (tmp_path / "faces" / "contact_sheet.png").exists()  # not in the exported folder
    evaluate.main(["--workdir", str(folder), "--data", run.data.dir, "--scales", "1", "--same-clip", "--people", "4"])
    assert (tmp_path / "evaluation" / "results.json").exists()
    assert sorted(path.name for path in folder.iterdir()) == before
    with pytest.raises(UserError, match="comes without data; give a dataset folder with --data"):
        sample.main(["--workdir", str(folder)])
    with pytest.raises(UserError, match="an exported system has one checkpoint; leave out --checkpoint best"):
        sample.main(["--workdir", str(folder), "--checkpoint", "best"])


def damage(copy, name, change):
    path = copy / name
    path.write_bytes(change(path.read_bytes()))


def edit(**changes):
    return lambda data: json.dumps({**json.loads(data), **changes}).encode()


@pytest.mark.parametrize(
    "name, change, reason",
    [
        (exported.WEIGHTS, lambda data: data[:1000], "damaged, or not a safetensors file"),
        (exported.WEIGHTS, lambda data: data[:-3], "damaged, or not a safetensors file"),
        (exported.WEIGHTS, lambda data: b"", "damaged, or not a safetensors file"),
        (exported.WEIGHTS, lambda data: data[:-4] + b"\1\2\3\4", "damaged .stage '.*' does not match its digest"),
        (exported.WEIGHTS, lambda data: data.replace(b'"base/', b'"bass/', 1), "is missing, must be"),
        (exported.CONFIG, lambda data: data[:100], "not the config of an exported system"),
        (exported.CONFIG, lambda data: b"{}", "not the config of an exported system"),
        (exported.CONFIG, lambda data: b"[]", "not the config of an exported system"),
        (exported.CONFIG, edit(format=99), "format 99, but this version reads 1"),
        (exported.CONFIG, edit(stages={}), "does not contain the stage 'base'"),
    ],
)
def test_damaged_and_foreign_files_are_one_line(copy, name, change, reason):
    damage(copy, name, change)
    with pytest.raises(UserError, match=reason) as error:
        load(copy)
    assert str(copy) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", [exported.WEIGHTS, exported.CONFIG])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{copy / name}: cannot be read .No such file"):
        load(copy)


def test_weights_of_another_model_are_refused(copy):
    config = json.loads((copy / exported.CONFIG).read_text())
    config["config"]["model"]["base"]["width"] = 32
    (copy / exported.CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"does not fit .*config.json: base/.* is \(.*\), must be \("):
        load(copy)


def test_other_files_are_not_overwritten(run, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=f"{tmp_path}: holds other files .thesis.tex.; choose an empty or new folder"):
        export.main(["--workdir", run.workdir, "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_system_is_loaded_from_the_hubs_cache(offline, folder):
    snapshot = offline / "models--me--model" / "snapshots" / "0123abc"
    shutil.copytree(folder, snapshot)
    (offline / "models--me--model" / "refs").mkdir()
    (offline / "models--me--model" / "refs" / "main").write_text("0123abc")
    assert load("hf://me/model").digests == load(folder).digests
    (snapshot / exported.WEIGHTS).unlink()
    with pytest.raises(UserError, match="hf://me/model: holds no exported system"):
        load("hf://me/model")


def test_without_a_network_the_hub_is_one_line(offline, folder):
    with pytest.raises(UserError, match="hf://me/model: cannot be downloaded .*HF_TOKEN") as error:
        load("hf://me/model")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=f"--push me/model: cannot be uploaded .*; the export is in {folder}"):
        hub.upload(folder, "me/model")


@pytest.mark.parametrize("source", ["hf://", "hf://model", "hf://a/b/c", "hf://../x", "hf://a/b@"])
def test_an_address_on_the_hub_is_checked(source, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: export.main(["--workdir", source, "--out", "unused"]))
    assert end.value.code == 2 and f"error: {source}: " in capsys.readouterr().err


def test_the_shipped_system_loads_and_is_small():
    trained = load(PRETRAINED)
    assert trained.steps == {"base": 600, "upsampler": 900} and "mel" in trained.system.inputs
    assert sum(path.stat().st_size for path in PRETRAINED.iterdir()) < 10e6
    assert set(trained.meta.provenance["extractors"]) == {"pyaudioanalysis", "mel"}
