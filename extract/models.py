"""Everything with weights that the work on a chunk needs; a process loads it once."""

from __future__ import annotations

from collections.abc import Mapping

from extract import deepface, extractors, faces
from extract.extractors import Extractor
from extract.frameworks import keep_memory
from tfrecords.schema import LABELS, LANGUAGE_LOGPROBS, Schema


class Models:
    """The extractors, the face detector and, where attributes are to be estimated, DeepFace's models of them.

    Making it loads weights and says in a `UserError` what is missing. `settings`: `config.extract`.
    """

    def __init__(self, settings: Mapping) -> None:
        keep_memory()
        estimate = settings["deepface"]["estimate"]
        if settings["detector"] != faces.SKIP or estimate:
            deepface.start(settings["deepface"])
        self.detector = faces.load_detector(settings["detector"])
        self.estimator = deepface.Estimator(estimate) if estimate else None
        self.frames: int = settings["frames"]
        self.extractors: list[Extractor] = extractors.load(settings)

    def schema(self) -> Schema:
        """What the records hold: the constituents as these models make them, and the labels' names."""
        names = [part.labels for part in self.extractors if part.constituent.name == LANGUAGE_LOGPROBS.name]
        labels = LABELS | {"language": names[0]} if names else dict(LABELS)
        return Schema(tuple(part.constituent for part in self.extractors), labels)

    def provenance(self) -> dict[str, object]:
        """Where the faces and the estimated attributes come from, for the dataset's metadata."""
        found: dict[str, object] = {"faces": {"detector": faces.SKIP}, "margins": list(faces.MARGINS)}
        if isinstance(self.detector, deepface.Detector):
            found["faces"] = dict(self.detector.provenance)
            if self.detector.name in faces.SECOND_LOOKS:
                found["faces"]["second looks"] = f"at {', '.join(map(str, faces.SIDES))} pixels"
        if self.estimator:
            found["attributes"] = self.estimator.provenance
        return found


def check(settings: Mapping) -> None:
    """What can be said of `config.extract` without loading anything; raises `UserError`."""
    extractors.plan(settings)
    faces.check(settings)


def use_networks(settings: Mapping) -> bool:
    """Whether anything in `config.extract` would run on a GPU."""
    heavy = any(extractors.EXTRACTORS[name].extra == "extract" for name in settings["extractors"])
    return heavy or settings["detector"] != faces.SKIP or bool(settings["deepface"]["estimate"])


def planned_schema(settings: Mapping) -> Schema:
    """The schema with the paper's models; other weights may bring other widths and languages."""
    return Schema(tuple(extractors.plan(settings)))
