"""Answers the page's events. What a visitor did wrong becomes one line on the page."""

from __future__ import annotations

import contextlib
import functools
import html
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from app import notes, texts
from app.examples import Example
from app.limits import Limits
from app.requests import read_attributes, read_request
from app.results import Faces, Request, draw_faces, draw_matrix
from app.system import FaceSystem, Person
from app.uploads import check_pixels, receive, received
from app.visits import Visit, Visits
from slf_common.errors import UserError
from slf_jax.cascade.images import downscale
from tfrecords.schema import FACE_SIZE

NO_CONSENT = "confirm first that you may use the recording"
KEPT = "these 8x8 pixels are used; the picture was deleted."


def readable(handler: Callable) -> Callable:
    """Shows expected errors of a handler as a message on the page; all others appear in the log of the server."""

    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except Exception as error:
            if (line := notes.explain(error)) is None:
                raise
            raise gr.Error(html.escape(line, quote=False), duration=None, print_exception=False) from None

    return call


class Handlers:
    """What the events of the page call. Each visitor has a session and, with it, a visit."""

    def __init__(self, system: FaceSystem, visits: Visits, limits: Limits, examples: Sequence[Example]) -> None:
        self.system, self.visits, self.limits, self.examples = system, visits, limits, examples
        self._recordings: dict[int, Any] = {}  # of the examples

    def open(self, request: gr.Request) -> None:
        """The page was opened."""
        self.visits.open(_session(request))

    def close(self, request: gr.Request) -> None:
        """The page was closed."""
        self.visits.close(_session(request))

    @readable
    def receive_voice(self, upload: str | None, request: gr.Request) -> None:
        """Moves an upload to the visit's folder before it waits in the queue."""
        receive(self.visits.get(_session(request)), "voice", upload)

    @readable
    def receive_picture(self, upload: str | None, request: gr.Request) -> None:
        """Moves an upload to the visit's folder before it waits in the queue."""
        receive(self.visits.get(_session(request)), "picture", upload)

    @readable
    def listen(self, consent: bool, request: gr.Request, progress: gr.Progress = gr.Progress()) -> tuple:  # noqa: B008
        """Extracts the features of the received recording and deletes the file.

        Returns a note, whether there is a voice now, an empty upload, and no sound of an example.
        """
        visit = self.visits.get(_session(request))
        visit.voice = None
        with received(visit, "voice") as path, _noting(path) as lines:
            if not consent:
                raise UserError(NO_CONSENT)
            progress(0.3, desc="extracting the features of the voice")
            visit.voice = self.system.listen(path)
            lines.append(notes.note(_heard(visit.voice)))
        return lines[0], gr.Button(visible=visit.voice is not None), None, gr.Audio(None, visible=False)

    @readable
    def look(self, crop: bool, request: gr.Request) -> tuple:
        """Reads the thumbnail of the received picture and deletes the file.

        Returns the thumbnail with a note, whether there is one now, and an empty upload.
        """
        visit = self.visits.get(_session(request))
        visit.thumbnail = None
        with received(visit, "picture") as path, _noting(path) as lines:
            visit.thumbnail = self.read_thumbnail(path, crop)
            lines.append(notes.thumbnail(visit.thumbnail, f"{path.name}: {KEPT}"))
        return lines[0], gr.Button(visible=visit.thumbnail is not None), None

    def read_thumbnail(self, path: Path, crop: bool) -> np.ndarray:
        """The 8x8 averages of a picture, as blocks of uint8 [128, 128, 3]: nothing else of it is kept."""
        check_pixels(path, self.limits.megapixels)
        small = downscale(self.system.read_thumbnail(path, face=crop)[None])[0]
        times = FACE_SIZE // len(small)
        return small.repeat(times, 0).repeat(times, 1)

    @readable
    def forget_voice(self, request: gr.Request) -> tuple:
        """Deletes the features of the voice; hides its note, its button and the sound of an example."""
        self.visits.get(_session(request)).voice = None
        return "", gr.Button(visible=False), gr.Audio(None, visible=False)

    @readable
    def forget_thumbnail(self, request: gr.Request) -> tuple:
        """Deletes the thumbnail; hides its note and its button."""
        self.visits.get(_session(request)).thumbnail = None
        return "", gr.Button(visible=False)

    @readable
    def use_example(self, index: int, names: Sequence[str], request: gr.Request) -> tuple:
        """Uses the voice and thumbnail of an example.

        Returns for both a note and whether it is there now, then the sound and the named attributes.
        """
        visit, example = self.visits.get(_session(request)), self.examples[index]
        heard, has_voice = "", bool(self.system.voice_inputs)
        if has_voice:
            if index not in self._recordings:
                self._recordings[index] = self.system.listen(example.voice)
            visit.voice = self._recordings[index]
            heard = notes.note(f"{example.voice.name}: {visit.voice.seconds:.1f} s of a synthesised voice.")
        visit.thumbnail = self.read_thumbnail(example.picture, False)
        shown = notes.thumbnail(visit.thumbnail, f"{example.picture.name}: a drawn person.")
        buttons = gr.Button(visible=has_voice), gr.Button(visible=True)
        sound = gr.Audio(str(example.voice), visible=has_voice)
        return heard, buttons[0], shown, buttons[1], sound, *(getattr(example, name) for name in names)

    @readable
    def draw(self, values: Mapping[str, Any], request: gr.Request, progress: gr.Progress) -> tuple:
        """Draws faces from the visit's inputs and the page's controls; returns images, the ZIP and a note."""
        visit, began = self.visits.get(_session(request)), time.monotonic()
        visit.person = None
        try:
            wanted = read_request(self.system, self.limits, values)
            person = self.system.describe_person(
                voice=visit.voice, thumbnail=visit.thumbnail, **read_attributes(values)
            )
            count = len(wanted.scales) * wanted.samples
            progress(0.3, desc=f"drawing {count} face{'s' * (count > 1)}")
            faces = self.write_faces(visit, person, wanted)
        except UserError as error:
            return [], gr.DownloadButton(interactive=False), notes.problem(str(error))
        images = [(str(path), caption) for path, caption in faces.images]
        columns = len(wanted.scales) if len(wanted.scales) > 1 else max(3, wanted.samples)
        archive = gr.DownloadButton(value=str(faces.archive), interactive=True)
        text = f"{count} face{'s' * (count > 1)} in {time.monotonic() - began:.1f} s"
        return gr.Gallery(images, columns=columns), archive, notes.note(text)

    def write_faces(self, visit: Visit, person: Person, wanted: Request) -> Faces:
        """Draws faces into a new folder of the visit, in place of its previous ones. Browsers cache files by name."""
        old = list(visit.folder.glob("faces*"))
        faces = draw_faces(self.system, person, wanted, visit.folder / _new("faces"), marked=self.limits.mark)
        visit.person = person
        for folder in old:
            shutil.rmtree(folder, ignore_errors=True)
        return faces

    def write_matrix(self, visit: Visit, person: Person) -> tuple[Path, str]:
        """Draws the feature matrix of a person; returns its file and sentences about it."""
        old = list(visit.folder.glob("matrix*"))
        path = visit.folder / (_new("matrix") + ".png")
        text = draw_matrix(self.system, person, path)
        for picture in old:
            picture.unlink(missing_ok=True)
        return path, text

    @readable
    def show_matrix(self, request: gr.Request) -> tuple:
        """Draws the feature matrix of the last faces; returns the picture and a note."""
        visit = self.visits.get(_session(request))
        if visit.person is None:  # the last request failed
            return None, notes.note(texts.MATRIX)
        path, text = self.write_matrix(visit, visit.person)
        return str(path), notes.note(text)


def _heard(recording: Any) -> str:
    extra = "".join(f"; {each}" for each in recording.notes)
    return f"{recording.name}: {recording.seconds:.1f} s heard{extra}. The file was deleted; its features are kept."


def _new(name: str) -> str:
    return f"{name}-{secrets.token_hex(4)}"


def _session(request: gr.Request) -> str:
    return request.session_hash or ""


@contextlib.contextmanager
def _noting(path: Path) -> Iterator[list[str]]:
    """Turns an expected error about a file into a note, in the list that it yields."""
    lines: list[str] = []
    try:
        yield lines
    except Exception as error:
        if (line := notes.explain(error, path.parent)) is None:
            raise
        lines.append(notes.problem(line))
