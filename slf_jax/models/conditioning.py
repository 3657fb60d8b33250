"""Encodes the feature matrix as keys, values and a pooled vector, once per sample instead of once per step.

Nothing here depends on the noise level, so the sampler receives all of it as one pytree.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from slf_jax.features import Block, Layout
from slf_jax.models.blocks import EXACT, ZERO, qk_norm, split_heads
from slf_jax.pytrees import serializable

SKETCH = 32  # side in pixels of the image that is predicted from the conditions alone


@flax.struct.dataclass
class Cond:
    """The encoded conditions that the U-Net needs. B may be 1, for conditions that all images share.

    Attributes:
      pooled: [B, D].
      sketch: [B, 32, 32, 3] float32, an image predicted from the conditions alone.
      keys, values: [B, N, heads, head_width] for each cross-attention layer.
      identity: [B, E] float32, the identity head's prediction of the face's embedding; None without this head.
    """

    pooled: jax.Array
    sketch: jax.Array
    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    identity: jax.Array | None = None


serializable(Cond)


class Conditioner(nn.Module):
    """Encodes the rows of the constituents `inputs` as tokens; a masked row becomes its learned null token.

    Attributes:
      layout, inputs: the rows of the matrix, and the constituents that are used.
      width: D of tokens and pooled vector.
      cross_widths: channels of each cross-attention layer, in the U-Net's order.
      identity_width: E of the identity head, which predicts the embedding of the face from the pooled vector, as in
        Vox2Face (2026); 0: no such head.
    """

    layout: Layout
    inputs: tuple[str, ...]
    width: int
    cross_widths: tuple[int, ...]
    head_width: int
    dropout: float
    dtype: jnp.dtype
    identity_width: int = 0

    @nn.compact
    def __call__(self, matrix: jax.Array, mask: jax.Array, train: bool = False) -> Cond:
        """`matrix` [B, 256, 768], `mask` [B, 256] (True: known)."""
        # One token is always present; a system without inputs has no other.
        always = self.param("always", nn.initializers.normal(0.02), (1, self.width)).astype(self.dtype)
        tokens = [jnp.broadcast_to(always, (matrix.shape[0], *always.shape))]
        summaries = [tokens[0][:, 0]]
        for block in (self.layout[name] for name in self.layout.names if name in self.inputs):
            rows = matrix[:, block.start : block.stop, : block.width].astype(self.dtype)
            block_tokens, summary = self._encode(block, rows, mask[:, block.start : block.stop])
            tokens.append(block_tokens)
            summaries.append(summary)
        pooled = nn.Dense(2 * self.width, dtype=self.dtype, name="pool1")(jnp.concatenate(summaries, -1))
        # Early in training, conditions are only noise to the U-Net: without the norm these units would die.
        pooled = nn.silu(nn.LayerNorm(dtype=self.dtype, name="pool_norm")(pooled))
        pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        pooled = nn.Dense(self.width, dtype=self.dtype, name="pool2")(pooled)
        # FiLM acts equally on all positions, so spatial structure is slow to learn through it alone.
        sketch = nn.Dense(SKETCH * SKETCH * 3, **EXACT, kernel_init=ZERO, name="sketch")(pooled)
        sketch = sketch.reshape(-1, SKETCH, SKETCH, 3)
        keys, values = self._keys_values(jnp.concatenate(tokens, 1)) if self.cross_widths else ((), ())
        identity = None
        if self.identity_width:
            identity = nn.Dense(self.identity_width, **EXACT, name="identity")(pooled)
        return Cond(pooled, sketch, keys, values, identity)

    def _encode(self, block: Block, rows: jax.Array, known: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One constituent's tokens [B, rows, D] and summary [B, 2 D]: mean and standard deviation over known rows."""
        pos_embed = self.param(f"{block.name}_pos_embed", nn.initializers.normal(0.02), (block.rows, self.width))
        null = self.param(f"{block.name}_null", nn.initializers.normal(0.02), (block.rows, self.width))
        hidden = nn.Dense(self.width, dtype=self.dtype, name=f"{block.name}_in")(rows) + pos_embed.astype(self.dtype)
        hidden = nn.Dense(self.width, dtype=self.dtype, name=f"{block.name}_out")(nn.silu(hidden))
        hidden = jnp.where(known[..., None], hidden, null.astype(self.dtype))
        # Over the known rows, or over the null tokens if none is known, so that "unknown" has a learned summary.
        weights = jnp.where(known.any(-1, keepdims=True), known, True)[..., None].astype(jnp.float32)
        weights = weights / weights.sum(1, keepdims=True)
        mean = (weights * hidden).sum(1)
        std = jnp.sqrt((weights * jnp.square(hidden - mean[:, None])).sum(1) + 1e-6)
        return hidden, jnp.concatenate([mean, std], -1).astype(self.dtype)

    def _keys_values(self, tokens: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        tokens = nn.LayerNorm(dtype=self.dtype, name="token_norm")(tokens)
        keys, values = [], []
        for i, width in enumerate(self.cross_widths):
            both = nn.Dense(2 * width, dtype=self.dtype, name=f"keys_values{i}")(tokens)
            key, value = (split_heads(part, self.head_width) for part in jnp.split(both, 2, -1))
            keys.append(qk_norm(self.dtype, f"key_norm{i}")(key))
            values.append(value)
        return tuple(keys), tuple(values)
