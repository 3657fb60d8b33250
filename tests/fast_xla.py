"""Import this before JAX: makes XLA compile fast, which takes longer than running what the tests run.

All test workers and the processes that they start share one compilation cache: $JAX_COMPILATION_CACHE_DIR, or a folder
in .pytest_cache. Results depend bitwise on these settings, so they are set for this process too, in case another
library has already imported JAX.
"""

import os
from pathlib import Path

DEFAULT = Path(__file__).parents[1] / ".pytest_cache" / "xla"
XLA_CACHE = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", DEFAULT))
os.environ |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_COMPILATION_CACHE_DIR": str(XLA_CACHE)}

import jax  # noqa: E402

from slf_jax import distributed  # noqa: E402

jax.config.update("jax_disable_most_optimizations", True)
distributed.use_compilation_cache(str(XLA_CACHE))
