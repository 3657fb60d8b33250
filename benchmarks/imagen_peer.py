"""imagen-pytorch's side of `benchmarks/vs_imagen.py`, which starts it with another Python.

Holds one stage's U-Net at SLF's layout. Each line on standard input is answered by one of JSON on standard output:
"about" (device and versions), "count" (parameters and GFLOP of an evaluation), "train" or "evaluate" (seconds).
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

ROWS, ROW_WIDTH = 256, 768  # of the condition matrix
SCALE = 3.0  # of guidance; above 1, so that both branches run
LAYOUTS = {
    "base": {"low": 8, "size": 32, "blocks": 3, "attention": (False, True, True, True)},
    "upsampler": {"low": 32, "size": 128, "blocks": (2, 4, 8, 8), "attention": (False, False, False, True)},
}


def load() -> types.ModuleType:
    """The library without its text encoder, which asks the Hugging Face hub while it is imported."""
    t5 = types.ModuleType("imagen_pytorch.t5")
    t5.DEFAULT_T5_NAME, t5.t5_encode_text, t5.get_encoded_dim = "", lambda *_: None, lambda name: ROW_WIDTH
    sys.modules[t5.__name__] = t5
    import imagen_pytorch.version

    return imagen_pytorch


class Peer:
    """One stage's U-Net, and from the first step on its trainer with the library's defaults."""

    def __init__(self, library: types.ModuleType, stage: str, width: int, batch: int, dtype: str) -> None:
        self._library, self._layout, self._width, self._batch = library, LAYOUTS[stage], width, batch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._half = dtype == "bfloat16"

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
        # The low-resolution stage stands for the image that training makes of the face; it has no network.
        model = self._library.Imagen(
            unets=(self._library.NullUnet(), self.unet), image_sizes=(self._layout["low"], self._layout["size"]),
            text_embed_dim=ROW_WIDTH, timesteps=1000,
        )  # fmt: skip
        settings = {"precision": "bf16"} if self._half else {}
        return self._library.ImagenTrainer(model, verbose=False, accelerate_cpu=self.device == "cpu", **settings)

    @functools.cached_property
    def batch(self) -> dict[str, torch.Tensor]:
        shape = (self._batch, 3, self._layout["size"], self._layout["size"])
        rows = torch.randn(self._batch, ROWS, ROW_WIDTH)
        return {"images": torch.rand(shape).to(self.device), "rows": rows.to(self.device)}

    def train(self) -> float:
        self.unet.train()

        def step() -> None:
            self.trainer(self.batch["images"], text_embeds=self.batch["rows"], unet_number=2)
            self.trainer.update(unet_number=2)

        return self.seconds(step)

    def evaluate(self) -> float:
        """Both branches of guidance, as in each step of its sampler."""
        self.unet.eval()
        images, rows = self.batch["images"], self.batch["rows"]
        known, times = rows.any(-1), torch.rand(self._batch, device=self.device)
        half = torch.autocast(self.device, torch.bfloat16) if self._half else contextlib.nullcontext()

        def guided() -> None:
            with torch.inference_mode(), half:
                self.unet.forward_with_cond_scale(
                    images, times, cond_scale=SCALE, text_embeds=rows, text_mask=known, lowres_cond_img=images,
                    lowres_noise_times=times,
                )  # fmt: skip

        return self.seconds(guided)

    def count(self) -> dict[str, float]:
        """Counted on tensors without values: matrix products and convolutions, of one image and one branch."""
        from torch.utils.flop_counter import FlopCounterMode

        side = self._layout["size"]
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            unet, images, times = self.make_unet(), torch.rand(1, 3, side, side), torch.rand(1)
            rows = torch.rand(1, ROWS, ROW_WIDTH)
            unet(images, times, text_embeds=rows, lowres_cond_img=images, lowres_noise_times=times)
        parameters = sum(each.numel() for each in unet.parameters())
        return {"parameters": parameters / 1e6, "evaluation": counter.get_total_flops() / 1e9}

    def seconds(self, call: Callable[[], None]) -> float:
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    arguments.add_argument("--stage", choices=LAYOUTS, required=True)
    arguments.add_argument("--width", type=int, required=True)
    arguments.add_argument("--batch", type=int, required=True)
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = arguments.parse_args()
    # What the library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cuda.matmul.allow_tf32 = True  # as XLA does; torch's own default is for convolutions only
    torch.manual_seed(0)
    peer = Peer(load(), args.stage, args.width, args.batch, args.dtype)
    commands = {"about": peer.about, "count": peer.count, "train": peer.train, "evaluate": peer.evaluate}
    for line in sys.stdin:
        print(json.dumps(commands[line.strip()]()), file=answers)


if __name__ == "__main__":
    main()
