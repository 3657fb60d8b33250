"""The imagen-pytorch side of `benchmarks/vs_imagen.py`, which starts it with that library's Python.

Holds the U-Net of one stage with SLF's layout. Reads one command per line from standard input and prints the result of
each as a line of JSON: "about" (device and versions), "count" (parameters, GFLOP per evaluation), and "train" and
"evaluate" (seconds).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
import time
import types
import warnings
from collections.abc import Callable

import torch

ROWS, ROW_WIDTH = 256, 768  # of the feature matrix
SCALE = 3.0  # guidance scale; not 1, so that both branches run
LAYOUTS = {
    "base": {"low": 8, "size": 32, "blocks": 3, "attention": (False, True, True, True)},
    "upsampler": {"low": 32, "size": 128, "blocks": (2, 4, 8, 8), "attention": (False, False, False, True)},
}


def load() -> types.ModuleType:
    """Imports the library with a stub for its text encoder, whose import contacts the Hugging Face hub."""
    t5 = types.ModuleType("imagen_pytorch.t5")
    t5.DEFAULT_T5_NAME, t5.t5_encode_text, t5.get_encoded_dim = "", lambda *_: None, lambda name: ROW_WIDTH
    sys.modules[t5.__name__] = t5
    import imagen_pytorch.version

    return imagen_pytorch


class Peer:
    """The U-Net of one stage and, once training is timed, the library's trainer with its defaults."""

    def __init__(self, library: types.ModuleType, stage: str, width: int, batch: int, dtype: str) -> None:
        self._library, self._layout, self._width, self._batch = library, LAYOUTS[stage], width, batch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._bfloat16 = dtype == "bfloat16"

    def about(self) -> dict[str, str | int]:
        versions = {"torch": torch.__version__, "imagen": self._library.version.__version__}
        return {"device": self.device, "threads": torch.get_num_threads(), **versions}

    def make_unet(self) -> torch.nn.Module:
        attention = self._layout["attention"]
        return self._library.Unet(
            dim=self._width, dim_mults=(1, 2, 4, 8), num_resnet_blocks=self._layout["blocks"], cond_dim=512,
            layer_attns=attention, layer_cross_attns=attention, text_embed_dim=ROW_WIDTH, max_text_len=ROWS,
            lowres_cond=True,
        )  # fmt: skip

    @functools.cached_property
    def unet(self) -> torch.nn.Module:
        return self.make_unet().to(self.device)

    @functools.cached_property
    def trainer(self) -> torch.nn.Module:
        # The first stage has no network: for training it only sets the size of the low-resolution image.
        model = self._library.Imagen(
            unets=(self._library.NullUnet(), self.unet), image_sizes=(self._layout["low"], self._layout["size"]),
            text_embed_dim=ROW_WIDTH, timesteps=1000,
        )  # fmt: skip
        settings = {"precision": "bf16"} if self._bfloat16 else {}
        return self._library.ImagenTrainer(model, verbose=False, accelerate_cpu=self.device == "cpu", **settings)

    @functools.cached_property
    def batch(self) -> dict[str, torch.Tensor]:
        shape = (self._batch, 3, self._layout["size"], self._layout["size"])
        rows = torch.randn(self._batch, ROWS, ROW_WIDTH)
        return {"images": torch.rand(shape).to(self.device), "rows": rows.to(self.device)}

    def train(self) -> float:
        """Times a training step."""
        self.unet.train()

        def run_step() -> None:
            self.trainer(self.batch["images"], text_embeds=self.batch["rows"], unet_number=2)
            self.trainer.update(unet_number=2)

        return self.time_call(run_step)

    def evaluate(self) -> float:
        """Times both branches of guidance, as in each step of the library's sampler."""
        self.unet.eval()
        images, rows = self.batch["images"], self.batch["rows"]
        mask, times = rows.any(-1), torch.rand(self._batch, device=self.device)
        autocast = torch.autocast(self.device, torch.bfloat16) if self._bfloat16 else contextlib.nullcontext()

        def run_guided() -> None:
            with torch.inference_mode(), autocast:
                self.unet.forward_with_cond_scale(
                    images, times, cond_scale=SCALE, text_embeds=rows, text_mask=mask, lowres_cond_img=images,
                    lowres_noise_times=times,
                )  # fmt: skip

        return self.time_call(run_guided)

    def count(self) -> dict[str, float]:
        """Counts FLOPs of matrix products and convolutions for one image and one branch, on meta tensors."""
        from torch.utils.flop_counter import FlopCounterMode

        side = self._layout["size"]
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            unet, images, times = self.make_unet(), torch.rand(1, 3, side, side), torch.rand(1)
            rows = torch.rand(1, ROWS, ROW_WIDTH)
            unet(images, times, text_embeds=rows, lowres_cond_img=images, lowres_noise_times=times)
        parameters = sum(p.numel() for p in unet.parameters())
        return {"parameters": parameters / 1e6, "evaluation": counter.get_total_flops() / 1e9}

    def time_call(self, call: Callable[[], None]) -> float:
        self.synchronize()
        start = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    arguments.add_argument("--stage", choices=LAYOUTS, required=True)
    arguments.add_argument("--width", type=int, required=True, help="base width of the U-Net")
    arguments.add_argument("--batch", type=int, required=True, help="batch size")
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    args = arguments.parse_args()
    # Send the library's own output to stderr, so that stdout holds only the results.
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cuda.matmul.allow_tf32 = True  # as XLA does; torch's default allows it for convolutions only
    torch.manual_seed(0)
    peer = Peer(load(), args.stage, args.width, args.batch, args.dtype)
    commands = {"about": peer.about, "count": peer.count, "train": peer.train, "evaluate": peer.evaluate}
    for line in sys.stdin:
        print(json.dumps(commands[line.strip()]()), file=results)


if __name__ == "__main__":
    main()
