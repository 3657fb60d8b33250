"""Ranks real faces by the embedding that the identity head predicts from the conditions, without drawing a face."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from slf_jax import features
from slf_jax.evaluation import metrics
from slf_jax.evaluation.identity import cosines, identity, own_ranks, same_person
from slf_jax.evaluation.protocol import EvaluationSet
from slf_jax.inference.trained import Trained
from tfrecords.schema import FACE_EMBEDDING


def evaluate_head(
    trained: Trained, people: EvaluationSet, masked: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]] | None:
    """Recall, similarity and verification of the head's predictions, by system; `masked`: the inputs that it masks.

    The predictions are compared by cosine with the embeddings in the gallery's records, both relative to the mean
    training face. None if the system has no such head, or the records have no embeddings.
    """
    if people.embeddings is None or not trained.meta.config.model.identity_width:
        return None
    gallery = np.asarray(features.face_identity({FACE_EMBEDDING: people.embeddings}, trained.system.statistics))
    known = np.isfinite(gallery).all(1)
    names = np.asarray(people.gallery)[known]
    own = same_person(people.speakers, names)
    predict, found = predictor(trained), {}
    for system, without in masked.items():
        predicted = predict(people.probe, without)
        ranks = own_ranks(cosines(predicted, gallery[known]), own)
        rates = {
            f"r@{k}": metrics.rate(((ranks > 0) & (ranks <= k)).astype(float)) for k in metrics.reported_ks(len(names))
        }
        found[system] = {
            **rates,
            "identity": identity(predicted, people.speakers, gallery[known], names, metric="cosine"),
        }
    return found


def predictor(trained: Trained) -> Callable[[Mapping[str, np.ndarray], Sequence[str]], np.ndarray]:
    """Returns the function that maps records, and inputs to mask, to predicted embeddings of their faces [B, E].

    They have unit length and are relative to the mean face. It is compiled once for any choice of inputs.
    """
    compiled = jax.jit(trained.system.predict_identity)

    def predict(clips: Mapping[str, np.ndarray], without: Sequence[str]) -> np.ndarray:
        masked = trained.system.without(without).mask_unused_inputs(clips)
        conditions = {key: value for key, value in masked.items() if key in trained.system.layout.names}
        return np.asarray(compiled(trained.params["base"], conditions))

    return predict
