"""SLF-JAX: from a voice, an 8x8 thumbnail and a few attributes, in any combination, to a 128x128 face."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import slf_common.interrupt  # noqa: F401  (imported first, to handle Ctrl-C during the other imports)

if TYPE_CHECKING:
    from app.system import FaceSystem


def load(source: str | None = None, **options: Any) -> FaceSystem:
    """Loads a trained system to draw faces with; the arguments are those of `app.system.load`.

    system = slf_jax.load("runs/demo")
    faces = system.draw(voice="me.wav", thumbnail="me.png", scales=(0, 2, 4), samples=2)  # uint8 [3, 2, 128, 128, 3]
    """
    from app.system import load

    return load(source, **options)
