"""Protocols of published papers: how they compare faces, what they report, and their results."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from slf_common.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """How a paper evaluates.

    Attributes:
      embedder, metric: what compares faces; DeepFace's network of that kind.
      same_clip: the gallery holds the face of the clip that the system is given.
      thumbnail: whether systems may have a thumbnail.
      columns: the measures that the paper reports, as columns of the report.
      published: its results in these columns, by system.
      note: what differs or is missing here.
    """

    embedder: str
    metric: str
    same_clip: bool
    thumbnail: bool
    columns: tuple[str, ...]
    published: Mapping[str, tuple[str, ...]]
    note: str


_VFS = (
    "The VGGFace score (exponential of the mutual information between face and identity, by a classifier of VGGFace2's "
    "8,631 identities) is left out: that classifier is in none of the packages used here."
)
PROTOCOLS = {
    "slf": Protocol(
        "vgg-face", "l2", same_clip=True, thumbnail=True,
        columns=("R@1", "R@3", "R@5", "R@10", "gender", "ethnicity", "age group", "RMSE age", "PSNR", "SSIM"),
        published={
            "SLF, full input": ("16.90", "30.50", "33.90", "45.80", "90.70", "65.30", "57.60", "5.62", "14.37", "0.27"),
            "SLF, only audio": ("7.60", "14.40", "17.80", "28.00", "87.30", "51.70", "49.20", "6.99", "10.57", "0.22"),
        },
        note="Abotaleb, Fakhr & Zaki (2024): 118 people of VoxCeleb2, the gallery holds the thumbnail's own clip.",
    ),
    "hq-voxceleb": Protocol(
        "facenet512", "cosine", same_clip=False, thumbnail=False,
        columns=("R@1", "R@2", "R@5", "R@10", "R@50", "cosine own", "L2 own"),
        published={"SF2F, 128x128": ("5.00", "-", "19.40", "32.30", "-", "-", "-")},
        note="Bai et al. (SF2F, 2022): faces from the voice alone, compared by FaceNet, 378 people of HQ-VoxCeleb. "
        "Their gallery has the mean embedding of all faces of a person; here it has one, of another clip. " + _VFS,
    ),
    "vox2face": Protocol(
        "arcface", "cosine", same_clip=False, thumbnail=False,
        columns=("R@10", "cosine own", "cosine others", "angle"),
        published={"Vox2Face": ("32.10", "0.322", "-", "-"), "their diffusion baseline": ("29.80", "0.295", "-", "-")},
        note="Ma et al. (Vox2Face, 2026), on HQ-VoxCeleb: faces from the voice alone, compared by ArcFace. The figures "
        "are from its abstract, which does not give the size of the gallery. " + _VFS,
    ),
}  # fmt: skip


def apply(args: argparse.Namespace) -> None:
    """Sets embedder, metric, gallery and thumbnail of `args` as `args.protocol` does. Raises `UserError`."""
    protocol = PROTOCOLS[args.protocol]
    given = {
        "--embedder": args.embedder != "auto",
        "--metric": bool(args.metric),
        "--same-clip": args.same_clip,
    }
    if any(given.values()):
        flags = ", ".join(flag for flag, is_given in given.items() if is_given)
        raise UserError(f"--protocol {args.protocol} sets {flags}: leave it out, or leave out --protocol")
    args.embedder, args.metric, args.same_clip = protocol.embedder, protocol.metric, protocol.same_clip
    args.no_thumbnail = args.no_thumbnail or not protocol.thumbnail
