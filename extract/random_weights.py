"""Writes models with random weights in each framework's format, to run the whole extraction without a download.

Their features distinguish people no better than chance; only shapes, formats and speed are realistic.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from extract import deepface
from extract.frameworks import quiet
from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import check_writable, local_path
from tfrecords.schema import LABELS

SPEAKERS = 7205  # classes in the heads of the published speaker models


def write_all(out: Path, small: bool) -> list[str]:
    """Writes all models to `out`; returns the flags that make `extract.run` use them."""
    if out.exists():
        raise UserError(f"{out} exists; give another --out, or remove it")
    write_ecapa(out / "ecapa", small)
    write_language(out / "language", small, [f"{name[:2]}: {name.title()}" for name in LABELS["language"]])
    write_pyannote(out / "pyannote")
    write_nemo(out / "titanet.nemo", "titanet", small)
    write_nemo(out / "speakernet.nemo", "speakernet", small)
    engine = "onnx" if small else "pytorch"
    (write_small_faces if small else write_faces)(out / "faces")
    names = {"ecapa": "ecapa", "language": "language", "pyannote": "pyannote"}
    names |= {name: f"{name}.nemo" for name in ("titanet", "speakernet")}
    flags = [f"--config.extract.{name}.weights={out / file}" for name, file in names.items()]
    return [*flags, f"--config.extract.deepface.home={out / 'faces'}", f"--config.extract.deepface.engine={engine}"]


SPEECHBRAIN = """\
pretrained_path: nowhere/on-the-hub
n_mels: {mels}
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: [{width}, {width}, {width}, {width}, {wide}]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 128
    lin_neurons: {embedding}
classifier: {classifier}
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        classifier: !ref <classifier>
        label_encoder: !ref <label_encoder>
    paths:
        embedding_model: !ref <pretrained_path>/embedding_model.ckpt
        classifier: !ref <pretrained_path>/classifier.ckpt
        label_encoder: !ref <pretrained_path>/label_encoder.txt
