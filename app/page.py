"""The page: its layout, and which events call which handlers."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from app import api, notes, texts
from app.handlers import Handlers
from app.requests import ATTRIBUTES, SETTINGS, UNKNOWN
from app.uploads import upload
from slf_jax.cascade.settings import sample_settings
from slf_jax.cascade.sizes import STAGES
from slf_jax.diffusion import guidance, noise, samplers

MODEL = "model"  # events of this group run one at a time
STYLE = Path(__file__).with_name("page.css")
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
CHOICES = {
    "sampler": tuple(samplers.SAMPLERS),
    "sigma_schedule": tuple(noise.SCHEDULES),
    "x0_threshold": tuple(guidance.THRESHOLDS),
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The components on the left."""

    voice: dict[str, Any]
    picture: dict[str, Any]
    controls: dict[str, Any]  # by the names that `app.requests` reads


def theme() -> gr.themes.Base:
    """Colours, and the fonts of the visitor's system."""
    return gr.themes.Default(
        primary_hue="indigo", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )


def build(handlers: Handlers, about: str = "") -> gr.Blocks:
    """Lays out the page and connects it to its handlers; `about`: a line on the system that draws."""
    with gr.Blocks(title="SLF-JAX", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(f"# Faces from a voice\n{texts.NOT}\n\n{about}")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                inputs = Inputs(_voice(handlers), _picture(), _controls(handlers))
                button = gr.Button("Draw", variant="primary", size="lg")
                status = gr.HTML(elem_id="status")
            with gr.Column(scale=6, min_width=320):
                outputs = _results()
                examples = _examples(handlers)
        gr.Markdown(texts.privacy(handlers.limits))
        _connect_uploads(handlers, inputs)
        _connect_drawing(handlers, inputs, button, status, outputs)
        if examples:
            _connect_examples(handlers, inputs, examples)
        api.add_endpoint(handlers, MODEL)
        page.load(handlers.open, **HIDDEN, queue=False)
        page.unload(handlers.close)
    page.queue(max_size=handlers.limits.queue, default_concurrency_limit=1)
    return page


def _voice(handlers: Handlers) -> dict[str, Any]:
    """Consent, two ways to give a recording, and what was heard."""
    usable = bool(handlers.system.voice_inputs)
    with gr.Column(elem_classes="card"):
        gr.Markdown("### Voice" if usable else f"### Voice\n{texts.NO_VOICE}")
        consent = gr.Checkbox(label=texts.CONSENT, visible=usable, container=False)
        with gr.Tabs(visible=False) as tabs:
            with gr.Tab("File"):
                file = upload(f"Sound or video, at most {handlers.limits.upload_mb} MB", height=150, elem_id="voice")
            with gr.Tab("Microphone"):
                microphone = gr.Audio(
                    sources=["microphone"], type="filepath", format=None, editable=False, buttons=[],
                    label="Record at least a few seconds", elem_id="microphone",
                )  # fmt: skip
        note = gr.HTML(elem_id="voice-note")
        sound = gr.Audio(visible=False, interactive=False, label="Voice of the example", buttons=[])
        forget = gr.Button("Remove the voice", size="sm", visible=False)
    return dict(consent=consent, tabs=tabs, file=file, microphone=microphone, note=note, sound=sound, forget=forget)


def _picture() -> dict[str, Any]:
    """Two ways to give a picture, and the thumbnail."""
    with gr.Column(elem_classes="card"):
        gr.Markdown("### Thumbnail")
        crop = gr.Checkbox(
            label="Crop to the largest face (otherwise: the centre square)", container=False,
            visible=importlib.util.find_spec("deepface") is not None,
        )  # fmt: skip
        with gr.Tabs():
            with gr.Tab("File"):
                file = upload("Picture", height=150, elem_id="picture")
            with gr.Tab("Camera"):
                camera = gr.Image(sources=["webcam"], type="filepath", image_mode=None, label="Camera", height=240)
        note = gr.HTML(elem_id="picture-note")
        forget = gr.Button("Remove the thumbnail", size="sm", visible=False)
    return dict(crop=crop, file=file, camera=camera, note=note, forget=forget)


def _controls(handlers: Handlers) -> dict[str, Any]:
    """Attributes that the system uses, and how to draw."""
    system, limits = handlers.system, handlers.limits
    labels = system.trained.meta.schema.labels
    controls: dict[str, Any] = {}
    with gr.Group():
        with gr.Row():
            for name in (name for name in ATTRIBUTES if name in system.inputs):
                if name == "age":
                    # Not a number: Gradio shows an empty one as 0.
                    controls[name] = gr.Textbox(label="Age in years", placeholder=UNKNOWN, max_lines=1, min_width=120)
                else:
                    choices = [UNKNOWN, *labels[name]]
                    controls[name] = gr.Dropdown(choices, value=UNKNOWN, label=name.capitalize(), min_width=120)
        sweep = gr.Checkbox(label="Sweep: a row of guidance scales", elem_id="sweep")
        most = system.trained.system.max_scale or 10  # of a distilled system, or any
        scale = gr.Slider(0, most, 2, step=0.5, label="Guidance scale", info=texts.SCALE)
        scales = gr.Textbox("0, 1, 2, 4, 8", label="Guidance scales", info=texts.SCALE, visible=False)
        sweep.change(
            lambda on: (gr.Slider(visible=not on), gr.Textbox(visible=on)),
            sweep,
            [scale, scales],
            **HIDDEN,
            queue=False,
        )
        with gr.Row():
            samples = gr.Slider(1, limits.samples, 1, step=1, label="Samples", min_width=120)
            seed = gr.Number(0, label="Seed", precision=0, min_width=120)
    with gr.Accordion("Sampler", open=False):
        settings = _settings(handlers)
    return {**controls, "sweep": sweep, "scale": scale, "scales": scales, "samples": samples, "seed": seed, **settings}


def _settings(handlers: Handlers) -> dict[str, Any]:
    """The settings of the sampler, at the values of the system."""
    values = dataclasses.asdict(sample_settings(handlers.system.trained.meta.config))
    flows = values["flows"]  # stages with times of their own, and without added noise
    unused = ("churn",) * bool(flows) + ("sigma_schedule",) * (len(flows) == len(STAGES))
    gr.Markdown(texts.SETTINGS)
    made: dict[str, Any] = {}
    for name in SETTINGS:
        value, label = values[name], texts.LABELS[name]
        if name in unused:
            continue
        if name == "sampler" and flows:
            made[name] = gr.Dropdown(list(samplers.DETERMINISTIC), value=value, label=label)
        elif name in CHOICES:
            made[name] = gr.Dropdown(list(CHOICES[name]), value=value, label=label)
        elif isinstance(value, bool):
            made[name] = gr.Checkbox(value, label=label)
        elif name == "steps":
            made[name] = gr.Slider(1, handlers.limits.steps, value, step=1, label=label)
        else:
            made[name] = gr.Number(value, label=label)
    return made


def _results() -> dict[str, Any]:
    gallery = gr.Gallery(
        show_label=False, columns=4, height="auto", object_fit="contain", format="png", elem_id="faces",
        buttons=["download", "fullscreen"], interactive=False,
    )  # fmt: skip
    archive = gr.DownloadButton("Download all (ZIP)", interactive=False, size="sm", elem_id="archive")
    with gr.Accordion("What the system was given", open=False):
        known = gr.HTML(notes.note(texts.MATRIX))
        matrix = gr.Image(
            show_label=False, alt_text="the feature matrix", interactive=False, buttons=["download", "fullscreen"],
            elem_id="matrix",
        )  # fmt: skip
    return dict(gallery=gallery, archive=archive, known=known, matrix=matrix)


def _examples(handlers: Handlers) -> gr.Gallery | None:
    """Drawn people to choose from."""
    if not handlers.examples:
        return None
    described = [(str(each.picture), f"{each.gender}, {each.age:g}, {each.ethnicity}") for each in handlers.examples]
    gr.Markdown(f"### Examples\n{texts.EXAMPLES}")
    return gr.Gallery(
        described, show_label=False, columns=len(described), height="auto", allow_preview=False, buttons=[],
        interactive=False, elem_id="examples",
    )  # fmt: skip


def _connect_uploads(handlers: Handlers, inputs: Inputs) -> None:
    """An upload first moves to the visitor's own folder, and is then read in its turn."""
    voice, picture = inputs.voice, inputs.picture
    voice["consent"].change(lambda on: gr.Tabs(visible=on), voice["consent"], voice["tabs"], **HIDDEN, queue=False)
    for source, event in ((voice["file"], voice["file"].upload), (voice["microphone"], voice["microphone"].input)):
        outputs = [voice["note"], voice["forget"], source, voice["sound"]]
        received = event(handlers.receive_voice, source, None, **HIDDEN, queue=False)
        received.success(handlers.listen, voice["consent"], outputs, **_turn(voice["note"]))
    for source, event in ((picture["file"], picture["file"].upload), (picture["camera"], picture["camera"].input)):
        outputs = [picture["note"], picture["forget"], source]
        received = event(handlers.receive_picture, source, None, **HIDDEN, queue=False)
        received.success(handlers.look, picture["crop"], outputs, **_turn(picture["note"]))
    voice["forget"].click(handlers.forget_voice, None, [voice["note"], voice["forget"], voice["sound"]], **HIDDEN)
    picture["forget"].click(handlers.forget_thumbnail, None, [picture["note"], picture["forget"]], **HIDDEN)


def _connect_drawing(
    handlers: Handlers, inputs: Inputs, button: gr.Button, status: gr.HTML, outputs: Mapping[str, Any]
) -> None:
    controls = inputs.controls

    def answer(given: dict, request: gr.Request, progress: gr.Progress = gr.Progress()) -> tuple:  # noqa: B008
        values = {name: given[control] for name, control in controls.items()}
        scales = values["scales"] if values.pop("sweep") else values.pop("scale")
        return handlers.draw({**values, "scales": scales}, request, progress)

    drawn = button.click(
        answer, set(controls.values()), [outputs["gallery"], outputs["archive"], status], **_turn(outputs["gallery"])
    )
    drawn.success(handlers.show_matrix, None, [outputs["matrix"], outputs["known"]], **_turn(outputs["matrix"]))


def _connect_examples(handlers: Handlers, inputs: Inputs, examples: gr.Gallery) -> None:
    voice, picture = inputs.voice, inputs.picture
    names = [name for name in ATTRIBUTES if name in inputs.controls and name != "language"]

    def use(chosen: gr.SelectData, request: gr.Request) -> tuple:
        return handlers.use_example(chosen.index, names, request)

    shown = [voice["note"], voice["forget"], picture["note"], picture["forget"], voice["sound"]]
    examples.select(use, None, [*shown, *(inputs.controls[name] for name in names)], **_turn(picture["note"]))


def _turn(shown: Any) -> dict[str, Any]:
    """Options of an event that waits for its turn, with its progress on one component."""
    return {
        "api_visibility": "private", "concurrency_id": MODEL, "concurrency_limit": 1, "show_progress_on": shown,
    }  # fmt: skip
