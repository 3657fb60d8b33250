import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from slf_common.errors import UserError
from slf_jax import evaluate, sample
from slf_jax.evaluation import protocol
from slf_jax.evaluation.embedders import make_embedder
from slf_jax.evaluation.systems import choose_scale
from slf_jax.inference.scales import Scales
from tfrecords.reader import Clips

pytestmark = pytest.mark.frameworks
EIGENFACES = ("--embedder", "eigenfaces")


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    workdir = shutil.copytree(run.workdir, tmp_path_factory.mktemp("evaluated") / "run")
    evaluate.main(["--workdir", str(workdir), "--scales", "0,2", "--chunk", "6", *EIGENFACES])
    return workdir / "evaluation"


def test_results_record_provenance_and_intervals(evaluated):
    results = json.loads((evaluated / "results.json").read_text())
    assert results["people"] == results["gallery"] == 6 and results["gallery_of_another_clip"] == 0
    assert results["embedder"] == "eigenfaces" and set(results["checkpoints"]) == {"base", "upsampler"}
    assert set(results["systems"]) == {"scale 0", "scale 2"} and results["chosen_by"] == "validation people"
    assert set(results["masked"]) == {"without thumbnail", "without audio", "without attributes"}
    assert set(results["significance"]) == {"thumbnail", "audio", "attributes"}
    assert set(results["controls"]) == {
        "another person's voice", "another person's voice and attributes", "thumbnail, bicubic", "mean training face",
        "training face of the same gender",
    }  # fmt: skip
    weighted = results["validation_weighted_recall"]
    assert results["chosen"] == f"scale {max(weighted, key=weighted.get)}"
    for rows in (results["systems"], results["masked"], results["controls"]):
        for row in rows.values():
            assert row["r@1"]["n"] == 6 and row["r@10"]["rate"] == 1  # there are only six people
            assert row["r@1"]["low"] <= row["r@1"]["rate"] <= row["r@1"]["high"]
            assert row["r@2"]["rate"] >= row["r@1"]["rate"] and "r@50" not in row
            assert row["identity"]["verification"]["eer"]["low"] >= 0 and row["identity"]["cosine_own"]["n"] == 6
            assert row["agreement"]["gender"]["n"] == 6 and row["distribution"]["generated"] == 6
    real = results["real"]  # also the gallery's, since each person has a single clip
    assert real["r@1"]["rate"] == real["identity"]["verification"]["auc"]["rate"] == 1
    assert real["agreement"]["gender"]["rate"] == 1 and real["psnr"] is None
    assert results["random"]["r@1"]["rate"] == pytest.approx(1 / 6)
    assert results["random"]["r@1"]["simulated"] == pytest.approx(1 / 6, abs=0.02)


@pytest.mark.slow
def test_two_scales_are_chosen_on_validation_people_and_drawn_as_heat_maps(run, evaluated, tmp_path):
    flags = ("--scales", "mel=0:2,age+gender=0:2", "--out", str(tmp_path), *EIGENFACES)
    evaluate.main(["--workdir", run.workdir, *flags])
    results = json.loads((tmp_path / "results.json").read_text())
    points = [f"mel {mel}, age+gender {other}" for mel in (0, 2) for other in (0, 2)]
    assert list(results["systems"]) == points and results["axes"] == {"mel": [0, 2], "age+gender": [0, 2]}
    assert results["chosen"] == max(points, key=results["validation_weighted_recall"].get)
    one = json.loads((evaluated / "results.json").read_text())["systems"]
    for scale in (0, 2):
        both = results["systems"][f"mel {scale}, age+gender {scale}"]
        assert both["psnr"]["mean"] == pytest.approx(one[f"scale {scale}"]["psnr"]["mean"], abs=0.01)
    assert Image.open(tmp_path / "scales.png").width > 600


