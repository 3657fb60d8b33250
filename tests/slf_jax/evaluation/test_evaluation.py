import shutil
from pathlib import Path

import numpy as np
import pytest
from records import make_clip

from slf_common.errors import UserError
from slf_jax.evaluate import _optional
from slf_jax.evaluation import gallery, metrics, paper, protocol, scorers, tables
from slf_jax.evaluation.embedders import make_embedder
from slf_jax.evaluation.features import ATTRIBUTES
from slf_jax.evaluation.gallery import Gallery, ranks
from tfrecords import reader, writer
from tfrecords.reader import Clips

pytestmark = pytest.mark.frameworks


def test_significances_match_the_papers_table():
    exact = {"thumbnail": 75.03, "audio": 77.02, "speaker embeddings": 97.70, "attributes": 31.46}
    bands = {
        "thumbnail": "significant",
        "audio": "significant",
        "speaker embeddings": "profound",
        "attributes": "moderate",
    }
    for name, (without, published) in paper.SIGNIFICANCE.items():
        s = metrics.significance(paper.recalls("full input"), paper.recalls(without))
        assert s == pytest.approx(exact[name], abs=0.005) and round(s) == published and metrics.band(s) == bands[name]


def test_significance_bands_at_their_edges():
    edges = {0: "negligible", 0.1: "minor", 20: "minor", 20.1: "moderate", 40: "moderate", 60: "considerable"}
    edges |= {80: "significant", 80.1: "profound", -1: "harmful", float("nan"): "undefined"}
    assert {s: metrics.band(s) for s in edges} == edges
    full = dict.fromkeys(metrics.KS, 0.5)
    assert metrics.significance(full, full) == 0
    assert np.isnan(metrics.significance(full, {**full, 1: 0.0}))


def test_rates_print_as_in_the_paper():
    random = [f"{100 * metrics.random_recall(k, paper.PEOPLE):.2f}" for k in metrics.KS]
    assert random == ["0.85", "2.54", "4.24", "8.47"]
    rates = {f"{row[i]:.2f}" for row in paper.SYSTEMS.values() for i in range(1, 5)}
    printed = {metrics.format_rate(hits / paper.PEOPLE) for hits in range(paper.PEOPLE + 1)}
    # Not multiples of 1/118: one was printed with two decimals, two are of 117 people or were rounded differently.
    assert rates - printed == {"15.25", "11.10", "29.60"}
    assert metrics.format_rate(8 / 118) == "6.80" and metrics.format_rate(18 / 118) == "15.30"


@pytest.mark.parametrize("hits, low, high", [(20, 11.2, 24.7), (11, 5.3, 15.9), (54, 37.0, 54.7)])
def test_wilson_interval(hits, low, high):
    assert np.round(100 * np.array(metrics.wilson(hits, 118)), 1).tolist() == [low, high]


def test_wilson_interval_stays_within_0_and_1():
    assert metrics.wilson(0, 10)[0] == 0 and metrics.wilson(10, 10)[1] == pytest.approx(1)
    assert 0 < metrics.wilson(0, 10)[1] < 0.4


@pytest.mark.parametrize("count", [3, 60])
def test_mean_interval_covers_the_mean_even_with_few_people(count):
    """A bootstrap over three people covers the mean in at most three of four cases (fault 22)."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        low, high = metrics.mean_interval(rng.normal(1.0, 2.0, count))
        covered += low < 1.0 < high
    assert 0.91 < covered / 300 < 0.99


@pytest.mark.parametrize("values", [[20.0], [20.0] * 6, [20.0, np.nan], []])
def test_mean_of_constant_or_too_few_values_has_no_interval(values):
    """One person, equal values or NaN gave an interval of zero width, or NaN, which is not JSON (fault 22)."""
    assert metrics.mean_interval(np.array(values)) == (None, None)


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("samples", [1, 4])
def test_rates_of_0_and_1_have_a_nonempty_interval(rate, samples):
    """With several samples, 0 of 20 had the interval [0, 0] (fault 22)."""
    low, high = metrics.rate_interval(np.full(20, rate), samples)
    assert low <= rate <= high and 0.1 < high - low < 0.2
    low, high = metrics.rate_interval(np.full(1, rate), samples)
    assert high - low > 0.7
    assert np.isnan(metrics.rate_interval(np.empty(0), samples)).all()


def test_rate_interval_is_wilsons_and_narrows_with_differing_samples():
    """One sample: SciPy's Wilson interval; equal samples of a person do not narrow it, others do (fault 22)."""
    from scipy.stats import binomtest

    one = np.arange(30) < 9
    scipys = binomtest(9, 30).proportion_ci(0.95, "wilson")
    assert metrics.rate_interval(one.astype(float), 1) == pytest.approx((scipys.low, scipys.high), abs=1e-6)
    assert metrics.rate_interval(one.astype(float), 4) == metrics.rate_interval(one.astype(float), 1)
    mixed = metrics.rate_interval(np.full(30, 0.25), 4)  # like 30 of 120 independent trials
    scipys = binomtest(30, 120).proportion_ci(0.95, "wilson")
    width = np.ptp(mixed)
    assert mixed[0] < 0.25 < mixed[1] and width >= scipys.high - scipys.low - 1e-6


