import json
from pathlib import Path

import pytest
from PIL import Image
from tiny import set_stages

from slf_common.config import load_config
from slf_common.errors import UserError
from slf_jax.evaluation import ablation, ablation_tables, metrics, paper
from slf_jax.evaluation.ablation import ablate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(fresh_config):
    """Three of the paper's systems at toy sizes."""
    config = fresh_config("ablations")
    set_stages(config, steps=(8, 8))
    config.train.update(validate_every=0, preview_every=0)
    wanted = load_config("configs/ablations.py:demo").ablations
    wanted.update(scales=(0.0, 2.0), chunk=6, any_subset_steps=dict(base=12, upsampler=8))
    systems = {"thumbnail only": (), "full input": config.data.inputs, "no audio": ("age", "gender")}
    with config.unlocked():
        config.ablations = wanted
        config.ablations.systems = {name: dict(thumbnail=True, inputs=inputs) for name, inputs in systems.items()}
    return config


@pytest.fixture(scope="module")
def ablated(tiny):
    return ablate(tiny), Path(tiny.workdir)


def test_each_system_is_trained_and_also_masked_from_one_model(ablated):
    report, workdir = ablated
    assert {mode: list(systems) for mode, systems in report["modes"].items()} == {
        mode: ["thumbnail only", "full input", "no audio"] for mode in ("trained", "masked")
    }
    assert {path.name for path in workdir.glob("*/checkpoints")} == {"checkpoints"}
    assert {path.parent.name for path in workdir.glob("*/checkpoints")} == {
        "thumbnail_only", "full_input", "no_audio", "any_subset"
    }  # fmt: skip
    assert (workdir / "any_subset/checkpoints/base/12").is_dir() and (workdir / "no_audio/checkpoints/base/8").is_dir()
    masked = report["modes"]["masked"]
    assert masked["no audio"]["made_from"]["without"] == ["mel"] and masked["full input"]["made_from"]["without"] == []
    for systems in report["modes"].values():
        assert list(systems["thumbnail only"]["scales"]) == ["0"]  # no conditions to guide with
        for result in (systems["full input"], systems["no audio"]):
            assert list(result["scales"]) == ["0", "2"] and result["chosen"] in result["scales"]
    # At scale 0 the conditions have no effect, so it does not matter which of them are present.
    at_zero = [masked[name]["scales"]["0"]["psnr"]["mean"] for name in masked]
    assert at_zero == pytest.approx([at_zero[0]] * 3, abs=1e-4)
    claim = ablation_tables.claims(masked)["full input at scale 0 over the thumbnail alone (equal in the paper)"]
    assert claim["difference"] == 0 and claim["p_mcnemar"] == 1


def test_report_shows_the_papers_figures_beside_ours(ablated):
    report, workdir = ablated
    text = (workdir / "report.md").read_text()
    assert "| full input | paper | 8 | 16.90 | 30.50 |" in text and "| **no audio** | masked |" in text
    assert "| audio | " in text and "77.02 | significant |" in text
    assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(report))
    for name in ("figure_8_trained.png", "figure_8_masked.png", "scales/trained_full_input.png"):
        assert min(Image.open(workdir / name).size) > 200
    assert "no audio" in ablation_tables.short(report)


def test_rerun_trains_and_measures_nothing(ablated, tiny, monkeypatch):
    report, workdir = ablated
    monkeypatch.setattr(ablation, "_measure", lambda *_: pytest.fail("measured again"))
    assert json.loads(json.dumps(ablate(tiny))) == json.loads(json.dumps(report))


def test_configs_define_the_papers_eight_systems():
    for which in ("base", "demo"):
        config = load_config(f"configs/ablations.py:{which}")
        assert set(config.ablations.systems) == set(paper.SYSTEMS)
        assert set(config.ablations.systems["full input"].inputs) == set(config.data.inputs)
    with pytest.raises(UserError, match="no config named 'dmo'"):
        load_config("configs/ablations.py:dmo")


def test_significances_of_the_papers_recalls_match_the_paper():
    full = paper.recalls("full input")
    pairs = {part: (full, paper.recalls(without)) for part, (without, _) in paper.SIGNIFICANCE.items()}
    s = {part: metrics.significance(*recalls) for part, recalls in pairs.items()}
    assert {part: round(value) for part, value in s.items()} == {p: v for p, (_, v) in paper.SIGNIFICANCE.items()}
    assert metrics.band(s["attributes"]) == "moderate"


def test_removed_inputs_are_also_compared_at_one_scale():
    def result(chosen, **recalled):  # hits among 20 people, by scale
        hits = {scale[1:]: {"r@1": [1.0] * count + [0.0] * (20 - count)} for scale, count in recalled.items()}
        return {"chosen": chosen, "hits": hits}

    systems = {
        "full input": result("4", s2=9, s4=12),
        "no audio": result("2", s2=10, s4=2),
        "no additional attributes": result("4", s2=3, s4=11),
    }
    claims = ablation_tables.claims(systems)
    assert {what: (each["first"], each["second"]) for what, each in claims.items()} == {
        "removing the audio costs more than removing the attributes": (0.55, 0.5),
        "the same, both at the full input's scale 4": (0.55, 0.1),
    }
    assert claims["the same, both at the full input's scale 4"]["p_mcnemar"] == pytest.approx(2 / 2**9)
    more = ablation_tables.claims({**systems, "no speaker embedding": result("2", s2=13)})
    costs = {part: more[f"removing {part} costs more than removing the speaker embeddings"]["difference"]
             for part in ("all audio", "the attributes")}  # fmt: skip
    assert costs == pytest.approx({"all audio": 0.15, "the attributes": 0.1})


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(modes=("trian",)), "each entry one of: trained, masked"),
        (dict(modes=()), r"modes=\(\): must be"),
        (dict(scales=(0.0, 2, 2.0)), "scales=.*distinct entr"),
        (dict(scales=(0.0, float("nan"))), "finite"),
        (dict(people=1), "gallery of 1"),
    ],
)
def test_invalid_ablations_are_rejected_before_training(tiny, tmp_path, change, message):
    config = tiny.copy_and_resolve_references()
    config.workdir = str(tmp_path / "run")
    config.ablations.update(change)
    with pytest.raises(UserError, match=message) as error:
        ablate(config)
    assert "\n" not in str(error.value) and not list(tmp_path.glob("*/*"))


def test_system_with_an_input_that_the_run_lacks_is_named(tiny, tmp_path):
    config = tiny.copy_and_resolve_references()
    config.workdir = str(tmp_path / "run")
    config.ablations.systems["no audio"].inputs = ("age", "ecapa")
    with pytest.raises(UserError, match="'no audio' uses 'ecapa'"):
        ablate(config)
