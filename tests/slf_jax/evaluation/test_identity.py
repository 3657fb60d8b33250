"""Measures on embeddings, against closed forms, fixed vectors and scikit-learn."""

import numpy as np
import pytest

from slf_jax.evaluation import distribution, identity, metrics


def test_nobody_of_118_has_an_upper_bound_of_3_percent():
    """For any number of samples, and the same from above; a single hit does not lower the bound by much."""
    for samples in (1, 4, np.inf):
        low, high = metrics.rate_interval(np.zeros(118), samples)
        assert low == 0 and high == pytest.approx(0.0315, abs=5e-4)
        assert metrics.rate_interval(np.ones(118), samples) == pytest.approx((1 - high, 1))
    one = np.append(np.zeros(117), 0.25)
    assert metrics.rate_interval(one, 4)[1] > 0.029


def test_similarity_and_ranks_on_fixed_vectors():
    gallery, queries = np.eye(3), np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    assert identity.cosines(queries, gallery) == pytest.approx(np.array([[0.6, 0.8, 0], [0, 0, 1], [0, 1, 0]]))
    assert identity.distances(queries, gallery)[0] == pytest.approx([20**0.5, 18**0.5, 26**0.5])
    own = identity.same_person(["a", "c", "z"], ["a", "b", "c"])
    assert identity.own_ranks(identity.cosines(queries, gallery), own).tolist() == [2, 1, 0]
    tied = np.ones((2, 3))  # says nothing: ranked last, not first
    assert identity.own_ranks(tied, own[:2]).tolist() == [3, 3]


def test_own_face_is_compared_with_those_of_others():
    """Cosine and angle of a query at 60 degrees from its own face, and at 30 from the other's."""
    query = np.array([[0.5, np.sqrt(3) / 2]])
    found = identity.identity(query, ["a"], np.eye(2), ["a", "b"], metric="cosine")
    assert found["cosine_own"]["mean"] == pytest.approx(0.5) and found["angle"]["mean"] == pytest.approx(60)
    assert found["cosine_others"]["mean"] == pytest.approx(np.sqrt(3) / 2) and found["l2_own"]["mean"] == pytest.approx(
        1
    )
    assert found["verification"]["auc"]["rate"] == 0 and found["verification"]["eer"]["rate"] == 1


def test_means_are_over_people_with_a_face_that_was_found():
    queries, ids = np.array([[1.0, 0], [0, 1.0], [0, 1.0], [9.0, 9.0]]), ["a", "a", "b", "b"]
    found = identity.identity(
        queries, ids, np.eye(2), ["a", "b"], metric="l2", found=np.array([True, True, True, False])
    )
    own = found["cosine_own"]  # 0.5 of a, 1 of b
    assert own["mean"] == 0.75 and own["n"] == 2 and own["low"] == pytest.approx(0.75 - 12.706 * 0.25, abs=0.01)
    assert found["verification"]["genuine"] == 4  # the face that was not found is rejected


def test_verification_equals_scikit_learns_curve_and_counts_missing_faces():
    from scipy.optimize import brentq
    from sklearn.metrics import roc_auc_score, roc_curve

    rng = np.random.default_rng(0)
    own = np.eye(40, dtype=bool)
    scores = np.round(rng.normal(0, 1, (40, 40)) + 1.2 * own, 1)  # rounded, so that there are ties
    found = identity.verification(scores, own, range(40))
    assert found["auc"]["rate"] == pytest.approx(roc_auc_score(own.ravel(), scores.ravel()))
    accepted, correct, _ = roc_curve(own.ravel(), scores.ravel(), drop_intermediate=False)
    assert found["eer"]["rate"] == pytest.approx(brentq(lambda x: 1 - x - np.interp(x, accepted, correct), 0, 1))
    assert found["auc"]["low"] < found["auc"]["rate"] < found["auc"]["high"] and found["genuine"] == 40
    nothing = identity.verification(np.full((40, 40), -np.inf), own, range(40))
    assert nothing["auc"]["rate"] == nothing["eer"]["rate"] == 0.5
    half = identity.verification(np.where(np.arange(40)[:, None] < 20, scores, -np.inf), own, range(40))
    assert half["auc"]["rate"] < found["auc"]["rate"] and half["eer"]["rate"] > found["eer"]["rate"]
    assert identity.verification(scores, np.zeros_like(own), range(40)) is None


