"""Times each extractor against plain calls of its framework, and the whole extraction pipeline.

    python -m extract.random_weights --out weights          # full-sized networks; no download
    python benchmarks/extraction.py --weights weights --clips 16

The plain calls take one clip at a time. Prints the seconds per clip of both and their ratio (medians of alternating
repeats); without --weights, only for the extractors that need none, in CPU time. Then runs the pipeline with all
extractors, and with those that need no weights on about 100 and 1,000 clips; for each run it prints clips per second,
the share of time outside the extractors, bytes per clip and peak memory. Clips are synthetic; speed does not depend on
content. `benchmarks/faces.py` times the other detectors on real pictures.
"""

from __future__ import annotations

import argparse
import functools
import logging
import multiprocessing
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import ml_collections
import numpy as np

from configs import base
from extract import dataset, deepface
from extract.clips import find_clips
from extract.extractors.registry import load
from extract.faces import find_face, whole_frame
from extract.frameworks import keep_memory, quiet
from extract.librosa_cache import import_librosa
from extract.media import CLIP_SAMPLES, SAMPLE_RATE
from extract.talkers.population import generate

Calls = dict[str, Callable[[np.ndarray], object]]  # each takes the waveforms of all clips
FRAME = (224, 224, 3)
WHOLE = {"skip": whole_frame}


def settings(weights: Path) -> ml_collections.ConfigDict:
    """Returns `config.extract` with paths to full-sized networks with random weights."""
    config = base.get_config().extract
    for name in ("ecapa", "pyannote", "language"):
        config[name].weights = str(weights / name)
    for name in ("titanet", "speakernet"):
        config[name].weights = str(weights / f"{name}.nemo")
    config.deepface.home = str(weights / "faces")
    return config


@functools.cache
def our_calls(weights: Path) -> Calls:
    """Returns calls of this package's extractors, face detector and attribute estimator."""
    keep_memory()
    config = settings(weights)
    config.extractors = (*config.extractors, "ge2e")
    deepface.start(config.deepface)
    estimator = deepface.AttributeEstimator(config.deepface.estimate)
    detector = deepface.DeepFaceDetector(config.detector)
    loaded = load(config.to_dict())
    return {
        **dict(zip(config.extractors, loaded, strict=True)),
        config.detector: lambda waves: _for_each(detector, frames(len(waves))),
        "attributes": lambda waves: estimator([find_face([frame], WHOLE) for frame in frames(len(waves))]),
    }


@functools.cache
def plain_calls(weights: Path) -> Calls:
    """Returns plain calls of each framework, one per clip (and per window length)."""
    deepface.start(settings(weights).deepface)
    import torch

    warnings.simplefilter("ignore")
    logging.getLogger("speechbrain").setLevel(logging.ERROR)
    with quiet():
        from deepface import DeepFace
        from nemo.collections.asr.models import EncDecSpeakerLabelModel
        from pyannote.audio import Inference, Model
        from speechbrain.inference.classifiers import EncoderClassifier

        def speechbrain(name: str) -> EncoderClassifier:
            folder = str(weights / name)
            return EncoderClassifier.from_hparams(folder, overrides={"pretrained_path": folder}, savedir=None)

        def nemo(name: str) -> EncDecSpeakerLabelModel:
            return EncDecSpeakerLabelModel.restore_from(str(weights / f"{name}.nemo"), map_location="cpu").eval()

        ecapa, language = speechbrain("ecapa"), speechbrain("language")
        titanet, speakernet = nemo("titanet"), nemo("speakernet")
        model = Model.from_pretrained(weights / "pyannote")
    slides = [Inference(model, window="sliding", duration=d, step=s) for d, s in settings(weights).pyannote.windows]
    (ge2e,) = load({"extractors": ("ge2e",), "ge2e": settings(weights).ge2e.to_dict()})

    def pyannote(wave: np.ndarray) -> None:
        for slide in slides:
            slide({"waveform": torch.from_numpy(wave[None]), "sample_rate": SAMPLE_RATE})

    def detect(frame: np.ndarray) -> None:
        DeepFace.extract_faces(frame, detector_backend="retinaface", enforce_detection=False)

    def analyze(face: np.ndarray) -> None:
        DeepFace.analyze(face, ("age", "gender", "race"), detector_backend="skip", silent=True)

    calls = {
        "ecapa": lambda wave: ecapa.encode_batch(torch.from_numpy(wave)),
        "pyannote": pyannote,
        "titanet": titanet.infer_segment,
        "speakernet": speakernet.infer_segment,
        **package_calls(),
        "language": lambda wave: language.classify_batch(torch.from_numpy(wave)),
        "ge2e": lambda wave: ge2e(wave[None]),
    }
    audio_calls = {name: functools.partial(_for_each, call) for name, call in calls.items()}
    frame_calls = {"retinaface": detect, "attributes": analyze}
    return audio_calls | {
        name: lambda waves, call=call: _for_each(call, frames(len(waves))) for name, call in frame_calls.items()
    }


