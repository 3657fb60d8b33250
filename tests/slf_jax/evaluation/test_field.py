"""Protocols of other papers."""

import argparse
import copy

import pytest

from slf_common.errors import UserError
from slf_jax.evaluation import embedders, field, paper, tables


def arguments(protocol, **changes):
    given = {"embedder": "auto", "metric": "", "same_clip": False, "no_thumbnail": False, **changes}
    return argparse.Namespace(protocol=protocol, **given)


def test_protocols_set_how_faces_are_compared():
    for name, protocol in field.PROTOCOLS.items():
        args = arguments(name)
        field.apply(args)
        assert (args.embedder, args.metric, args.same_clip) == (protocol.embedder, protocol.metric, protocol.same_clip)
        assert args.embedder in embedders.EMBEDDERS and args.no_thumbnail == (name != "slf")
        assert all(len(figures) == len(protocol.columns) for figures in protocol.published.values())
    with pytest.raises(UserError, match="--protocol slf sets --embedder, --same-clip: leave it out"):
        field.apply(arguments("slf", embedder="dlib", same_clip=True))


def test_published_figures_are_the_papers():
    published = field.PROTOCOLS["slf"].published
    for name in ("full input", "only audio"):
        figures = [float(text) for text in published[f"SLF, {name}"]]
        assert figures == list(paper.SYSTEMS[name][1:])


def test_report_has_the_protocols_measures_beside_the_published_ones():
    rate = {"rate": 0.25, "low": 0.1, "high": 0.5, "n": 8}
    mean = {"mean": 0.31, "low": None, "high": None, "n": 8}
    row = dict.fromkeys(("gender", "ethnicity", "age_group", "age_rmse", "psnr", "ssim", "clipped", "distribution"))
    row |= {"r@10": rate, "faces_found": 1.0, "diversity": None, "pixel_deviation": None, "agreement": {}}
    row["identity"] = dict.fromkeys(("cosine_others", "l2_own", "l2_others", "angle", "verification"))
    row["identity"]["cosine_own"] = mean
    results = {"protocol": "vox2face", "systems": {"scale 2": row}, "chosen": "scale 2"}
    text = tables._protocol(copy.deepcopy(results))
    assert "| system | R@10 | cosine own |\n" in text
    assert "| **scale 2** | 25.00 [10.0, 50.0] | 0.310 |\n| Vox2Face (published) | 32.10 | 0.322 |" in text
    assert tables._protocol({**results, "protocol": ""}) == ""
