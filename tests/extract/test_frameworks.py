"""The extractors with weights: real models with random weights in each framework's format, on real speech."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from recordings import voice

pytest.importorskip("nemo", reason="needs the extra `extract`")

import torch

from configs import base
from extract import frameworks, random_weights
from extract.extractors import registry
from extract.extractors.language import plain_name
from extract.extractors.values import storable
from extract.media import CLIP_SAMPLES, decode_audio, fit_audio
from slf_common.errors import UserError
from tfrecords.schema import AUDIO_CONSTITUENTS, LABELS

pytestmark = pytest.mark.frameworks
ROOT = Path(__file__).parents[2]
LIBRISPEECH = os.environ.get("LIBRISPEECH")  # a folder of speakers' folders with FLAC files, optional
NAMES = ("ecapa", "pyannote", "titanet", "speakernet", "language")
EMBEDDINGS = NAMES[:-1]


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """All models; all but pyannote's are tiny."""
    out = tmp_path_factory.mktemp("weights") / "small"
    random_weights.write_all(out, small=True)
    return out


@pytest.fixture(scope="session")
def settings(weights) -> dict:
    """`config.extract` with those weights."""
    config = base.get_config().extract
    config.extractors = NAMES
    for name in ("titanet", "speakernet"):
        config[name].weights = str(weights / f"{name}.nemo")
    for name in ("ecapa", "pyannote", "language"):
        config[name].weights = str(weights / name)
    return config.to_dict()


@pytest.fixture(scope="session")
def loaded(settings) -> dict:
    return dict(zip(NAMES, registry.load(settings), strict=True))


@pytest.fixture(scope="session")
def speech(tmp_path_factory) -> np.ndarray:
    """Speech of three people, float32 [3, 384000]: LibriSpeech, or espeak-ng, or a buzz."""
    speakers = sorted(Path(LIBRISPEECH).glob("*/")) if LIBRISPEECH else []
    files = [sorted(folder.rglob("*.flac"))[0] for folder in speakers[:3]]
    if not files and shutil.which("espeak-ng"):
        files = [tmp_path_factory.mktemp("speech") / f"{i}.wav" for i in range(3)]
        for file, pitch in zip(files, (30, 50, 70), strict=True):
            subprocess.run(["espeak-ng", "-p", str(pitch), "-w", file, "the quick brown fox jumps over it"], check=True)
    if files:
        return np.stack([fit_audio(decode_audio(file)) for file in files])
    return np.stack([fit_audio(voice(5, pitch=pitch)[0]) for pitch in (90, 150, 220)])


