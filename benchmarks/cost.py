"""Parameters and FLOPs per face for each preset: `python benchmarks/cost.py [configs/base.py configs/paper.py ...]`.

Prints the parameters and GFLOP (a multiply-add counts as two) of each stage, as XLA counts them on the lowered program
without running it. A face takes 2 x NFE network evaluations per stage (guidance has two branches) and encodes its
conditions once. The last rows are the original SLF's figures. `--sizes` compares the model sizes in `configs/base.py`
with alternatives and times one evaluation of each on this machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tqdm import tqdm

from slf_common import cli
from slf_common.config import load_config
from slf_jax import distributed, features
from slf_jax.cascade.settings import SampleSettings, sample_settings
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.stage import LowResCond, Stage
from slf_jax.cascade.system import System, build_system
from slf_jax.inference.trained import Trained
from slf_jax.training.checkpoints import Meta
from slf_jax.training.optimizer import make_optimizer
from slf_jax.training.settings import train_settings
from slf_jax.training.state import init_state
from slf_jax.training.step import make_step
from tfrecords.schema import FACE_SIZE, LABELS, MATRIX_ROWS, MATRIX_WIDTH, Schema

# imagen-pytorch at SLF's sizes: millions of parameters, GFLOP per evaluation (which re-encodes the conditions).
ORIGINAL = {"base": (604.1, 50.2), "upsampler": (493.2, 476.0)}
ORIGINAL_EVALUATIONS = 2 * 1000

SIZES = {  # alternatives to the sizes in `configs/base.py`
    "base": {
        "chosen": {},
        "patch 2": dict(patch=2),
        "attention at 32 px too": dict(self_attention=(True, True, True), cross_attention=(True, True, True)),
        "attention at 8 px only": dict(self_attention=(False, False, True), cross_attention=(False, False, True)),
        "width 192": dict(width=192),
    },
    "upsampler": {
        "chosen": {},
        "patch 1, one more level": dict(
            patch=1, mults=(1, 1, 2, 4, 4), blocks=(1, 1, 2, 3, 3),
            self_attention=(False,) * 4 + (True,), cross_attention=(False,) * 4 + (True,),
        ),
        "patch 4, one level fewer": dict(
            patch=4, mults=(2, 4, 4), blocks=(2, 3, 3),
            self_attention=(False, False, True), cross_attention=(False, False, True),
        ),
        "equal blocks": dict(blocks=(2, 2, 2, 2)),
        "attention at 16 px too": dict(
            self_attention=(False, False, True, True), cross_attention=(False, False, True, True)
        ),
        "width 144": dict(width=144),
    },
}  # fmt: skip


def make_system(config: ml_collections.ConfigDict) -> System:
    """Builds a config's system with all of the paper's constituents and identity normalisation; needs no dataset."""
    layout = features.make_layout(Schema(()))
    identity = {block.name: {"mean": np.zeros(block.width), "std": np.ones(block.width)} for block in layout.blocks}
    return build_system(config, layout, identity)


def make_trained(config: ml_collections.ConfigDict) -> Trained:
    """Wraps such a system, with random parameters, as a trained one."""
    system, schema = make_system(config), Schema(())
    params = {name: jax.jit(stage.init)(jax.random.key(0)) for name, stage in system.stages.items()}
    return Trained(Meta(config, schema, system.statistics, {}), system, params, {}, {})


def make_clips(layout: features.Layout, count: int) -> dict[str, np.ndarray]:
    """Makes random records with every constituent and a face."""
    rng = np.random.default_rng(0)
    clips = {b.name: rng.normal(size=(count, b.rows, b.width)).astype(np.float16) for b in layout.blocks}
    clips |= {name: np.zeros(count, np.int32) for name in LABELS}
    clips["age"] = np.full(count, 40, np.float32)
    clips["face"] = rng.integers(0, 256, (count, FACE_SIZE, FACE_SIZE, 3)).astype(np.uint8)
    return clips


def make_training(
    config: ml_collections.ConfigDict, system: System, name: str, records: Mapping[str, np.ndarray],
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[[], dict[str, jax.Array]]:  # fmt: skip
    """Returns a function that runs one training step on `records` and returns its metrics; it keeps the state."""
    mesh, count = mesh or distributed.make_mesh(), len(records["face"])
    settings = train_settings(config, name)
    optimizer, schedule = make_optimizer(settings)
    key = jax.random.key(0)
    state, key = distributed.replicate(mesh, (init_state(system.stages[name], optimizer, key), key))
    batch = {**records, "batch_index": np.arange(count, dtype=np.int32), "stop": np.zeros(count, bool)}
    batch = distributed.split_steps(mesh, config.parallel, jax.tree.map(lambda x: x[None], batch))
    step = make_step(system, name, optimizer, schedule, settings)
    step = distributed.compile_steps(step, mesh, config.parallel)

    def run_step() -> dict[str, jax.Array]:
        nonlocal state
        state, metrics = step(state, batch, key)  # the old state is donated
        return metrics

    return run_step


def gflop(function: Callable, *arguments: object) -> float:
    """GFLOP of one call, as XLA counts them on the lowered program. It counts the body of a loop only once."""
    with jax.default_device(jax.devices("cpu")[0]):  # other backends do not count before compiling
        return jax.jit(function).lower(*arguments).cost_analysis()["flops"] / 1e9


def denoiser_call(stage: Stage) -> tuple[Callable, tuple]:
    """Returns the stage's denoiser as a function, and the shapes of its arguments for one image."""
    shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)  # noqa: E731
    params = jax.eval_shape(stage.init, jax.random.key(0))
    matrix, mask = shape(1, MATRIX_ROWS, MATRIX_WIDTH), shape(1, MATRIX_ROWS, dtype=bool)
    cond = jax.eval_shape(stage.condition, params, matrix, mask)
    image = shape(1, stage.size, stage.size, 3)
    lowres = LowResCond(image, shape(1), shape(1))
    return lambda p, x, sigma, c, low: stage.denoiser(p, low)(x, sigma, c), (params, image, shape(1), cond, lowres)


