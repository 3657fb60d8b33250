"""The speech frameworks: real models of random weights in each one's own format, on real speech."""

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
from extract import extractors, frameworks, random_weights
from extract.extractors.language import plain_name
from extract.media import CLIP_SAMPLES, decode_audio, fit_audio
from extract.pipeline import storable
from slf_common.errors import UserError
from tfrecords.schema import AUDIO_CONSTITUENTS, LABELS

ROOT = Path(__file__).parents[2]
LIBRISPEECH = ROOT.parent / "shared" / "data" / "librispeech_test_other"
NAMES = ("ecapa", "pyannote", "titanet", "speakernet", "language")
EMBEDDINGS = NAMES[:-1]


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """All models, tiny but for pyannote's."""
    out = tmp_path_factory.mktemp("weights") / "small"
    random_weights.write_all(out, small=True)
    return out


@pytest.fixture(scope="session")
def settings(weights) -> dict:
    """`config.extract` with those weights."""
    config = base.get_config().extract
    config.extractors = NAMES
    for name, place in (("titanet", "titanet.nemo"), ("speakernet", "speakernet.nemo")):
        config[name].weights = str(weights / place)
    for name in ("ecapa", "pyannote", "language"):
        config[name].weights = str(weights / name)
    return config.to_dict()


@pytest.fixture(scope="session")
def loaded(settings) -> dict:
    return dict(zip(NAMES, extractors.load(settings), strict=True))


@pytest.fixture(scope="session")
def speech(tmp_path_factory) -> np.ndarray:
    """Three people's speech, float32 [3, 384000]: LibriSpeech, else espeak-ng, else a buzz."""
    files = [sorted(folder.glob("*.flac"))[0] for folder in sorted(LIBRISPEECH.glob("*/"))[:3]]
    if not files and shutil.which("espeak-ng"):
        files = [tmp_path_factory.mktemp("speech") / f"{i}.wav" for i in range(3)]
        for file, pitch in zip(files, (30, 50, 70), strict=True):
            subprocess.run(["espeak-ng", "-p", str(pitch), "-w", file, "the quick brown fox jumps over it"], check=True)
    if files:
        return np.stack([fit_audio(decode_audio(file)) for file in files])
    return np.stack([fit_audio(voice(5, pitch=pitch)[0]) for pitch in (90, 150, 220)])