"""
COSINES = "!new:speechbrain.lobes.models.ECAPA_TDNN.Classifier\n    input_size: {}\n    out_neurons: {}"
LOGPROBS = """!new:speechbrain.lobes.models.Xvector.Classifier
    input_shape: [null, null, {}]
    activation: !name:torch.nn.LeakyReLU
    lin_blocks: 1
    lin_neurons: 512
    out_neurons: {}"""


def write_ecapa(folder: Path, small: bool) -> None:
    """Writes `spkrec-ecapa-voxceleb`: a folder with hyperparams.yaml, *.ckpt, label_encoder.txt."""
    speakers = 8 if small else SPEAKERS
    _write_speechbrain(folder, small, 80, 192, COSINES, [f"id{i:05d}" for i in range(speakers)])


def write_language(folder: Path, small: bool, labels: Sequence[str]) -> None:
    """Writes a language classifier with these labels, such as `en: English`, in the same format."""
    _write_speechbrain(folder, small, 60, 256, LOGPROBS, labels)


def _write_speechbrain(
    folder: Path, small: bool, mels: int, embedding: int, classifier: str, labels: Sequence[str]
) -> None:
    import torch

    with quiet():
        from hyperpyyaml import load_hyperpyyaml
        from speechbrain.utils.checkpoints import DEFAULT_SAVE_HOOKS, get_default_hook
    width, wide = (16, 48) if small else (1024, 3072)
    head = classifier.format(embedding, len(labels))
    text = SPEECHBRAIN.format(mels=mels, width=width, wide=wide, embedding=embedding, classifier=head)
    folder.mkdir(parents=True)
    (folder / "hyperparams.yaml").write_text(text)
    torch.manual_seed(0)
    with quiet():
        parts = load_hyperpyyaml(text)["pretrainer"].loadables
        parts["label_encoder"].update_from_iterable(labels, sequence_input=False)
        parts.pop("label_encoder").save(folder / "label_encoder.txt")
        for name, part in parts.items():
            get_default_hook(part, DEFAULT_SAVE_HOOKS)(part, folder / f"{name}.ckpt")


def write_pyannote(folder: Path, architecture: str = "XVectorSincNet") -> None:
    """Writes `pyannote/embedding`, or another class of pyannote.audio.models.embedding: a folder."""
    import torch

    with quiet():
        import lightning
        from pyannote.audio.core.task import Problem, Resolution, Specifications
        from pyannote.audio.models import embedding
    torch.manual_seed(0)
    with quiet():
        model = getattr(embedding, architecture)()
        model.specifications = Specifications(Problem.REPRESENTATION, Resolution.CHUNK, duration=3.0)
        checkpoint = {"state_dict": model.state_dict(), "pytorch-lightning_version": lightning.__version__}
        model.on_save_checkpoint(checkpoint)
    folder.mkdir(parents=True)
    torch.save(checkpoint, folder / "pytorch_model.bin")


def write_nemo(path: Path, name: str, small: bool) -> None:
    """Writes TitaNet-L or SpeakerNet as a .nemo file."""
    import torch

    with quiet():
        from nemo.collections.asr.models import EncDecSpeakerLabelModel
        from omegaconf import OmegaConf
    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        EncDecSpeakerLabelModel(cfg=OmegaConf.create(_nemo_config(name, small)), trainer=None).save_to(str(path))


def _nemo_config(name: str, small: bool) -> dict:
    rate, modules = 16_000, "nemo.collections.asr.modules"
    if name == "titanet":
        mels, window, width, wide = 80, 0.025, 1024, 3072
        decoder = {"pool_mode": "attention", "emb_sizes": 192}
    else:
        mels, window, width, wide = 64, 0.02, 512, 1500
        decoder = {"pool_mode": "xvector", "emb_sizes": 256, "angular": True}
    if small:
        width, wide = 16, 32
    squeeze = {"se": True, "se_context_size": -1} if name == "titanet" else {}

    def block(filters: int, kernel: int, repeat: int, residual: bool) -> dict:
        shape = {"filters": filters, "kernel": [kernel], "repeat": repeat, "residual": residual}
        return {**shape, "stride": [1], "dilation": [1], "dropout": 0.0, "separable": True, **squeeze}

    repeat = 3 if name == "titanet" else 2
    blocks = [
        block(width, 3, 1, False),
        *(block(width, k, repeat, True) for k in (7, 11, 15)),
        block(wide, 1, 1, False),
    ]
    return {
        "sample_rate": rate,
        "labels": None,
        # NeMo reads the sample rate here when it embeds a file.
        "train_ds": {"manifest_filepath": None, "sample_rate": rate, "labels": None, "batch_size": 1, "shuffle": False},
        "preprocessor": {
            "_target_": f"{modules}.AudioToMelSpectrogramPreprocessor", "normalize": "per_feature",
            "window_size": window, "window_stride": 0.01, "window": "hann", "features": mels, "n_fft": 512,
            "sample_rate": rate, "frame_splicing": 1, "dither": 1e-5,
        },
        "encoder": {
            "_target_": f"{modules}.ConvASREncoder", "feat_in": mels, "activation": "relu", "conv_mask": True,
            "jasper": blocks,
        },
        "decoder": {
            "_target_": f"{modules}.SpeakerDecoder", "feat_in": wide, "num_classes": 8 if small else SPEAKERS,
            **decoder,
        },
        "loss": {"_target_": "nemo.collections.asr.losses.angularloss.AngularSoftmaxLoss", "scale": 30, "margin": 0.2},
    }  # fmt: skip


def write_faces(home: Path) -> None:
    """Writes DeepFace's networks for age, gender, ethnicity and RetinaFace, for its engine pytorch (1.7 GB)."""
    import importlib

    import torch

    folder = home / ".deepface" / "weights"
    folder.mkdir(parents=True)
    deepface.start({"home": str(home), "engine": "pytorch"})
    torch.manual_seed(0)
    for name in deepface.MODELS.values():
        module = importlib.import_module(f"deepface.models.demography.pytorch.{name}")
        torch.save(module.base_model().state_dict(), folder / module.WEIGHTS_URL[0].rsplit("/", 1)[1])
    from retinaface.model import retinaface_pth_model

    torch.save(retinaface_pth_model.RetinaFace().state_dict(), folder / "retinaface.pth")


