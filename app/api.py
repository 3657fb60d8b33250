"""The HTTP API: one named endpoint with the page's abilities, for `gradio_client` and plain HTTP."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from app.handlers import NO_CONSENT, Handlers, readable
from app.requests import ATTRIBUTES, SETTINGS, read_attributes, read_request
from app.uploads import upload
from app.visits import Visit
from slf_common.errors import UserError

NAME = "draw"


def add_endpoint(handlers: Handlers, group: str) -> None:
    """Adds the endpoint to the current Blocks; `group`: whose concurrency limit it shares."""
    with gr.Row(visible=False):
        inputs = [
            upload("voice"),
            upload("thumbnail"),
            *(gr.Textbox(label=name, value="") for name in ATTRIBUTES),
            gr.Textbox(label="scales", value="2"),
            gr.Number(label="samples", value=1),
            gr.Number(label="seed", value=0),
            gr.JSON(label="settings", value={}),
            gr.Checkbox(label="consent", value=False),
            gr.Checkbox(label="crop", value=False),
        ]
        outputs = [gr.File(label="faces", file_count="multiple"), gr.File(label="archive"), gr.File(label="matrix")]
        note = gr.Textbox(label="note")
        button = gr.Button("draw")

    def draw(
        voice: str | None, thumbnail: str | None, age: str, gender: str, ethnicity: str, language: str,
        scales: str, samples: float, seed: float, settings: dict | None, consent: bool, crop: bool,
    ) -> tuple:  # fmt: skip
        """Draws faces from any subset of a voice, a thumbnail and attributes.

        Returns the PNG files ordered by sample then scale, a ZIP of them, the picture of the feature matrix, and a
        note on what is known. `consent` must be true if a voice is given. `settings`: of the sampler.
        """
        attributes = dict(zip(ATTRIBUTES, (age, gender, ethnicity, language), strict=True))
        values = {**_check_settings(settings), **attributes, "scales": scales, "samples": samples, "seed": seed}
        session = f"api-{secrets.token_hex(8)}"
        visit = handlers.visits.open(session)
        try:
            return _draw(handlers, visit, values, voice, thumbnail, consent, crop)
        finally:
            handlers.visits.close(session)

    button.click(readable(draw), inputs, [*outputs, note], api_name=NAME, concurrency_id=group, concurrency_limit=1)


def _draw(
    handlers: Handlers, visit: Visit, values: Mapping[str, Any], voice: str | None, thumbnail: str | None,
    consent: bool, crop: bool,
) -> tuple:  # fmt: skip
    wanted = read_request(handlers.system, handlers.limits, values)
    if voice and not consent:
        raise UserError(f"{Path(voice).name}: {NO_CONSENT}: consent=True")
    try:
        visit.voice = handlers.system.listen(voice) if voice else None
        visit.thumbnail = handlers.read_thumbnail(Path(thumbnail), crop) if thumbnail else None
    except UserError as error:
        raise UserError(_without_folders(str(error), voice, thumbnail)) from None
    person = handlers.system.describe_person(voice=visit.voice, thumbnail=visit.thumbnail, **read_attributes(values))
    faces = handlers.write_faces(visit, person, wanted)
    matrix, text = handlers.write_matrix(visit, person)
    heard = (*visit.voice.notes, text) if visit.voice else (text,)
    return [str(path) for path, _ in faces.images], str(faces.archive), str(matrix), "; ".join(heard)


def _check_settings(settings: object) -> dict[str, Any]:
    if not isinstance(settings, dict | None):
        raise UserError(f"settings {json.dumps(settings)[:100]}: must be an object")
    for name in settings or {}:
        if name not in SETTINGS:
            raise UserError(f"settings: {name!r}: must be one of {', '.join(SETTINGS)}")
    return settings or {}


def _without_folders(line: str, *paths: str | None) -> str:
    for path in filter(None, paths):
        line = line.replace(f"{Path(path).parent}/", "")
    return line