def test_perfect_verification_has_the_interval_of_the_number_of_people():
    perfect = identity.verification(np.eye(118), np.eye(118, dtype=bool), range(118))
    assert perfect["auc"]["rate"] == 1 and perfect["eer"]["rate"] == 0
    assert perfect["auc"]["low"] == pytest.approx(1 - 0.0315, abs=5e-4)
    assert perfect["eer"]["high"] == pytest.approx(0.0315, abs=5e-4)


@pytest.mark.parametrize("samples", [1, 3])
def test_verification_intervals_cover_the_true_rates(samples):
    """Queries are the person's face plus noise, which the samples of a person share in part."""
    rng = np.random.default_rng(3)
    gallery, ids = rng.normal(size=(30, 4)), np.repeat(np.arange(30), samples)

    def measure():
        noise = np.repeat(rng.normal(size=(30, 4)), samples, 0) + rng.normal(size=(30 * samples, 4))
        similarity = -identity.distances(gallery[ids] + noise, gallery)
        return identity.verification(similarity, ids[:, None] == np.arange(30), ids)

    drawn = [measure() for _ in range(150)]
    for name in ("auc", "eer"):
        truth = np.mean([each[name]["rate"] for each in drawn])
        covered = np.mean([each[name]["low"] <= truth <= each[name]["high"] for each in drawn])
        assert covered > 0.9, (name, covered)


def test_kid_is_unbiased_and_equals_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)), rng.normal(1, 1, size=(5, 3))

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    within = [np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert distribution.kid(x, y, np.zeros((7, 5), bool)) == pytest.approx(sum(within) - 2 * across)

    def paired():  # two faces of each of ten people
        x = rng.normal(size=(10, 3))
        return distribution.kid(x, 0.8 * x + 0.6 * rng.normal(size=(10, 3)), np.eye(10, dtype=bool))

    drawn = [paired() for _ in range(500)]
    assert abs(np.mean(drawn)) < 3 * np.std(drawn) / 500**0.5 and min(drawn) < 0


@pytest.mark.parametrize("count", [4, 50])  # fewer faces than components, and more
def test_frechet_distance_equals_its_definition(count):
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(count, 6)), rng.normal(0.5, 2, size=(60, 6))
    a, b = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert distribution.frechet(x, y) == pytest.approx(expected, abs=1e-5)
    assert distribution.frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert distribution.frechet(x, x + 2) == pytest.approx(6 * 4)


def test_distribution_does_not_depend_on_the_length_of_embeddings():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 5)), rng.normal(size=(30, 5))
    others = np.zeros((20, 30), bool)
    found, scaled = distribution.compare(x, y, others), distribution.compare(7 * x, 7 * y, others)
    assert found == pytest.approx(scaled) and found["generated"] == 20 and found["real"] == 30
    assert distribution.compare(x[:1], y, others[:1]) is None and distribution.compare(x, y, ~others) is None


def test_diversity_over_samples():
    vectors = np.array([[[1.0, 0], [0, 1], [1, 0]], [[1, 0], [1, 0], [5, 5]]])
    found = np.array([[True, True, True], [True, True, False]])
    assert distribution.diversity(vectors, found, "cosine")["mean"] == pytest.approx((2 / 3 + 0) / 2)
    assert distribution.diversity(vectors, found, "l2")["mean"] == pytest.approx((2 / 3 * 2**0.5) / 2)
    assert distribution.diversity(vectors[:, :1], found[:, :1], "l2") is None
    images = np.array([[[10]], [[14]]], np.uint8).reshape(1, 2, 1, 1, 1)
    assert distribution.pixel_deviation(images)["mean"] == pytest.approx(8**0.5)
    assert distribution.pixel_deviation(images[:, :1]) is None


def test_clipped_values_are_counted():
    image = np.array([[[0, 255, 7], [1, 254, 0]]], np.uint8)
    assert metrics.clipped(image[None]).tolist() == [0.5]