@pytest.mark.parametrize("name", NAMES)
def test_the_constituent_matches_the_paper_and_has_its_provenance(loaded, speech, name):
    constituent = loaded[name].constituent
    if name in EMBEDDINGS:
        (paper,) = [part for part in AUDIO_CONSTITUENTS if part.name == name]
        assert (constituent.rows, constituent.width, constituent.kind) == (paper.rows, paper.width, paper.kind)
    assert constituent.extractor.split()[-1][0].isdigit() and len(constituent.weights) == 16 and constituent.windows
    values = loaded[name](speech)
    assert values.dtype == np.float32 and values.shape == (3, constituent.rows, constituent.width)
    assert np.isfinite(values).all() and np.array_equal(storable(values), values)
    assert not np.allclose(values[0], values[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_single_clips_and_is_deterministic(loaded, settings, speech, name, monkeypatch):
    monkeypatch.setitem(frameworks.BATCH_SIZES, "cpu", len(speech))
    batch = loaded[name](speech)
    np.testing.assert_array_equal(batch, loaded[name](speech))
    (again,) = registry.load(settings | {"extractors": (name,)})
    np.testing.assert_array_equal(batch, again(speech))
    assert again.constituent == loaded[name].constituent
    monkeypatch.undo()
    alone = np.concatenate([loaded[name](wave[None]) for wave in speech])
    np.testing.assert_allclose(batch, alone, rtol=1e-3, atol=1e-3 * np.abs(alone).max())


@pytest.mark.parametrize("name", NAMES)
def test_clips_of_a_batch_are_independent(loaded, speech, name):
    mixed = np.stack([speech[0], np.zeros_like(speech[0]), np.full_like(speech[0], np.nan)])
    ours, silence, broken = loaded[name](mixed)
    np.testing.assert_allclose(ours, loaded[name](speech)[0], rtol=1e-3, atol=1e-3 * np.abs(ours).max())
    assert np.isfinite(silence).all()
    assert np.isnan(storable(broken[None])).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_shorter_than_every_window_is_repeated(loaded, speech, name):
    (brief,) = loaded[name](fit_audio(speech[0, : 16_000 * 6 // 10])[None])
    assert np.isfinite(brief).all()


def assert_equal_in_float16(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Asserts equality up to the float16 of the records."""
    np.testing.assert_allclose(ours.astype(np.float16), theirs, rtol=2e-3, atol=2e-3 * np.abs(theirs).max())


def test_ecapa_equals_speechbrain(loaded, weights, speech):
    from speechbrain.inference.classifiers import EncoderClassifier

    folder = str(weights / "ecapa")
    theirs = EncoderClassifier.from_hparams(source=folder, overrides={"pretrained_path": folder}, savedir=None)
    for wave, ours in zip(speech, loaded["ecapa"](speech), strict=True):
        assert_equal_in_float16(ours, theirs.encode_batch(torch.from_numpy(wave))[0].numpy())


def test_language_equals_speechbrain(loaded, weights, speech):
    from speechbrain.inference.classifiers import EncoderClassifier

    folder = str(weights / "language")
    theirs = EncoderClassifier.from_hparams(source=folder, overrides={"pretrained_path": folder}, savedir=None)
    assert set(loaded["language"].labels) == set(LABELS["language"])
    for wave, ours in zip(speech, loaded["language"](speech), strict=True):
        logprobs, _, _, (label,) = theirs.classify_batch(torch.from_numpy(wave))
        assert_equal_in_float16(ours, logprobs.numpy())
        assert loaded["language"].labels[ours.argmax()] == plain_name(label)
        assert np.exp(ours).sum() == pytest.approx(1, abs=1e-4)


def test_titanet_and_speakernet_equal_nemo(loaded, weights, speech):
    from nemo.collections.asr.models import EncDecSpeakerLabelModel

    for name in ("titanet", "speakernet"):
        theirs = EncDecSpeakerLabelModel.restore_from(str(weights / f"{name}.nemo"), map_location="cpu").eval()
        for wave, ours in zip(speech, loaded[name](speech), strict=True):
            assert_equal_in_float16(ours, theirs.infer_segment(wave)[0].detach().numpy())


def test_pyannotes_windows_equal_its_own_sliding_inference(loaded, weights, speech):
    from pyannote.audio import Inference, Model

    model = Model.from_pretrained(weights / "pyannote")
    ours = loaded["pyannote"](speech[:1])[0]
    file = {"waveform": torch.from_numpy(speech[:1]), "sample_rate": 16_000}
    assert_equal_in_float16(ours[0], Inference(model, window="whole")(file))
    start = 1
    for length, hop, rows in ((12, 4, 4), (6, 2, 10), (3, 2, 11)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = Inference(model, window="sliding", duration=float(length), step=float(hop))(file)
        assert_equal_in_float16(ours[start : start + rows], theirs.data[:rows])
        start += rows
    assert start == len(ours) == 26


def test_wespeaker_and_windows_can_be_configured(settings, tmp_path, speech):
    random_weights.write_pyannote(tmp_path / "wespeaker", "WeSpeakerResNet34")
    chosen = {"weights": str(tmp_path / "wespeaker"), "windows": ((24, 24),)}
    titanet = settings["titanet"] | {"windows": ((12, 6), (3, 3))}
    wespeaker, windowed = registry.load(
        settings | {"extractors": ("pyannote", "titanet"), "pyannote": chosen, "titanet": titanet}
    )
    assert wespeaker(speech[:1]).shape == (1, 1, 256) and wespeaker.constituent.width == 256
    assert windowed(speech[:2]).shape == (2, 3 + 8, 192) and windowed.constituent.windows == "12/6, 3/3 s"
    # The first window of 12 s gives the embedding of those 12 s.
    (alone,) = registry.load(settings | {"extractors": ("titanet",)})
    repeated = fit_audio(speech[0, : 12 * 16_000])
    assert repeated.shape == (CLIP_SAMPLES,)
    assert not np.allclose(windowed(speech[:1])[0, 0], windowed(speech[:1])[0, 1])
    np.testing.assert_array_equal(windowed(repeated[None])[0, 0], windowed(speech[:1])[0, 0])
    assert alone(speech[:1]).shape == (1, 1, 192)


def test_voxlingua_has_its_own_languages(settings, tmp_path, speech):
    labels = ["ab: Abkhazian", "en: English", "uk: Ukrainian"]
    random_weights.write_language(tmp_path / "voxlingua", True, labels)
    chosen = settings | {"extractors": ("language",), "language": {"weights": str(tmp_path / "voxlingua")}}
    (model,) = registry.load(chosen)
    assert model.labels == ("abkhazian", "english", "ukrainian") and model(speech).shape == (3, 1, 3)


def test_one_changed_number_changes_the_digest(settings, loaded, tmp_path, weights):
    shutil.copytree(weights / "ecapa", tmp_path / "ecapa")
    state = torch.load(tmp_path / "ecapa" / "embedding_model.ckpt", weights_only=True)
    next(iter(state.values())).view(-1)[0] += 1e-3
    torch.save(state, tmp_path / "ecapa" / "embedding_model.ckpt")
    moved = settings["ecapa"] | {"weights": str(tmp_path / "ecapa")}
    (changed,) = registry.load(settings | {"extractors": ("ecapa",), "ecapa": moved})
    assert changed.constituent.weights != loaded["ecapa"].constituent.weights


@pytest.mark.parametrize("name", NAMES)
def test_missing_or_damaged_weights_are_reported_in_one_line(settings, name, tmp_path, monkeypatch):
    def message(weights: str) -> str:
        with pytest.raises(UserError) as error:
            registry.load(settings | {"extractors": (name,), name: settings[name] | {"weights": weights}})
        assert "\n" not in str(error.value)
        return str(error.value)

    nowhere = str(tmp_path / "nowhere")
    assert f"{name}: no weights at {nowhere}; config.extract.{name}.weights must be a path" in message(nowhere)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "hyperparams.yaml").write_text("a: [")
    (tmp_path / "bad" / "pytorch_model.bin").write_bytes(b"no weights")
    assert f"{name}: {tmp_path / 'bad'} cannot be loaded" in message(str(tmp_path / "bad"))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    missing = message("someone/no-such-model")
    assert constants.HF_HUB_CACHE in missing and "hf download someone/no-such-model" in missing


def test_a_gated_model_is_reported_with_page_and_variable_but_without_the_token(settings, monkeypatch):
    from huggingface_hub.errors import GatedRepoError
    from pyannote.audio import Model

    def refuse(*_, **__):
        raise GatedRepoError("401: token hf_secret", response=type("R", (), {"headers": {}, "request": None})())

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(Model, "from_pretrained", refuse)
    with pytest.raises(UserError, match=r"https://hf.co/pyannote/embedding .*HF_TOKEN") as error:
        registry.load(base.get_config().extract.to_dict() | {"extractors": ("pyannote",)})
    assert "hf_secret" not in str(error.value)


def test_all_frameworks_import_in_one_process_without_output_or_telemetry():
    code = """
import os, sys
from extract.extractors.registry import EXTRACTORS
import importlib
for entry in EXTRACTORS.values():
    importlib.import_module(entry.module)
from extract import deepface
deepface.start({"home": "", "engine": "pytorch"})
import jax, tensorflow_datasets
assert os.environ["PYANNOTE_METRICS_ENABLED"] == "0" and os.environ["WANDB_MODE"] == "disabled"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
