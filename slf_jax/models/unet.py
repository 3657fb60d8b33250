"""The U-Net: space-to-depth, levels of residual blocks with attention, depth-to-space."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from slf_jax.models.blocks import (
    EXACT,
    ZERO,
    CrossAttention,
    ResBlock,
    SelfAttention,
    conv3x3,
    depth_to_space,
    fourier,
    group_norm,
    space_to_depth,
)
from slf_jax.models.conditioning import Cond

ATTENTION_BLOCKS = ("all", "last")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Settings of one U-Net (`config.model.base`, documented in configs/base.py, checked in cascade/settings.py).

    Tuples have one entry per level, highest resolution first.
    """

    patch: int
    width: int
    mults: tuple[int, ...]
    blocks: tuple[int, ...]
    self_attention: tuple[bool, ...]
    cross_attention: tuple[bool, ...]
    attention_blocks: str
    head_width: int
    attention: str
    cond_width: int
    dropout: float
    remat: bool

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level."""
        return tuple(self.width * mult for mult in self.mults)

    def attends(self, level: int, i: int) -> bool:
        """Whether block `i` of a level, on the way down and on the way up, has the attention layers of the level."""
        return self.attention_blocks == "all" or i == self.blocks[level] - 1

    @property
    def cross_widths(self) -> tuple[int, ...]:
        """Channels of every cross-attention layer, in order of execution."""
        down = [
            self.widths[level] for level, count in enumerate(self.blocks) for i in range(count)
            if self.cross_attention[level] and self.attends(level, i)
        ]  # fmt: skip
        return tuple(down + down[::-1])


class UNet(nn.Module):
    """Maps a noisy image, its noise level and its conditions to an image of the same shape."""

    config: UNetConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, images: jax.Array, c_noise: jax.Array, extras: jax.Array, cond: Cond, train: bool = False,
        scales: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """Denoises images; returns [B, H, W, 3] float32.

        Args:
          images: [B, H, W, C]; channels 0-2 are noisy, the others are conditioning.
          c_noise: [B], the embedded noise level.
          extras: [B, E], further numbers to condition on.
          cond: the encoded conditions.
          scales: [B, G] or [1, G], guidance scales of a distilled network; None: of one that takes none.
        """
        config = self.config
        embedding = self._embed(c_noise, extras, cond, scales)
        cross = iter(zip(cond.keys, cond.values, strict=True))
        x = nn.Dense(config.widths[0], **EXACT, name="stem")(space_to_depth(images, config.patch))
        pos_embed = self.param("pos_embed", nn.initializers.normal(0.02), x.shape[1:])
        x = (x + pos_embed).astype(self.dtype)

        def block(x: jax.Array, way: str, level: int, i: int) -> jax.Array:
            attends = config.attends(level, i)
            keys_values = next(cross) if attends and config.cross_attention[level] else None
            kind = nn.remat(Block, static_argnums=(4,)) if config.remat else Block
            self_attention = attends and config.self_attention[level]
            module = kind(config, level, self_attention, self.dtype, name=f"{way}{level}_{i}")
            return module(x, embedding, keys_values, train)

        skips, last = [], len(config.mults) - 1
        for level, count in enumerate(config.blocks):
            for i in range(count):
                x = block(x, "down", level, i)
                skips.append(x)
            if level < last:
                x = conv3x3(config.widths[level + 1], f"shrink{level}", dtype=self.dtype, strides=2)(x)
        for level, count in reversed(list(enumerate(config.blocks))):
            for i in range(count):
                # Merging before the block keeps its convolutions from being twice as wide (U-ViT, Bao et al. 2023).
                both = jnp.concatenate([x, skips.pop()], -1)
                x = nn.Dense(config.widths[level], dtype=self.dtype, name=f"merge{level}_{i}")(both)
                x = block(x, "up", level, i)
            if level:
                x = nn.Dense(4 * config.widths[level - 1], dtype=self.dtype, name=f"grow{level}")(x)
                x = depth_to_space(x, 2)
        x = nn.silu(group_norm(config.widths[0], jnp.float32, "norm")(x))
        out = conv3x3(3 * config.patch**2, "out", **EXACT, kernel_init=ZERO)(x)
        return depth_to_space(out, config.patch) + self._sketch(embedding, cond, images.shape[1])

    def _sketch(self, embedding: jax.Array, cond: Cond, side: int) -> jax.Array:
        """The image predicted from the conditions alone, [B, side, side, 3] float32, weighted by noise level."""
        picture = jax.image.resize(cond.sketch, (cond.sketch.shape[0], side, side, 3), "linear")
        strength = nn.Dense(1, **EXACT, bias_init=nn.initializers.ones, name="sketch_strength")(embedding)
        return strength[..., None, None] * picture

    def _embed(self, c_noise: jax.Array, extras: jax.Array, cond: Cond, scales: jax.Array | None) -> jax.Array:
        """Embeds noise level, extras and pooled conditions as one vector [B, 2 D] for the blocks' scale and shift.

        The pooled conditions are also appended directly, since the path through the mixing layers is slow to learn.
        Layers for guidance scales start at zero: without an effect on a network that was trained without them.
        """
        width = self.config.cond_width
        noise = nn.Dense(width, dtype=self.dtype, name="noise")(fourier(c_noise, 64))
        extra = nn.Dense(width, dtype=self.dtype, name="extras")(extras)
        total, direct = noise + extra + cond.pooled, cond.pooled
        if scales is not None:
            embedded = embed_scales(scales)
            total += nn.Dense(width, dtype=self.dtype, kernel_init=ZERO, name="scales")(embedded)
            direct *= 1 + nn.Dense(width, dtype=self.dtype, kernel_init=ZERO, name="scale_gate")(embedded)
        mixed = nn.silu(nn.LayerNorm(dtype=self.dtype, name="mix_norm")(total))
        mixed = nn.silu(nn.Dense(width, dtype=self.dtype, name="embedding")(mixed))
        return jnp.concatenate([mixed, jnp.broadcast_to(direct, mixed.shape)], -1)


def embed_scales(scales: jax.Array) -> jax.Array:
    """Features [B, G * 65] of guidance scales [B, G]: of log(1 + scale), and whether the scale is above 0.

    At 0 the conditions are ignored; with a guidance interval, any scale above 0 uses them outside it.
    """
    waves = fourier(jnp.log1p(scales).ravel(), 64).reshape(*scales.shape, 64)
    used = (scales > 0).astype(waves.dtype)[..., None]
    return jnp.concatenate([waves, used], -1).reshape(scales.shape[0], -1)


class Block(nn.Module):
    """A residual block and its attention layers."""

    config: UNetConfig
    level: int
    self_attention: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, keys_values: tuple | None, train: bool) -> jax.Array:
        config, width = self.config, self.config.widths[self.level]
        x = ResBlock(width, config.dropout, self.dtype, name="res")(x, embedding, train)
        if self.self_attention:
            x = SelfAttention(config.head_width, config.attention, self.dtype, name="self")(x)
        if keys_values is not None:
            x = CrossAttention(config.head_width, config.attention, self.dtype, name="cross")(x, *keys_values)
        return x