@pytest.mark.parametrize("name", NAMES)
def test_the_constituent_is_the_papers_and_says_where_it_comes_from(loaded, speech, name):
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
def test_a_batch_is_the_clips_one_by_one_and_again_the_same(loaded, settings, speech, name, monkeypatch):
    monkeypatch.setitem(frameworks.CLIPS, "cpu", len(speech))
    batch = loaded[name](speech)
    np.testing.assert_array_equal(batch, loaded[name](speech))
    (again,) = extractors.load(settings | {"extractors": (name,)})
    np.testing.assert_array_equal(batch, again(speech))
    assert again.constituent == loaded[name].constituent
    monkeypatch.undo()
    alone = np.concatenate([loaded[name](wave[None]) for wave in speech])
    np.testing.assert_allclose(batch, alone, rtol=1e-3, atol=1e-3 * np.abs(alone).max())


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_does_not_leak_into_its_neighbours(loaded, speech, name):
    mixed = np.stack([speech[0], np.zeros_like(speech[0]), np.full_like(speech[0], np.nan)])
    ours, silence, broken = loaded[name](mixed)
    np.testing.assert_allclose(ours, loaded[name](speech)[0], rtol=1e-3, atol=1e-3 * np.abs(ours).max())
    assert np.isfinite(silence).all()
    assert np.isnan(storable(broken[None])).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_shorter_than_every_window_is_repeated(loaded, speech, name):
    (brief,) = loaded[name](fit_audio(speech[0, : 16_000 * 6 // 10])[None])
    assert np.isfinite(brief).all()


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal within float16, as they are stored."""
    np.testing.assert_allclose(ours.astype(np.float16), theirs, rtol=2e-3, atol=2e-3 * np.abs(theirs).max())


def test_ecapa_equals_speechbrain(loaded, weights, speech):
    from speechbrain.inference.classifiers import EncoderClassifier

    place = str(weights / "ecapa")
    theirs = EncoderClassifier.from_hparams(source=place, overrides={"pretrained_path": place}, savedir=None)
    for wave, ours in zip(speech, loaded["ecapa"](speech), strict=True):
        close(ours, theirs.encode_batch(torch.from_numpy(wave))[0].numpy())


def test_language_equals_speechbrain(loaded, weights, speech):
    from speechbrain.inference.classifiers import EncoderClassifier

    place = str(weights / "language")
    theirs = EncoderClassifier.from_hparams(source=place, overrides={"pretrained_path": place}, savedir=None)
    assert set(loaded["language"].labels) == set(LABELS["language"])
    for wave, ours in zip(speech, loaded["language"](speech), strict=True):
        logprobs, _, _, (label,) = theirs.classify_batch(torch.from_numpy(wave))
        close(ours, logprobs.numpy())
        assert loaded["language"].labels[ours.argmax()] == plain_name(label)
        assert np.exp(ours).sum() == pytest.approx(1, abs=1e-4)


def test_titanet_and_speakernet_equal_nemo(loaded, weights, speech):
    from nemo.collections.asr.models import EncDecSpeakerLabelModel

    for name in ("titanet", "speakernet"):
        theirs = EncDecSpeakerLabelModel.restore_from(str(weights / f"{name}.nemo"), map_location="cpu").eval()
        for wave, ours in zip(speech, loaded[name](speech), strict=True):
            close(ours, theirs.infer_segment(wave)[0].detach().numpy())


def test_pyannotes_windows_equal_its_own_sliding_inference(loaded, weights, speech):
    from pyannote.audio import Inference, Model

    model = Model.from_pretrained(weights / "pyannote")
    ours = loaded["pyannote"](speech[:1])[0]
    file = {"waveform": torch.from_numpy(speech[:1]), "sample_rate": 16_000}
    close(ours[0], Inference(model, window="whole")(file))
    start = 1
    for length, hop, rows in ((12, 4, 4), (6, 2, 10), (3, 2, 11)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = Inference(model, window="sliding", duration=float(length), step=float(hop))(file)
        close(ours[start : start + rows], theirs.data[:rows])
        start += rows
    assert start == len(ours) == 26


def test_wespeaker_and_windows_by_config(settings, tmp_path, speech):
    random_weights.write_pyannote(tmp_path / "wespeaker", "WeSpeakerResNet34")
    chosen = {"weights": str(tmp_path / "wespeaker"), "windows": ((24, 24),)}
    titanet = settings["titanet"] | {"windows": ((12, 6), (3, 3))}
    wespeaker, windowed = extractors.load(
        settings | {"extractors": ("pyannote", "titanet"), "pyannote": chosen, "titanet": titanet}
    )
    assert wespeaker(speech[:1]).shape == (1, 1, 256) and wespeaker.constituent.width == 256
    assert windowed(speech[:2]).shape == (2, 3 + 8, 192) and windowed.constituent.windows == "12/6, 3/3 s"
    # The first window of 12 s is the embedding of those 12 s.
    (alone,) = extractors.load(settings | {"extractors": ("titanet",)})
    repeated = fit_audio(speech[0, : 12 * 16_000])
    assert repeated.shape == (CLIP_SAMPLES,)
    assert not np.allclose(windowed(speech[:1])[0, 0], windowed(speech[:1])[0, 1])
    np.testing.assert_array_equal(windowed(repeated[None])[0, 0], windowed(speech[:1])[0, 0])
    assert alone(speech[:1]).shape == (1, 1, 192)


def test_voxlingua_by_config_brings_its_own_languages(settings, tmp_path, speech):
    labels = ["ab: Abkhazian", "en: English", "uk: Ukrainian"]
    random_weights.write_language(tmp_path / "voxlingua", True, labels)
    chosen = settings | {"extractors": ("language",), "language": {"weights": str(tmp_path / "voxlingua")}}
    (model,) = extractors.load(chosen)
    assert model.labels == ("abkhazian", "english", "ukrainian") and model(speech).shape == (3, 1, 3)


def test_one_changed_number_changes_the_digest(settings, loaded, tmp_path, weights):
    shutil.copytree(weights / "ecapa", tmp_path / "ecapa")
    state = torch.load(tmp_path / "ecapa" / "embedding_model.ckpt", weights_only=True)
    next(iter(state.values())).view(-1)[0] += 1e-3
    torch.save(state, tmp_path / "ecapa" / "embedding_model.ckpt")
    moved = settings["ecapa"] | {"weights": str(tmp_path / "ecapa")}
    (changed,) = extractors.load(settings | {"extractors": ("ecapa",), "ecapa": moved})
    assert changed.constituent.weights != loaded["ecapa"].constituent.weights


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_missing_or_damaged_are_told_in_one_line(settings, name, tmp_path, monkeypatch):
    def message(weights: str) -> str:
        with pytest.raises(UserError) as error:
            extractors.load(settings | {"extractors": (name,), name: settings[name] | {"weights": weights}})
        assert "\n" not in str(error.value)
        return str(error.value)

    nowhere = str(tmp_path / "nowhere")
    assert f"{name}: no weights at {nowhere}; config.extract.{name}.weights takes a path" in message(nowhere)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "hyperparams.yaml").write_text("a: [")
    (tmp_path / "bad" / "pytorch_model.bin").write_bytes(b"no weights")
    assert f"{name}: {tmp_path / 'bad'} cannot be loaded" in message(str(tmp_path / "bad"))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    missing = message("someone/no-such-model")
    assert constants.HF_HUB_CACHE in missing and "hf download someone/no-such-model" in missing


def test_a_gated_model_names_its_page_and_the_variable_and_no_token(settings, monkeypatch):
    from huggingface_hub.errors import GatedRepoError
    from pyannote.audio import Model

    def refuse(*_, **__):
        raise GatedRepoError("401: token hf_secret", response=type("R", (), {"headers": {}, "request": None})())

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(Model, "from_pretrained", refuse)
    with pytest.raises(UserError, match=r"https://hf.co/pyannote/embedding .*HF_TOKEN") as error:
        extractors.load(base.get_config().extract.to_dict() | {"extractors": ("pyannote",)})
    assert "hf_secret" not in str(error.value)


def test_all_frameworks_import_in_one_process_and_none_speaks_or_calls_home():
    code = """
import os, sys
from extract.extractors import EXTRACTORS
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
