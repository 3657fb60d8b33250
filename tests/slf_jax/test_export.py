"""Exported systems: equal to the run, portable, and refused in one line where they are damaged."""

import json
import os
import shutil

import hub_server
import jax
import numpy as np
import pytest
from PIL import Image

from slf_common import cli
from slf_common.config import load_config
from slf_common.errors import UserError
from slf_jax import evaluate, export, sample, sweep
from slf_jax.cascade.sizes import STAGES
from slf_jax.inference import exported, model_card
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


@pytest.mark.slow
def test_weights_and_faces_are_those_of_the_run(run, folder):
    before, after = load(run.workdir), load(folder)
    assert before.digests == after.digests and before.steps == after.steps == {"base": 40, "upsampler": 8}
    assert jax.tree.all(jax.tree.map(np.array_equal, before.params, after.params))
    assert np.array_equal(faces_of(run.workdir, run), faces_of(folder, run))


def test_bfloat16_is_half_the_size_and_close(run, folder, tmp_path):
    (tmp_path / exported.PROGRAM).touch()  # an earlier export's
    export.main(["--workdir", run.workdir, "--out", str(tmp_path), "--dtype", "bfloat16"])
    assert not (tmp_path / exported.PROGRAM).exists()
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


def test_the_card_reports_only_results_of_these_weights(tmp_path):
    """A run may have been trained on since it was evaluated."""
    path = tmp_path / "metrics.json"
    for text, found in (
        ('{"checkpoints": {"base": "1"}, "people": 4}', True), ('{"checkpoints": {"base": "2"}}', False), ("{}", False),
        ("[", False),
    ):  # fmt: skip
        path.write_text(text)
        assert (model_card.read_results(path, {"base": "1"}) is not None) == found
    assert model_card.read_results(tmp_path / "none.json", {"base": "1"}) is None


def test_examples_show_no_real_face(run, folder):
    """Thumbnail and four scales; a dataset's faces must not be shared with the system."""
    with Image.open(folder / exported.EXAMPLES) as picture:
        assert picture.size == (5 * 130, 20 + 2 * 130)


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


@pytest.mark.slow
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
def server(tmp_path, monkeypatch):
    """A hub on this machine, a token for it, and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with hub_server.serve() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server


def test_a_pushed_system_is_loaded_from_the_hub(folder, server, tmp_path, capsys, monkeypatch):
    export.main(["--workdir", str(folder), "--out", str(tmp_path / "model"), "--push", "some-one/faces", "--private"])
    assert f"{server.url}/some-one/faces" in capsys.readouterr().out
    assert set(server.repos["some-one/faces"]) == set(exported.FILES) - {
        exported.EXAMPLES,
        exported.PROGRAM,
    }  # no data at hand
    assert server.private == {"some-one/faces"} and server.tokens == {"Bearer hf_secret"}
    assert load("hf://some-one/faces").digests == load(folder).digests
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in ("hf://some-one/faces", f"hf://some-one/faces@{hub_server.REVISION}"):  # from the cache
        assert load(source).digests == load(folder).digests
    with pytest.raises(UserError, match="hf://some-one/voices: not in the cache, and the hub cannot be reached"):
        load("hf://some-one/voices")


def test_what_the_hub_does_not_have_is_one_line(server):
    with pytest.raises(UserError, match="hf://no/model: unknown, private or gated; check the name, and set HF_TOKEN"):
        load("hf://no/model")
    server.repos["other/files"] = {exported.CONFIG: b"{}"}
    with pytest.raises(UserError, match=f"hf://other/files: not an exported .* {exported.WEIGHTS} is missing"):
        load("hf://other/files")


def test_a_push_that_fails_leaves_the_export(folder, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    flags = ["--workdir", str(folder), "--out", str(tmp_path / "model"), "--push"]
    with pytest.raises(
        UserError, match="--push a/b: the hub cannot be used .*; the export itself is complete"
    ) as error:
        export.main([*flags, "a/b"])
    assert "\n" not in str(error.value) and load(tmp_path / "model").digests == load(folder).digests
    with pytest.raises(UserError, match="--push me: must be owner/name"):
        export.main([*flags, "me"])
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="--push a/b: no token; set the environment variable HF_TOKEN"):
        export.main([*flags, "a/b"])


@pytest.mark.parametrize("source", ["hf://", "hf://model", "hf://a/b/c", "hf://../x", "hf://a/b@"])
def test_an_address_on_the_hub_is_checked(source, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: export.main(["--workdir", source, "--out", "unused"]))
    assert end.value.code == 2 and f"error: {source}: " in capsys.readouterr().err


def test_the_shipped_system_is_the_demos_and_is_small():
    trained, demo = load(PRETRAINED), load_config("configs/demo.py")
    assert trained.steps == {name: demo.train[name].steps for name in STAGES} and "mel" in trained.system.inputs
    for group in ("model", "diffusion", "sample"):
        assert json.loads(trained.meta.config[group].to_json()) == json.loads(demo[group].to_json()), group
    assert sum(path.stat().st_size for path in PRETRAINED.iterdir()) < 10e6
    assert set(trained.meta.provenance["extractors"]) == {"pyaudioanalysis", "mel"}
