"""Import this before JAX: makes XLA compile fast, which takes longer than running what the tests run.

All test workers and the processes that they start share one compilation cache: $JAX_COMPILATION_CACHE_DIR, or a folder
in .pytest_cache. Results depend bitwise on these settings, so they are set for this process too, in case another
library has already imported JAX.
"""

import gc
import os
from importlib import metadata
from pathlib import Path

DEFAULT = Path(__file__).parents[1] / ".pytest_cache" / "xla"
XLA_CACHE = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", DEFAULT))
os.environ |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_COMPILATION_CACHE_DIR": str(XLA_CACHE)}

# Without MLIR for each fusion, and with one LLVM module for each program, a training step compiles in 40 % of the time.
FLAGS = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
given = os.environ.get("XLA_FLAGS", "").split()
if int(metadata.version("jaxlib").split(".")[1]) < 12:  # later versions end the process for the first flag
    os.environ["XLA_FLAGS"] = " ".join([*given, *(flag for flag in FLAGS if flag not in given)])

gc.set_threshold(100_000, 20, 100)  # tracing makes many objects that live on

import jax  # noqa: E402

from slf_jax import distributed  # noqa: E402

jax.config.update("jax_disable_most_optimizations", True)
distributed.use_compilation_cache(str(XLA_CACHE))