def write_small_faces(home: Path) -> None:
    """Writes tiny graphs with the same inputs and outputs as DeepFace's networks, for its engine onnx.

    Its RetinaFace detects a face in any large area that is not dark.
    """
    folder = home / ".deepface" / "weights"
    folder.mkdir(parents=True)
    classes = {
        "age_model_weights": 101,
        "gender_model_weights": 2,
        "race_model_single_batch": 6,
        "vgg_face_weights": 4096,
    }
    for seed, (name, count) in enumerate(classes.items()):
        _save_onnx(folder / f"{name}.onnx", _classifier(count, seed), ["n", 224, 224, 3], {"y": ["n", count]})
    shapes: dict[str, list] = {
        f"{kind}{stride}": [1, "h", "w", n] for stride in STRIDES for kind, n in CHANNELS.items()
    }
    _save_onnx(folder / "retinaface.onnx", _bright_areas(), [1, "H", "W", 3], shapes)


STRIDES = (32, 16, 8)
CHANNELS = {"score": 4, "box": 8, "landmark": 20}  # RetinaFace's outputs for its two anchors


def _classifier(count: int, seed: int) -> list:
    """Returns nodes: means of 28x28 squares, one random layer, a softmax."""
    import numpy as np
    from onnx import helper, numpy_helper

    weights = 30 * np.random.default_rng(seed).standard_normal((192, count)).astype(np.float32) / 192**0.5
    return [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weights)),
        helper.make_node("Transpose", ["x"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["means"], kernel_shape=[28, 28], strides=[28, 28]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["y"], axis=1),
    ]


def _bright_areas() -> list:
    """Returns nodes: scores at stride 32 are three times the mean brightness in [0, 1]; all other outputs are zero."""
    import numpy as np
    from onnx import helper, numpy_helper

    nodes = [helper.make_node("Transpose", ["x"], ["planes"], perm=[0, 3, 1, 2])]
    for stride in STRIDES:
        size = [stride, stride]
        nodes.append(helper.make_node("AveragePool", ["planes"], [f"mean{stride}"], kernel_shape=size, strides=size))
        for kind, channels in CHANNELS.items():
            scale = np.zeros((channels, 3, 1, 1), np.float32)
            if kind == "score" and stride == 32:
                scale[2:] = 3 / (3 * 255)
            name = f"{kind}{stride}"
            nodes += [
                helper.make_node("Constant", [], [f"{name}w"], value=numpy_helper.from_array(scale)),
                helper.make_node("Conv", [f"mean{stride}", f"{name}w"], [f"{name}p"]),
                helper.make_node("Transpose", [f"{name}p"], [name], perm=[0, 2, 3, 1]),
            ]
    return nodes


def _save_onnx(path: Path, nodes: list, shape: list, outputs: dict[str, list]) -> None:
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    arguments: argparse.ArgumentParser = cli.parser(
        "extract.random_weights",
        __doc__,
        ["python -m extract.random_weights --out weights --small", "python -m extract.random_weights --out weights"],
    )
    arguments.add_argument("--out", required=True, type=local_path, metavar="DIR", help="a new folder")
    arguments.add_argument("--small", action="store_true", help="tiny networks (20 MB) instead of full-sized (2.1 GB)")
    args = arguments.parse_args(argv)
    if not os.path.lexists(args.out):
        check_writable(args.out)
    flags = write_all(args.out, args.small)
    print("use them with:\n  python -m extract.run --config configs/base.py " + " \\\n    ".join(flags))


if __name__ == "__main__":
    cli.run(main)