def package_calls() -> dict[str, Callable[[np.ndarray], object]]:
    """Returns calls, on one clip, of the packages whose features this package computes itself."""
    librosa = import_librosa()
    from pyAudioAnalysis.ShortTermFeatures import feature_extraction

    def mel(wave: np.ndarray) -> np.ndarray:
        power = librosa.feature.melspectrogram(y=wave, sr=SAMPLE_RATE, n_fft=1024, hop_length=576, n_mels=128)
        return np.log(np.maximum(power, 1e-10))

    window, step = SAMPLE_RATE // 2, SAMPLE_RATE * 3 // 10
    return {"mel": mel, "pyaudioanalysis": lambda wave: feature_extraction(wave, SAMPLE_RATE, window, step)}


def time_features(clips: int, repeats: int) -> None:
    """Compares these packages with our own code, in turn in this process, in seconds of CPU time."""
    keep_memory()
    waves = np.random.default_rng(0).normal(0, 0.1, (clips, CLIP_SAMPLES)).astype(np.float32)
    print(f"{'CPU s per clip':<18}{'ours':>9}{'package':>9}{'ratio':>8}")
    for name, plain in package_calls().items():
        (extractor,) = load({"extractors": (name,)})
        calls = (extractor, functools.partial(_for_each, plain))
        times = [[_cpu_seconds(call, waves) / clips for call in calls] for _ in range(repeats + 1)][1:]
        ours, package = (statistics.median(side) for side in zip(*times, strict=True))
        ratio = statistics.median(package / ours for ours, package in times)
        print(f"{name:<18}{ours:>9.4f}{package:>9.4f}{ratio:>8.2f}", flush=True)


def _cpu_seconds(call: Callable[[np.ndarray], object], waves: np.ndarray) -> float:
    start = time.process_time()
    call(waves)
    return time.process_time() - start


def _for_each(call: Callable[[np.ndarray], object], clips: np.ndarray) -> None:
    for clip in clips:
        call(clip)


def frames(count: int) -> np.ndarray:
    """Returns random frames of VoxCeleb2's size, uint8 [count, 224, 224, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, *FRAME), np.uint8)


def time_call(calls: Callable[[Path], Calls], weights: Path, name: str, clips: int) -> float:
    """Returns the seconds that one implementation takes for the clips, excluding loading."""
    call = calls(weights)[name]
    waves = np.random.default_rng(0).normal(0, 0.1, (clips, CLIP_SAMPLES)).astype(np.float32)
    start = time.perf_counter()
    call(waves)
    return time.perf_counter() - start


def time_extractors(weights: Path, clips: int, repeats: int) -> None:
    """Times both implementations in turn, each in its own process because their memory settings differ."""
    sides = (our_calls, plain_calls)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as ours, ProcessPoolExecutor(1, context) as plain:

        def once(name: str, count: int) -> list[float]:
            pools = zip((ours, plain), sides, strict=True)
            return [pool.submit(time_call, side, weights, name, count).result() for pool, side in pools]

        print(f"{'seconds per clip':<18}{'ours':>9}{'plain':>9}{'ratio':>8}")
        config = settings(weights)
        for name in (*config.extractors, "ge2e", config.detector, "attributes"):
            once(name, 1)
            times = [once(name, clips) for _ in range(repeats)]
            ours_median, plain_median = (statistics.median(side) / clips for side in zip(*times, strict=True))
            ratio = statistics.median(plain / ours for ours, plain in times)
            print(f"{name:<18}{ours_median:>9.4f}{plain_median:>9.4f}{ratio:>8.2f}", flush=True)


def time_pipeline(config: ml_collections.ConfigDict, people: int, label: str) -> None:
    """Extracts a synthetic population in this process and prints the report of `extract.run`.

    Whole frames serve as faces, since detectors with random weights find none. Attributes are estimated, not read from
    a table.
    """
    with tempfile.TemporaryDirectory() as folder:
        videos, out = Path(folder) / "videos", Path(folder) / "data"
        generate(videos, people=people, workers=2)
        (videos / dataset.ATTRIBUTES_FILE).unlink()
        with config.unlocked():
            config.update(videos=str(videos), out=str(out), workers=1, detector="skip")
        start = time.perf_counter()
        dataset.extract(config)
        elapsed = time.perf_counter() - start
        written = sum(path.stat().st_size for path in out.glob("slf-*"))
        count = len(find_clips(videos).clips)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    size = f"{written / count / 1e3:.0f} kB per clip"
    print(f"{label}: {count} clips in {elapsed:.1f} s including loading, {size}, peak {peak:.2f} GB")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--weights", type=Path, help="folder written by extract.random_weights")
    arguments.add_argument(
        "--clips", type=int, default=16, help="clips per timed call, people in the pipeline (default: 16)"
    )
    arguments.add_argument("--repeats", type=int, default=3, help="timed calls per extractor (default: 3)")
    arguments.add_argument(
        "--people", type=int, nargs="*", default=(86, 890),
        help="sizes of the populations that are extracted without weights (default: 86 890)",
    )  # fmt: skip
    args = arguments.parse_args()
    if args.weights:
        time_extractors(args.weights, args.clips, args.repeats)
        time_pipeline(settings(args.weights), args.clips, "all extractors")
    else:
        time_features(args.clips, args.repeats)
    for people in args.people:
        config = base.get_config().extract
        config.extractors, config.deepface.estimate = ("mel", "pyaudioanalysis"), ()
        time_pipeline(config, people, "without weights")


if __name__ == "__main__":
    main()