@pytest.mark.slow
def test_dataset_without_training_split_is_sampled_and_evaluated(run, evaluated, eval_only_dataset, tmp_path):
    """The SLF Evaluation Dataset, which only has a test split, could not be evaluated (fault 9)."""
    given = ["--workdir", run.workdir, "--data", str(eval_only_dataset)]
    evaluate.main([*given, "--scales", "0,2", "--chunk", "6", *EIGENFACES, "--out", str(tmp_path / "evaluation")])
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    # The run's own test split has the same clips, so with the run's statistics the faces are the same.
    own = json.loads((evaluated / "results.json").read_text())
    assert results["people"] == 6 and results["chosen_by"] == "validation people"
    assert results["systems"]["scale 2"]["psnr"] == pytest.approx(own["systems"]["scale 2"]["psnr"])
    sample.main([*given, "--out", str(tmp_path / "faces"), "--people", "2"])
    assert len(list((tmp_path / "faces").glob("*.png"))) >= 2


def test_evaluation_writes_a_report_and_figures(evaluated):
    text = (evaluated / "report.md").read_text()
    assert "| system | found | R@1 | R@2 | R@3 | R@5 | R@10 |" in text and "Eigenfaces" in text and "Wilson" in text
    assert "| system | cosine own | cosine others | L2 own | L2 others | angle | AUC | EER |" in text
    assert (
        "| real faces | " in text and "KID" in text and "gender as real" in text and "diversity |" not in text
    )  # a single sample
    assert (
        "from the thumbnail's own for 6 (which is easier)" in text
        and "chosen on the test people as in the paper" in text
    )
    for name in ("faces", "rank_curve", "confusion", "scales"):
        assert min(Image.open(evaluated / f"{name}.png").size) > 200


def test_best_scale_is_chosen_among_repeated_scales(dataset, tmp_path):
    """Repeated scales shifted the index of the chosen one (fault 18)."""
    people = protocol.choose(Clips(dataset, "test"))
    scorer = protocol.FaceScorer(people, make_embedder("eigenfaces", "", "", Clips(dataset)), tmp_path)
    real = people.probe["face"]

    class FakeSystem:  # returns the next person's face at scale 0, and the person's own at 8
        def draw(self, people, scales, progress):
            return np.stack([real if scale[0] == 8 else np.roll(real, 1, 0) for scale in scales.points])[:, :, None]

    chosen, weighted = choose_scale(FakeSystem(), Scales(((0.0, 0.0), (0.0, 0.0), (8.0, 8.0))), scorer)
    assert chosen == 2 and weighted["8"] > weighted["0"]


