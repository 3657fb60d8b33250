"""Building blocks, channels last. Computed in `dtype`; parameters, norm statistics and softmax are in float32."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir

from slf_common.errors import UserError

ZERO = nn.initializers.zeros
ATTENTIONS = ("xla", "cudnn")
# For layers whose rounding errors would be visible in the image: their input or output is scaled by up to sigma. By
# default, accelerators multiply float32 in TF32 or bfloat16.
EXACT: dict[str, Any] = {"dtype": jnp.float32, "precision": jax.lax.Precision.HIGHEST}


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] to [B, H/patch, W/patch, patch*patch*C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * patch, w * patch, c // patch**2)


def fourier(values: jax.Array, width: int) -> jax.Array:
    """Fourier features [B, width] of numbers [B] of order one, with geometrically spaced frequencies."""
    frequencies = np.geomspace(0.5, 50.0, width // 2).astype(np.float32)
    angles = values[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def conv3x3(width: int, name: str, **kwargs: Any) -> nn.Conv:
    """A 3x3 convolution to `width` channels."""
    return nn.Conv(width, (3, 3), name=name, **kwargs)


def norm_groups(width: int) -> int:
    """Number of channel groups of a group norm; must divide `width`."""
    return max(1, min(32, width // 16))


def group_norm(width: int, dtype: jnp.dtype, name: str, **kwargs: Any) -> nn.GroupNorm:
    """A group norm over `width` channels."""
    return nn.GroupNorm(norm_groups(width), dtype=dtype, name=name, **kwargs)


class ResBlock(nn.Module):
    """Residual block of two convolutions; between them the embedding is applied as scale and shift (FiLM)."""

    width: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        film = nn.Dense(2 * self.width, dtype=self.dtype, name="film")(embedding)
        scale, shift = jnp.split(film[:, None, None], 2, -1)
        h = nn.silu(group_norm(x.shape[-1], self.dtype, "norm1")(x))
        h = conv3x3(self.width, "conv1", dtype=self.dtype)(h)
        h = group_norm(self.width, self.dtype, "norm2", use_bias=False, use_scale=False)(h)
        h = nn.silu(h * (1 + scale) + shift)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv3x3(self.width, "conv2", dtype=self.dtype, kernel_init=ZERO)(h)
        return x + h


def split_heads(x: jax.Array, head_width: int) -> jax.Array:
    """[B, N, D] to [B, N, D/head_width, head_width]."""
    return x.reshape(*x.shape[:-1], -1, head_width)


def qk_norm(dtype: jnp.dtype, name: str) -> nn.RMSNorm:
    """Norm of queries or keys per head, which keeps attention logits bounded in bfloat16."""
    return nn.RMSNorm(dtype=dtype, name=name)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str) -> jax.Array:
    """Softmax attention of [B, N, heads, head_width] by "xla", or by "cudnn" in 16 bits where compiled for CUDA.

    Raises `UserError` when a program with "cudnn" is lowered for CUDA on a machine without cuDNN.
    """
    plain = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    if implementation != "cudnn" or q.dtype.itemsize != 2:
        return plain(q, k, v)
    # All branches are traced, whatever platform is lowered for, and without cuDNN its attention cannot be traced.
    fused = functools.partial(jax.nn.dot_product_attention, implementation="cudnn") if has_cudnn() else _refuse
    return jax.lax.platform_dependent(q, k, v, cuda=fused, default=plain)


@functools.cache
def has_cudnn() -> bool:
    """Whether JAX finds cuDNN on this machine."""
    x = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), x, x, x)
    except RuntimeError:
        return False
    return True


def _refuse(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The branch for CUDA on a machine without cuDNN: can be traced, but not lowered for CUDA."""
    # Added to the queries, so that gradients need it too.
    q += _no_cudnn_p.bind(np.zeros((), q.dtype))
    return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def _no_cudnn(context: mlir.LoweringRuleContext, zero: mlir.ir.Value) -> list[mlir.ir.Value]:
    raise UserError(
        "attention='cudnn' cannot be compiled for CUDA on a machine where JAX finds no cuDNN; do it on a machine with "
        "an NVIDIA GPU and the extra `gpu`, or set attention='xla' in config.model.base and config.model.upsampler"
    )


_no_cudnn_p = Primitive("no_cudnn")
_no_cudnn_p.def_abstract_eval(lambda zero: zero)
mlir.register_lowering(_no_cudnn_p, _no_cudnn)


class SelfAttention(nn.Module):
    """Self-attention over an image's positions, as a residual branch."""

    head_width: int
    implementation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        tokens = nn.LayerNorm(dtype=self.dtype, name="norm")(x.reshape(b, h * w, c))
        q, k, v = jnp.split(nn.Dense(3 * c, dtype=self.dtype, name="qkv")(tokens), 3, -1)
        q = qk_norm(self.dtype, "q_norm")(split_heads(q, self.head_width))
        k = qk_norm(self.dtype, "k_norm")(split_heads(k, self.head_width))
        out = attend(q, k, split_heads(v, self.head_width), self.implementation)
        out = nn.Dense(c, dtype=self.dtype, kernel_init=ZERO, name="out")(out.reshape(b, h * w, c))
        return x + out.reshape(x.shape)


class CrossAttention(nn.Module):
    """Attention of an image's positions to precomputed keys and values, as a residual branch."""

    head_width: int
    implementation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        """`keys`, `values`: [B, N, heads, head_width]; B may be 1, for all images."""
        b, h, w, c = x.shape
        tokens = nn.LayerNorm(dtype=self.dtype, name="norm")(x.reshape(b, h * w, c))
        q = nn.Dense(c, dtype=self.dtype, name="q")(tokens)
        q = qk_norm(self.dtype, "q_norm")(split_heads(q, self.head_width))
        # With shared keys, the positions of all images are treated as those of one: the keys need not be copied.
        q = q.reshape(keys.shape[0], -1, *q.shape[2:])
        out = attend(q, keys, values, self.implementation).reshape(b, h * w, c)
        out = nn.Dense(c, dtype=self.dtype, kernel_init=ZERO, name="out")(out)
        return x + out.reshape(x.shape)
