"""The paper's eight systems (Table 5), trained one by one, and all emulated by masking the inputs of a single system.

    python -m slf_jax.ablate --config configs/ablations.py          # on the data of configs/base.py
    python -m slf_jax.ablate --config configs/ablations.py:demo     # on the synthetic talkers, after `make demo`

Not yet run on real people, so there are no results to report. On the synthetic talkers both modes took 25 minutes on
two cores of a shared AMD EPYC (128 test people: R@1 53.9 % with all inputs and 29.7 % with the thumbnail alone, each
trained separately; 57.8 and 30.5 % by masking one system; R@10 from voice and attributes without a thumbnail 39.1 and
56.2 %). The talkers have no speaker embeddings, since these need pretrained models: there pyAudioAnalysis' features are
used as speaker embeddings, and the mel spectrogram as the rest of the audio.
"""

import ml_collections

from configs import base, demo

SPEAKER = ("ecapa", "pyannote", "titanet", "speakernet")
AUDIO = ("pyaudioanalysis", "mel")


def get_config(which: str = "base") -> ml_collections.ConfigDict:
    config = {"base": base.get_config, "demo": lambda: demo.get_config("diffusion")}[which]()
    config.workdir = f"runs/ablations_{which}"
    if which == "base":
        _add(config, SPEAKER, AUDIO, ("language", "age", "gender", "ethnicity"))
    else:
        _add(config, ("pyaudioanalysis",), ("mel",), ("age", "gender", "ethnicity"))
        config.ablations.embedder = "eigenfaces"
        # Half of the samples have no thumbnail: the network learns to use the voice where the thumbnail does not help.
        config.train.update(thumbnail_drop=0.5, validate_every=2000, preview_every=2000, checkpoint_every=500)
        config.train.base.steps, config.train.upsampler.steps = 500, 80
        config.ablations.any_subset_steps.update(base=1000, upsampler=80)
        # Small, since there are nine training runs, sixteen sweeps: half the blocks; a coarse upsampler, since identity
        # is visible at 32x32; two evaluations, with which recall on validation people is no worse than with four.
        config.model.base.blocks = (1,)
        config.model.upsampler.update(blocks=(1,), patch=16, width=64)
        config.sample.steps = 2
    return config


def _add(config: ml_collections.ConfigDict, speaker: tuple, audio: tuple, attributes: tuple) -> None:
    """Adds the group `ablations`. The authors count the spoken language as an attribute: "no audio" keeps it."""
    everything = (*speaker, *audio, *attributes)
    systems = {  # name: (thumbnail, inputs)
        "thumbnail only": (True, ()),
        "full input": (True, everything),
        "no thumbnail": (False, everything),
        "no speaker embedding": (True, (*audio, *attributes)),
        "no audio": (True, attributes),
        "only audio": (False, (*speaker, *audio)),
        "speaker embedding only": (False, speaker),
        "no additional attributes": (True, (*speaker, *audio)),
    }
    config.ablations = ml_collections.ConfigDict(
        dict(
            scales=(0.0, 2.0, 4.0, 6.0, 8.0),  # guidance scales
            modes=("trained", "masked"),  # "trained": a system for each row; "masked": one system with inputs masked
            any_subset_steps=dict(base=0, upsampler=0),  # training steps of the masked system; 0: config.train's
            people=0,  # number of people of the test split; 0: all
            samples=1,  # faces per person
            chunk=16,  # maximum number of faces at once at each scale
            embedder="auto",  # "dlib", "vgg-face", "facenet512", "arcface", "eigenfaces"; "auto": the first available
            metric="",  # distance: "l2" or "cosine"; "": the embedder's own
            detector="",  # of faces; "": dlib's own, for DeepFace's networks "opencv"; "skip": the image is the face
            same_clip=False,  # as in the paper, the gallery holds the clip that the thumbnail is from
        )
    )
    config.ablations.systems = {
        name: dict(thumbnail=thumbnail, inputs=inputs) for name, (thumbnail, inputs) in systems.items()
    }
