"""The paper's eight systems (Table 5), each trained and swept over guidance scales, and all read off one system.

    python -m slf_jax.ablate --config configs/ablations.py          # on the data of configs/base.py
    python -m slf_jax.ablate --config configs/ablations.py:demo     # on the synthetic talkers, after `make demo`

Not yet run on people: no figure is claimed. On the talkers both ways took 25 minutes on two cores of a shared AMD EPYC
(128 test people: R@1 53.9 % with all inputs, 29.7 % with the guide alone, each trained by itself; 57.8 and 30.5 % by
masking one system; of voice and attributes without a guide R@10 39.1 and 56.2 %). The talkers have no speaker
embeddings, for want of pretrained models: there pyAudioAnalysis' features stand in their place, and the mel spectrogram
is the rest of the audio.
"""

import ml_collections

from configs import base, demo

SPEAKER = ("ecapa", "pyannote", "titanet", "speakernet")
AUDIO = ("pyaudioanalysis", "mel")


def get_config(which: str = "base") -> ml_collections.ConfigDict:
    config = {"base": base, "demo": demo}[which].get_config()
    config.workdir = f"runs/ablations_{which}"
    if which == "base":
        _add(config, SPEAKER, AUDIO, ("language", "age", "gender", "ethnicity"))
    else:
        _add(config, ("pyaudioanalysis",), ("mel",), ("age", "gender", "ethnicity"))
        config.ablations.embedder = "eigenfaces"
        # Many without a guide: the voice is learnt where the guide does not tell already.
        config.train.update(
            steps=(500, 80), guide_drop=0.5, validate_every=2000, preview_every=2000, checkpoint_every=500
        )
        config.ablations.any_subset_steps = (1000, 80)
        # Nine trainings and sixteen sweeps: half the blocks; who it is shows in 32x32 pixels, so that the upsampler may
        # be a rough one; and on validation people two evaluations recall no worse than four.
        config.model.base.blocks = (1,)
        config.model.upsampler.update(blocks=(1,), patch=16, width=64)
        config.sample.steps = 2
    return config


def _add(config: ml_collections.ConfigDict, speaker: tuple, audio: tuple, attributes: tuple) -> None:
    """What is compared. The authors' "no audio" keeps the spoken language; their attributes include it."""
    everything = (*speaker, *audio, *attributes)
    systems = {  # name: (guide, inputs)
        "only image guide": (True, ()),
        "full input": (True, everything),
        "no image guide": (False, everything),
        "no speaker embedding": (True, (*audio, *attributes)),
        "no audio": (True, attributes),
        "only audio": (False, (*speaker, *audio)),
        "speaker embedding only": (False, speaker),
        "no additional attributes": (True, (*speaker, *audio)),
    }
    config.ablations = ml_collections.ConfigDict(
        dict(
            scales=(0.0, 2.0, 4.0, 6.0, 8.0),
            modes=("trained", "masked"),  # a system each; one system with inputs masked
            any_subset_steps=(),  # of that one, which has more to learn; (): as many as the others
            people=0,  # of the test split; 0: all
            samples=1,  # of each person
            chunk=16,  # most faces at once at each scale
            embedder="auto",  # vgg-face, or eigenfaces where it has no weights
            metric="",  # "l2", "cosine"; "": the embedder's own
            detector="opencv",
            same_clip=False,  # the gallery holds the guide's own clip, as in the paper
        )
    )
    config.ablations.systems = {name: dict(guide=guide, inputs=inputs) for name, (guide, inputs) in systems.items()}
