"""Lets programs that take or return our dataclasses be serialised by `jax.export`."""

from __future__ import annotations

import jax.export


def serializable(*kinds: type) -> None:
    """Registers dataclasses of arrays (`flax.struct.dataclass`), each under its name, e.g. "slf_jax.Cond"."""
    for kind in kinds:
        jax.export.register_pytree_node_serialization(
            kind,
            serialized_name=f"slf_jax.{kind.__name__}",
            serialize_auxdata=lambda _: b"",  # all fields are arrays or pytrees of them
            deserialize_auxdata=lambda _: (),
        )