def stage_cost(stage: Stage) -> dict[str, float]:
    """Millions of parameters, GFLOP per evaluation and GFLOP to encode one person's conditions."""
    function, arguments = denoiser_call(stage)
    params = arguments[0]
    matrix = jax.ShapeDtypeStruct((1, MATRIX_ROWS, MATRIX_WIDTH), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, MATRIX_ROWS), bool)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6,
        "evaluation": gflop(function, *arguments),
        "conditions": gflop(stage.condition, params, matrix, mask),
    }


def face_cost(costs: Mapping[str, Mapping[str, float]], settings: SampleSettings) -> float:
    """TFLOP to draw one face with both stages, with guidance at every noise level."""
    gflops = [2 * settings.evaluations[name] * cost["evaluation"] + cost["conditions"] for name, cost in costs.items()]
    return sum(gflops) / 1000


def time_evaluation(stage: Stage, rounds: int) -> float:
    """Median seconds of a compiled evaluation of one image, after a warm-up."""
    function, arguments = denoiser_call(stage)
    rng = np.random.default_rng(0)
    arguments = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape).astype(np.float32) * 0.05), arguments)
    compiled = jax.jit(function).lower(*arguments).compile()
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def print_presets(paths: list[str]) -> None:
    print(f"{'':26}{'stage':12}{'M parameters':>13}{'GFLOP/eval':>12}{'conditions':>12}{'NFE':>6}{'TFLOP/face':>14}")
    for path in paths:
        config = load_config(path)
        system, settings = make_system(config), sample_settings(config)
        costs = {name: stage_cost(system.stages[name]) for name in STAGES}
        face = f"{face_cost(costs, settings):.2f}"
        for name, cost in costs.items():
            print(
                f"{path:26}{name:12}{cost['parameters']:13.1f}{cost['evaluation']:12.2f}{cost['conditions']:12.2f}"
                f"{settings.evaluations[name]:6}{face:>14}"
            )
            path = face = ""
    face = f"{ORIGINAL_EVALUATIONS * sum(gflops for _, gflops in ORIGINAL.values()) / 1000:.0f}"
    for path, (name, (parameters, gflops)) in zip(("original SLF", ""), ORIGINAL.items(), strict=True):
        print(f"{path:26}{name:12}{parameters:13.1f}{gflops:12.1f}{'included':>12}{1000:6}{face if path else '':>14}")


def print_sizes(rounds: int) -> None:
    print(f"{'stage':12}{'sizes':28}{'M parameters':>13}{'GFLOP/eval':>12}{'seconds':>10}{'GFLOP/s':>10}")
    cases = [(name, label, change) for name, group in SIZES.items() for label, change in group.items()]
    lines = []
    for name, label, change in tqdm(cases, leave=False):
        config = load_config("configs/base.py")
        config.model[name].update(change)
        stage = make_system(config).stages[name]
        cost, elapsed = stage_cost(stage), time_evaluation(stage, rounds)
        lines.append(
            f"{name:12}{label:28}{cost['parameters']:13.1f}{cost['evaluation']:12.2f}"
            f"{elapsed:10.4f}{cost['evaluation'] / elapsed:10.0f}"
        )
    print("\n".join(lines))


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    arguments.add_argument("configs", nargs="*", default=["configs/demo.py", "configs/base.py", "configs/paper.py"])
    arguments.add_argument("--sizes", action="store_true", help="compare the sizes in base.py with alternatives")
    arguments.add_argument("--rounds", type=int, default=10, help="timed evaluations per size (default: 10)")
    args = arguments.parse_args()
    print_presets(args.configs)
    if args.sizes:
        device = jax.devices()[0].device_kind
        print(f"\nOne evaluation of one image on {device}, jax {jax.__version__}")
        print_sizes(args.rounds)


if __name__ == "__main__":
    cli.run(main)