def test_evaluation_without_thumbnail_and_with_several_samples(run, tmp_path, capsys):
    flags = ["--no-thumbnail", "--samples", "2", "--people", "3", "--without", "gender", "--out", str(tmp_path)]
    evaluate.main(["--workdir", run.workdir, *EIGENFACES, *flags])
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["masked"]) == {"without audio", "without attributes"} and not results["thumbnail"]
    assert "thumbnail, bicubic" not in results["controls"] and results["best_on_test"] is None
    row = results["systems"]["scale 1"]
    assert row["sd_over_samples"]["psnr"] > 0 and row["diversity"]["mean"] > 0 and row["pixel_deviation"]["mean"] > 0
    assert "diversity | pixel SD |" in (tmp_path / "report.md").read_text()
    assert results["inputs"] == ["mel", "age"] and "scales.png" not in (tmp_path / "report.md").read_text()
    assert "3 people, gallery of 3, eigenfaces" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--people", "1"], "gallery of 1"),
        (["--people", "-1"], "--people -1"),
        (["--split", "tset"], "no clips in split 'tset'"),
        (["--scales", "1,x"], "give comma-separated numbers"),
        (["--scales", "0,0,8"], "--scales 0,0,8: 0 is given twice"),
        (["--without", "melody"], "'melody' is not an input"),
        (["--gallery", "nowhere"], "nowhere: no dataset here"),
    ],
)
def test_invalid_arguments_are_rejected_in_one_line(run, tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as error:
        evaluate.main(["--workdir", run.workdir, *EIGENFACES, "--out", str(tmp_path / "out"), *flags])
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Tiny networks with random weights in DeepFace's format."""
    pytest.importorskip("deepface")
    from extract.random_weights import write_small_faces

    home = tmp_path_factory.mktemp("deepface") / "home"
    write_small_faces(home)
    return home


def start(run, out, home, *flags):
    """Runs an evaluation in its own process: DeepFace chooses its backend once per process."""
    command = [sys.executable, "-m", "slf_jax.evaluate", "--workdir", run.workdir, "--out", str(out), *flags]
    environment = os.environ | {"DEEPFACE_HOME": str(home), "DEEPFACE_BACKEND_ENGINE": "onnx"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


CROPPED = """
import numpy as np, skimage.data
from PIL import Image
from slf_jax.evaluation.embedders import make_embedder
picture = Image.fromarray(skimage.data.astronaut())
crops = [picture.crop((185, 65, 263, 143)), picture.crop((300, 300, 400, 400))]
crops = np.stack([np.asarray(crop.resize((128, 128), Image.Resampling.BICUBIC)) for crop in crops])
embedder = make_embedder("vgg-face", "", "opencv", None)
first = [embedder._represent(crop, "opencv") is not None for crop in crops]
print(first, embedder(crops).found.tolist(), embedder.fingerprint)
make_embedder("vgg-face", "", "magic", None)
"""


def test_faces_that_fill_the_image_are_detected(weights):
    """OpenCV's cascade missed many generated faces, and any string was accepted as a detector (fault 24)."""
    pytest.importorskip("skimage")
    environment = os.environ | {"DEEPFACE_HOME": str(weights), "DEEPFACE_BACKEND_ENGINE": "onnx"}
    done = subprocess.run([sys.executable, "-c", CROPPED], capture_output=True, text=True, env=environment, timeout=300)
    assert "[False, False] [True, False]" in done.stdout, done.stdout + done.stderr
    assert "UserError: --detector magic: must be one of: skip, opencv, mtcnn" in done.stderr


def test_deepface_compares_faces_and_predicts_attributes(run, tmp_path, weights):
    done = start(run, tmp_path, weights, "--embedder", "vgg-face", "--detector", "skip", "--people", "4")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["embedder"] == "vgg-face" and results["metric"] == "l2"
    assert results["controls"]["mean training face"]["faces_found"] == 1
    assert results["systems"]["scale 1"]["gender"]["n"] == 4 and results["systems"]["scale 1"]["age_rmse"] > 0


def test_missing_weights_of_one_model_skip_only_its_measure(run, tmp_path, weights):
    home = tmp_path / "home"
    shutil.copytree(weights, home)
    (home / ".deepface" / "weights" / "age_model_weights.onnx").unlink()
    flags = ("--embedder", "vgg-face", "--detector", "skip", "--people", "4")
    done = start(run, tmp_path / "out", home, *flags)
    assert done.returncode == 0 and "note: age is not measured" in done.stderr
    row = json.loads((tmp_path / "out" / "results.json").read_text())["systems"]["scale 1"]
    assert row["age_rmse"] is None and row["age_group"] is None and row["gender"]["n"] == 4
    assert "The age was not measured" in (tmp_path / "out" / "report.md").read_text()


def test_no_detected_real_face_is_a_one_line_error(run, tmp_path, weights):
    done = start(run, tmp_path / "out", weights, "--embedder", "vgg-face", "--people", "4")
    assert done.returncode != 0 and not (tmp_path / "out").exists()
    assert "no face was found in any of the 4 real faces" in done.stderr and "Traceback" not in done.stderr


def test_missing_weights_are_a_one_line_error(run, tmp_path, weights):
    done = start(run, tmp_path / "out", tmp_path, "--embedder", "facenet512")
    assert done.returncode != 0 and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    assert "--embedder facenet512 --detector opencv, DeepFace:" in done.stderr
    assert "--embedder eigenfaces" in done.stderr
    done = start(run, tmp_path / "out", tmp_path, "--protocol", "vox2face")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and "--protocol vox2face compares faces by arcface, which is not available" in line


def test_damaged_weights_are_an_error(run, tmp_path, weights):
    """Damaged weights were treated like missing ones (fault 7)."""
    for name in ("age_model_weights", "vgg_face_weights"):
        home = tmp_path / name
        shutil.copytree(weights, home)
        (home / ".deepface" / "weights" / f"{name}.onnx").write_bytes(b"no model")
        flags = ("--embedder", "vgg-face", "--detector", "skip", "--people", "4")
        done = start(run, tmp_path / "out", home, *flags)
        assert done.returncode == 2 and "DeepFace: " in done.stderr and not (tmp_path / "out").exists()