@pytest.mark.parametrize("rate, concentration", [(0.02, 1.0), (0.3, 1.0), (0.3, 8.0)])
def test_rate_interval_covers_the_rate_with_several_samples(rate, concentration):
    """Rates of people follow a beta distribution: at least nine of ten intervals contain the mean rate."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        own = rng.beta(rate * concentration, (1 - rate) * concentration, 40)
        low, high = metrics.rate_interval(rng.binomial(4, own) / 4, 4)
        covered += low <= rate <= high
    assert covered / 400 > 0.9


def test_zero_difference_has_a_nonempty_interval():
    """No discordant pair gave the interval [0, 0] (fault 22). With one sample: the interval of Bonett & Price."""
    low, high = metrics.difference_interval(np.zeros(20))
    assert -0.2 < low < -0.05 and high == -low
    assert metrics.difference_interval(np.zeros(200))[1] < high / 5
    a, b = np.arange(40) < 12, (np.arange(40) < 5) | (np.arange(40) >= 38)
    p12, p21 = (7 + 1) / 42, (2 + 1) / 42
    half = 1.959964 * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / 42)
    assert metrics.difference_interval(a.astype(float) - b) == pytest.approx((p12 - p21 - half, p12 - p21 + half))
    assert metrics.difference_interval(np.ones(1))[1] == 1 > metrics.difference_interval(np.ones(1))[0]


def test_mcnemar_counts_only_discordant_people():
    a, b = np.array([1] * 9 + [0] + [1] * 5, bool), np.array([0] * 9 + [1] + [1] * 5, bool)
    assert metrics.mcnemar(a, b) == pytest.approx(2 * (1 + 10) / 2**10)
    assert metrics.mcnemar(a, b) == metrics.mcnemar(b, a) and metrics.mcnemar(a, a) == 1


def test_recall_counts_an_undetected_face_as_a_miss():
    assert metrics.recall(np.array([1, 3, 0, 4]), 3) == 0.5
    assert ranks([["a", "b"], ["a"], []], ["b", "b", "a"]).tolist() == [2, 0, 0]


def test_confusion_has_a_column_for_no_face():
    assert metrics.confusion([0, 0, 1], [0, -1, 0], 2).tolist() == [[1, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize("metric", gallery.METRICS)
def test_exact_search_equals_brute_force(tmp_path, metric):
    rng = np.random.default_rng(0)
    vectors, queries = (rng.standard_normal((n, 32)).astype(np.float32) for n in (100_000, 20))
    table = Gallery(tmp_path, metric)
    table.build("random", {}, [str(i) for i in range(len(vectors))], vectors)
    if metric == "cosine":
        vectors, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, queries))
    distance = (vectors**2).sum(1) - 2 * queries @ vectors.T
    nearest = np.argsort(distance, 1)[:, :10]
    assert [[int(i) for i in row] for row in table.search(queries, 10)] == nearest.tolist()


def test_large_gallery_uses_an_index_but_can_search_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "INDEX_ABOVE", 2000)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, 32))
    vectors = (centres[rng.integers(50, size=5000)] + 0.3 * rng.standard_normal((5000, 32))).astype(np.float32)
    table = Gallery(tmp_path, "l2")
    table.build("random", {}, [str(i) for i in range(5000)], vectors)
    exact = table.search(vectors[:20], 10, exact=True)
    nearest = np.argsort(((vectors[:20, None] - vectors) ** 2).sum(-1), 1)[:, :10]
    assert [[int(i) for i in row] for row in exact] == nearest.tolist()
    shared = [len(set(a) & set(b)) for a, b in zip(table.search(vectors[:20], 10), exact, strict=True)]
    assert np.mean(shared) > 8 and table._table.list_indices()


def test_gallery_is_reused_until_its_sources_change(tmp_path):
    vectors = np.eye(3, dtype=np.float32)
    first = Gallery(tmp_path, "l2")
    assert not first.open("eigenfaces", {"weights": "x"})
    first.build("eigenfaces", {"weights": "x"}, ["a", "b", "c"], vectors)
    again = Gallery(tmp_path, "l2")
    assert again.open("eigenfaces", {"weights": "x"}) and not again.open("eigenfaces", {"weights": "y"})
    assert again.search(vectors[:1], 99)[0][0] == "a" and len(again.search(vectors[:1], 99)[0]) == 3
    again.build("eigenfaces", {"weights": "y"}, ["a", "b"], vectors[:2])
    assert len(again) == 2


def test_evaluations_of_one_run_at_the_same_time_share_its_galleries(tmp_path):
    """The evaluation of another split dropped a gallery that was in use."""
    vectors = np.eye(3, dtype=np.float32)
    one, two, three = (Gallery(tmp_path, "l2") for _ in range(3))
    assert not one.open("dlib", {"split": "test"}) and not two.open("dlib", {"split": "test"})
    for each in (one, two):
        each.build("dlib", {"split": "test"}, ["a", "b", "c"], vectors)
    three.build("dlib", {"split": "validation"}, ["d", "e"], vectors[:2])
    for each in (one, two):
        assert each.search(vectors, 1) == [["a"], ["b"], ["c"]]
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="the gallery cannot be read"):
        one.search(vectors, 1)


def test_gallery_needs_two_faces_and_a_known_metric(tmp_path):
    with pytest.raises(UserError, match="gallery of 1"):
        Gallery(tmp_path, "l2").build("x", {}, ["a"], np.ones((1, 4)))
    with pytest.raises(UserError, match="--metric l3: must be one of: l2, cosine"):
        Gallery(tmp_path, "l3")


def test_gallery_folder_may_have_any_name(tmp_path, monkeypatch):
    """Paths may contain any legal character (fault 3)."""
    monkeypatch.chdir(tmp_path)
    for name in ("co:lon", "[x]*?", "%41 ü", "a::b", "back\\slash", "db:x"):
        Gallery(Path(name), "l2").build("x", {}, ["a", "b"], np.eye(2))
        again = Gallery(tmp_path / name, "l2")
        assert again.open("x", {}) and again.search(np.eye(2), 1) == [["a"], ["b"]]


def test_damaged_gallery_is_a_one_line_error(tmp_path):
    """A damaged gallery must not be treated like a missing one (fault 7)."""
    Gallery(tmp_path, "l2").build("x", {}, ["a", "b"], np.eye(2))
    for path in tmp_path.rglob("*.manifest"):
        path.write_bytes(b"no manifest")
    with pytest.raises(UserError, match="the gallery cannot be read or written .* remove this folder") as error:
        Gallery(tmp_path, "l2").open("x", {})
    assert "\n" not in str(error.value)


def test_gallery_of_a_read_only_run_is_stored_with_the_results(tmp_path):
    """A run that cannot be written to can still be evaluated (fault 17)."""
    run, out = tmp_path / "run", tmp_path / "out"
    assert scorers.gallery_folder(run, out) == run / "gallery"
    run.mkdir()
    (run / "gallery").write_text("")  # not writable, even by the superuser
    assert scorers.gallery_folder(run, out) == out / "gallery"


def test_damaged_validation_split_is_an_error(dataset, tmp_path, capsys):
    """A damaged split must not be treated like a missing one (fault 7)."""
    shutil.copytree(dataset, tmp_path / "copy", ignore=shutil.ignore_patterns("*.npz"))
    shard = next((tmp_path / "copy").glob("*-validation.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(UserError, match="validation.* truncated"):
        scorers.validation_scorer(tmp_path / "copy", False, None, tmp_path)
    with pytest.raises(UserError, match="truncated"):
        _optional(tmp_path / "copy", "validation")
    assert scorers.validation_scorer(tmp_path / "none", False, None, tmp_path) is None
    assert _optional(tmp_path / "copy", "other") is _optional(tmp_path / "none", "train") is None
    assert "no scale can be chosen on validation people" in capsys.readouterr().err


@pytest.fixture(scope="module")
def people(dataset):
    return protocol.choose(Clips(dataset, "test"))


def scores(people, rank, found=True):
    count = len(people)
    rank = np.broadcast_to(np.asarray(rank), (count,))[:, None]
    seen = np.full((count, 1), found)
    labels = {name: np.where(seen, people.probe[name][:, None], -1) for name in ATTRIBUTES}
    age = np.where(seen, people.probe["age"][:, None], np.nan)
    return protocol.Scores(rank, seen, age, labels, np.full((count, 1), 20.0), np.full((count, 1), 0.5), [[]] * count)


def test_probe_and_gallery_are_different_clips_if_a_speaker_has_two(tmp_path, schema):
    clips = [{**make_clip(i), "speaker_id": f"s{i // 2}"} for i in range(5)]
    writer.write_shard(tmp_path / writer.shard_name("test", 0, 1), schema, clips)
    writer.finalise(tmp_path, schema, {"test": 1})
    ids = [clip["clip_id"] for clip in clips]
    split, faces = Clips(tmp_path, "test"), [clip["face"] for clip in clips]
    people = protocol.choose(split)
    assert people.speakers == people.gallery == ["s0", "s1", "s2"] and people.ids == ids[::2]
    assert (people.faces == [faces[1], faces[3], faces[4]]).all() and (people.second == faces[::2]).all()
    assert people.another.tolist() == [True, True, False] and people.known.all()
    same = protocol.choose(split, same_clip=True)
    assert (same.faces == faces[::2]).all() and (same.second == [faces[1], faces[3], faces[4]]).all()
    assert same.ids == people.ids and not same.another.any()
    assert protocol.choose(split, 2).speakers == ["s0", "s1"]
    with pytest.raises(UserError, match="a gallery of 1"):
        protocol.choose(split, 1)


def write_split(folder, schema, speakers):
    clips = [{**make_clip(i), "speaker_id": speaker} for i, speaker in enumerate(speakers)]
    writer.write_shard(folder / writer.shard_name("test", 0, 1), schema, clips)
    writer.finalise(folder, schema, {"test": 1})
    return Clips(folder, "test")


def test_another_dataset_can_be_the_gallery_if_it_shares_a_speaker(tmp_path, schema):
    probes = write_split(tmp_path / "probes", schema, ["a", "b", "c"])
    larger = write_split(tmp_path / "gallery", schema, ["x", "b", "y", "b", "a"])
    people = protocol.choose(probes, gallery=larger)
    assert people.speakers == ["a", "b", "c"] and people.gallery == ["x", "b", "y", "a"]
    assert people.known.tolist() == [True, True, False]
    # make_clip(1) is both b's probe and b's first clip in the gallery dataset, so the gallery uses b's other clip.
    assert people.another.tolist() == [True, True, False] and (people.faces[1] == make_clip(3)["face"]).all()
    strangers = write_split(tmp_path / "strangers", schema, ["x", "y"])
    with pytest.raises(UserError, match="strangers: the gallery has no speaker of .*probes"):
        protocol.choose(probes, gallery=strangers)


def test_of_a_gallery_only_ids_and_faces_are_decoded(dataset, monkeypatch):
    decoded, decode = [], reader.decode_clip
    monkeypatch.setattr(reader, "decode_clip", lambda *given: decoded.append(set(clip := decode(*given))) or clip)
    people = protocol.choose(Clips(dataset, "test"), gallery=Clips(dataset, "test"))
    assert decoded[6:] == [{"clip_id", "face"}] * 6 and all({"mel", "face", "age"} < fields for fields in decoded[:6])
    assert "mel" in people.probe and (people.faces == people.probe["face"]).all()


def test_summary_has_a_fixed_denominator(people):
    none_found = protocol.summary(scores(people, 0, found=False), people)
    assert none_found["r@10"]["rate"] == 0 and none_found["r@10"]["n"] == len(people) and none_found["age_rmse"] is None
    assert none_found["gender"]["rate"] == 0 and none_found["age_group"]["rate"] == 0 and none_found["faces_found"] == 0
    all_found = protocol.summary(scores(people, 1), people)
    assert all_found["r@1"]["rate"] == all_found["gender"]["rate"] == all_found["age_group"]["rate"] == 1
    assert all_found["age_rmse"] == 0
    assert all_found["psnr"] == {"mean": 20.0, "low": None, "high": None}  # equal values have no interval


def test_attributes_that_an_embedder_cannot_predict_are_not_measured(people):
    blind = protocol.dataclasses.replace(scores(people, 1), age=None, labels={})
    summed = protocol.summary(blind, people)
    assert summed["gender"] is summed["age_group"] is summed["age_rmse"] is None and summed["r@1"]["rate"] == 1
    assert protocol.confusions(blind, people) == {}


def test_paired_difference_and_p_value(people):
    better, worse = scores(people, 1), scores(people, 2)
    found = protocol.compare(better, worse)
    assert found["r@1"]["difference"] == 1 and found["r@1"]["p_mcnemar"] == pytest.approx(2 * 0.5 ** len(people))
    same = {"first": 1, "second": 1, "difference": 0, "p_mcnemar": 1}
    assert found["r@3"].items() >= same.items() and found["r@3"]["low"] < -0.1 < 0.1 < found["r@3"]["high"]
    assert metrics.paired(np.array([0.5, 1.0]), np.array([0.5, 0.0]))["p_mcnemar"] is None  # several samples


def test_paired_means_match_the_closed_form():
    found = metrics.paired_means(np.array([1.0, 2.0, 4.0]), np.array([0.0, 0.0, 1.0]))  # differences 1, 2, 3
    assert found["difference"] == 2
    assert found["low"] == pytest.approx(2 - 4.302653 / np.sqrt(3), rel=1e-6)  # Student's t of 2 degrees of freedom
    # With 2 degrees of freedom, the two-sided p of t is 1 - t / sqrt(2 + t^2), here t = 2 sqrt(3).
    assert found["p"] == pytest.approx(1 - np.sqrt(12 / 14), rel=1e-6)
    assert metrics.paired_means(np.array([np.inf, 1.0]), np.array([1.0, 1.0])) is None


def test_p_above_chance_is_exact():
    assert metrics.p_above_chance(np.array([True, True, False]), 0.1) == pytest.approx(3 * 0.01 * 0.9 + 0.001)
    assert metrics.p_above_chance(np.zeros(5, bool), 0.1) == 1


def test_largest_gap_between_groups_is_reported(people, monkeypatch):
    monkeypatch.setattr(protocol, "MIN_GROUP", 1)
    gender = people.probe["gender"]
    groups = protocol.by_group(scores(people, np.where(gender == gender[0], 1, 0)), people)
    assert groups["largest_gap"]["gap"] == 1
    counted = sum(group["r@1"]["n"] for group in groups["gender"].values())
    assert counted == (gender >= 0).sum()


def test_people_without_labels_are_measured_without_attributes(people):
    unknown = {**people.probe, **{name: np.full(len(people), -1) for name in ATTRIBUTES}}
    unknown["age"] = np.full(len(people), np.nan)
    unlabelled = protocol.dataclasses.replace(people, probe=unknown)
    summed = protocol.summary(scores(unlabelled, 1), unlabelled)
    assert summed["gender"] is None and summed["age_group"] is None and summed["r@1"]["rate"] == 1
    assert any("The ethnicity was not measured" in note for note in tables._unmeasured({"x": summed}))
    assert protocol.by_group(scores(unlabelled, 1), unlabelled) == {
        "gender": {}, "ethnicity": {}, "age_group": {}, "largest_gap": None
    }  # fmt: skip
    assert protocol.confusions(scores(unlabelled, 1), unlabelled) == {}


def test_eigenfaces_recognise_faces_and_fingerprint_their_training_data(dataset):
    train = Clips(dataset, "train")
    embedder = make_embedder("eigenfaces", "", "", train)
    faces = np.stack([make_clip(i, "train")["face"] for i in range(6)])
    noisy = np.clip(faces + np.random.default_rng(0).normal(0, 8, faces.shape), 0, 255).astype(np.uint8)
    a, b = (embedder(x).vectors for x in (faces, noisy))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    assert ((a @ b.T).argmax(1) == np.arange(6)).all() and embedder.metric == "cosine"
    assert embedder.fingerprint == make_embedder("eigenfaces", "", "", train).fingerprint
    assert embedder.fingerprint != make_embedder("eigenfaces", "", "", Clips(dataset, "test")).fingerprint
