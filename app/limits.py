"""What the page accepts, and how long it keeps it."""

from __future__ import annotations

import dataclasses

from slf_common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Settings of the page.

    Attributes:
      mark: draw a corner mark on every image.
      queue: number of requests that may wait.
      upload_mb: largest upload, in 10^6 bytes.
      megapixels: largest picture.
      scales, samples, steps: at most, per request.
      idle_seconds: after which a visitor's data is deleted without a request.
      closed_seconds: the same once the page is closed. Not zero: a phone in another app looks like a closed page.
      upload_seconds: after which an upload is deleted that no request has used.
    """

    mark: bool = True
    queue: int = 10
    upload_mb: int = 64
    megapixels: int = 50
    scales: int = 8
    samples: int = 4
    steps: int = 128
    idle_seconds: float = 1800.0
    closed_seconds: float = 300.0
    upload_seconds: float = 600.0

    def check_counts(self, scales: int, samples: int, steps: int) -> None:
        """Raises `UserError` if a request is larger than allowed."""
        for name, given, most in (
            ("scales", scales, self.scales),
            ("samples", samples, self.samples),
            ("sampler steps", steps, self.steps),
        ):
            if not 1 <= given <= most:
                raise UserError(f"{given} {name}: give from 1 to {most}")
