"""The identity head: predicts the embedding of a face from the encoded conditions."""

import jax
import numpy as np
import optax
import pytest

from slf_common.errors import UserError
from slf_jax import features
from slf_jax.cascade.system import build_system
from slf_jax.evaluation import identity_head
from slf_jax.evaluation.protocol import EvaluationSet
from slf_jax.inference.trained import Trained
from slf_jax.training.checkpoints import Meta
from slf_jax.training.run import prepare
from slf_jax.training.settings import train_settings
from slf_jax.training.step import make_loss
from tfrecords.schema import FACE_EMBEDDING

WIDTH = 4


@pytest.fixture(scope="module")
def batch_of_faces(batch):
    """Six records with embeddings of their faces; those of the last two are unknown."""
    embeddings = np.random.default_rng(0).normal(size=(6, 1, WIDTH)).astype(np.float16)
    embeddings[4:] = np.nan
    return {**batch, FACE_EMBEDDING: embeddings, "batch_index": np.arange(6)}


@pytest.fixture(scope="module")
def head_config(config):
    changed = config.copy_and_resolve_references()
    changed.model.identity_width = WIDTH
    changed.train.update(identity_weight=0.5, cond_drop=0.0, constituent_drop={}, flip=False)
    return changed


@pytest.fixture(scope="module")
def with_head(head_config, system):
    statistics = {**system.statistics, FACE_EMBEDDING: {"mean": np.full(WIDTH, 0.5, np.float32)}}
    return build_system(head_config, system.layout, statistics)


@pytest.fixture(scope="module")
def head_params(with_head, params):
    """The parameters of the system without the head, plus the head's."""
    fresh = jax.jit(with_head.stages["base"].init)(jax.random.key(0))
    conditioner = {**params["base"]["conditioner"], "identity": fresh["conditioner"]["identity"]}
    return {**params["base"], "conditioner": conditioner}


def make_losses(system, config):
    """The training loss of six records, as a function of parameters and records."""
    loss_of, key = make_loss(system, "base", train_settings(config, "base")), jax.random.key(3)
    return lambda params, batch: loss_of(params, batch, key, key, 6)


@pytest.fixture(scope="module")
def gradients(with_head, head_config):
    """The training loss of six records and its gradient; compiled once, as that takes longer than all its uses."""
    return jax.jit(jax.value_and_grad(make_losses(with_head, head_config), has_aux=True))


@pytest.fixture(scope="module")
def losses(gradients):
    return lambda params, batch: gradients(params, batch)[0]


def test_identity_is_centred_and_of_unit_length(with_head, batch_of_faces):
    found = np.asarray(features.face_identity(batch_of_faces, with_head.statistics))
    expected = batch_of_faces[FACE_EMBEDDING][:4, 0].astype(float) - 0.5
    np.testing.assert_allclose(found[:4], expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert np.isnan(found[4:]).all()


@pytest.mark.slow
def test_the_objective_adds_the_distance_to_known_embeddings(losses, head_params, batch_of_faces):
    objective, (loss, _, cosine) = losses(head_params, batch_of_faces)
    assert np.isnan(cosine[4:]).all() and (np.abs(cosine[:4]) <= 1 + 1e-6).all()
    expected = loss.mean() + 0.5 * (1 - cosine[:4]).sum() / 6
    np.testing.assert_allclose(objective, expected, rtol=1e-6)


@pytest.mark.slow
def test_the_denoising_loss_does_not_depend_on_the_head(
    system, head_config, params, losses, head_params, batch_of_faces
):
    without = head_config.copy_and_resolve_references()
    without.model.identity_width = 0
    objective, (loss, _, cosine) = jax.jit(make_losses(system, without))(params["base"], batch_of_faces)
    assert cosine is None
    np.testing.assert_allclose(losses(head_params, batch_of_faces)[1][0], loss, rtol=1e-6)
    np.testing.assert_allclose(objective, loss.mean(), rtol=1e-6)


@pytest.mark.slow
def test_nothing_is_predicted_from_unknown_conditions(with_head, losses, head_params, batch_of_faces):
    inputs = with_head.stages["base"].conditioner.inputs
    unknown = features.mask_constituents(batch_of_faces, inputs)
    objective, (loss, _, cosine) = losses(head_params, unknown)
    assert np.isnan(cosine).all()
    np.testing.assert_allclose(objective, loss.mean(), rtol=1e-6)


def test_training_raises_the_cosine_and_gradients_are_finite(gradients, head_params, batch_of_faces):
    optimizer = optax.adam(1e-2)

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, optax.tree.norm(gradient)

    params, state, cosines = head_params, optimizer.init(head_params), []
    for _ in range(40):
        (_, (_, _, cosine)), gradient = gradients(params, batch_of_faces)
        params, state, norm = update(params, state, gradient)
        assert np.isfinite(norm)
        cosines.append(float(np.nanmean(cosine)))
    assert cosines[-1] > 0.95 > cosines[0]


@pytest.fixture(scope="module")
def trained(head_config, schema, with_head, head_params):
    meta = Meta(head_config, schema, with_head.statistics, {})
    return Trained(meta, with_head, {"base": head_params}, {}, {})


def people_of(batch, embeddings):
    names, everyone = [f"person {i}" for i in range(6)], np.ones(6, bool)
    faces = batch["face"]
    return EvaluationSet(names, names, batch, names, faces, embeddings, everyone, ~everyone, faces, {})


def test_faces_are_ranked_by_the_predicted_embedding(trained, with_head, batch_of_faces):
    predicted = identity_head.predictor(trained)(batch_of_faces, ())
    np.testing.assert_allclose(np.linalg.norm(predicted, axis=1), 1, rtol=1e-5)
    mean = with_head.statistics[FACE_EMBEDDING]["mean"]
    people = people_of(batch_of_faces, (predicted + mean)[:, None].astype(np.float16))
    found = identity_head.evaluate_head(trained, people, {"all inputs": (), "without mel": ("mel",)})
    assert found["all inputs"]["r@1"]["rate"] == 1 > found["without mel"]["r@1"]["rate"]
    assert found["all inputs"]["identity"]["cosine_own"]["mean"] > 0.999
    assert found["all inputs"]["identity"]["verification"]["auc"]["rate"] == 1


def test_faces_without_embeddings_are_not_ranked(trained, batch_of_faces):
    embeddings = np.array(batch_of_faces[FACE_EMBEDDING])  # the last two are unknown
    found = identity_head.evaluate_head(trained, people_of(batch_of_faces, embeddings), {"all inputs": ()})
    assert found["all inputs"]["r@1"]["n"] == 6 and found["all inputs"]["r@10"]["rate"] == pytest.approx(4 / 6)
    assert identity_head.evaluate_head(trained, people_of(batch_of_faces, None), {"all inputs": ()}) is None


def test_a_dataset_without_embeddings_is_rejected(fresh_config):
    config = fresh_config("identity")
    config.model.identity_width = 128
    with pytest.raises(UserError, match=r"identity_width=128: .* has no face embeddings .*; set it to 0$"):
        prepare(config, skip_damaged=False)
