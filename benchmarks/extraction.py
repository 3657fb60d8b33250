"""What extraction costs: each extractor beside a plain call of its framework for every clip, and the whole pipeline.

    python -m extract.random_weights --out weights          # full-sized networks; no download
    python benchmarks/extraction.py --weights weights --clips 16

Prints seconds a clip, their ratio (the median over alternating repeats), and for the pipeline with all extractors:
clips a second, bytes a clip, the share of time outside the extractors, peak memory, and clips a second at 100 and at
1,000 clips with the extractors that need no weights. Clips are synthesised; speed does not depend on what is said.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from configs import base
from extract import deepface, extractors, run
from extract.frameworks import quiet
from extract.media import CLIP_SAMPLES, SAMPLE_RATE, find_clips
from extract.talkers.population import generate

Calls = dict[str, Callable[[np.ndarray], object]]


def settings(weights: Path) -> dict:
    """`config.extract` with full-sized random weights on DeepFace's engine pytorch."""
    config = base.get_config().extract
    for name in ("ecapa", "pyannote", "language"):
        config[name].weights = str(weights / name)
    for name in ("titanet", "speakernet"):
        config[name].weights = str(weights / f"{name}.nemo")
    config.deepface.home = str(weights / "faces")
    return config


def plain_calls(weights: Path) -> Calls:
    """The frameworks' own calls for the sound of one clip."""
    import torch

    with quiet():
        from nemo.collections.asr.models import EncDecSpeakerLabelModel
        from pyannote.audio import Inference, Model
        from speechbrain.inference.classifiers import EncoderClassifier

        def speechbrain(name: str) -> EncoderClassifier:
            place = str(weights / name)
            return EncoderClassifier.from_hparams(place, overrides={"pretrained_path": place}, savedir=None)

        def nemo(name: str) -> EncDecSpeakerLabelModel:
            return EncDecSpeakerLabelModel.restore_from(str(weights / f"{name}.nemo"), map_location="cpu").eval()

        ecapa, language, titanet, speakernet = speechbrain("ecapa"), speechbrain("language"), nemo("titanet"), nemo("speakernet")
        model = Model.from_pretrained(weights / "pyannote")
    slides = [Inference(model, window="sliding", duration=d, step=s) for d, s in ((24.0, 24.0), (12.0, 4.0), (6.0, 2.0), (3.0, 2.0))]
    light = dict(zip(("mel", "pyaudioanalysis"), extractors.load({"extractors": ("mel", "pyaudioanalysis")}), strict=True))

    def pyannote(wave: np.ndarray) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for slide in slides:
                slide({"waveform": torch.from_numpy(wave[None]), "sample_rate": SAMPLE_RATE})

    return {
        "ecapa": lambda wave: ecapa.encode_batch(torch.from_numpy(wave)),
        "pyannote": pyannote,
        "titanet": titanet.infer_segment,
        "speakernet": speakernet.infer_segment,
        "pyaudioanalysis": lambda wave: light["pyaudioanalysis"](wave[None]),
        "mel": lambda wave: light["mel"](wave[None]),
        "language": lambda wave: language.classify_batch(torch.from_numpy(wave)),
    }


def compare(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median of their ratios in alternating runs."""
    ours(), theirs()
    times = [(_seconds(ours), _seconds(theirs)) for _ in range(repeats)]
    mine, other = zip(*times, strict=True)
    return statistics.median(mine), statistics.median(other), statistics.median(o / m for m, o in times)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def time_extractors(weights: Path, clips: int, repeats: int) -> None:
    config = settings(weights)
    loaded = dict(zip(config.extractors, extractors.load(config.to_dict()), strict=True))
    plain = plain_calls(weights)
    waves = np.random.default_rng(0).normal(0, 0.1, (clips, CLIP_SAMPLES)).astype(np.float32)
    print(f"{'seconds a clip':<18}{'ours':>9}{'plain':>9}{'ratio':>8}")
    for name, part in loaded.items():
        mine, theirs, ratio = compare(lambda: part(waves), lambda: [plain[name](wave) for wave in waves], repeats)
        print(f"{name:<18}{mine / clips:>9.4f}{theirs / clips:>9.4f}{ratio:>8.2f}", flush=True)
    time_attributes(config, clips, repeats)


def time_attributes(config, clips: int, repeats: int) -> None:
    deepface.start(config.deepface)
    from deepface import DeepFace

    estimator = deepface.Estimator(config.deepface.estimate)
    faces = np.random.default_rng(0).integers(0, 256, (clips, 160, 160, 3), np.uint8)
    actions = ("age", "gender", "race")
    mine, theirs, ratio = compare(
        lambda: estimator([face / np.float32(255) for face in faces]),
        lambda: [DeepFace.analyze(face, actions, detector_backend="skip", silent=True) for face in faces],
        repeats,
    )
    print(f"{'attributes':<18}{mine / clips:>9.4f}{theirs / clips:>9.4f}{ratio:>8.2f}", flush=True)


def time_pipeline(config, people: int, label: str) -> None:
    """Extracts the talkers of a population in this process, and prints what `extract.run` prints of its stages."""
    with tempfile.TemporaryDirectory() as folder:
        videos, out = Path(folder) / "videos", Path(folder) / "data"
        generate(videos, people=people, workers=2)
        with config.unlocked():
            config.update(videos=str(videos), out=str(out), workers=1, detector="skip")
        start = time.perf_counter()
        run.extract(config)
        elapsed = time.perf_counter() - start
        written = sum(path.stat().st_size for path in out.glob("slf-*"))
        count = len(find_clips(videos))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{label}: {count} clips in {elapsed:.1f} s with loading, {written / count / 1e3:.0f} kB a clip, peak {peak:.2f} GB")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--weights", type=Path, help="made by extract.random_weights; without, only the light part")
    arguments.add_argument("--clips", type=int, default=16)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--people", type=int, nargs="*", default=(86, 890), help="populations for the light part")
    args = arguments.parse_args()
    if args.weights:
        time_extractors(args.weights, args.clips, args.repeats)
        time_pipeline(settings(args.weights), args.clips, "all extractors")
    for people in args.people:
        config = base.get_config().extract
        config.extractors, config.deepface.estimate = ("mel", "pyaudioanalysis"), ()
        time_pipeline(config, people, "without weights")


if __name__ == "__main__":
    main()
