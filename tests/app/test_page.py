"""The page in a real browser: Debian's Chromium, without a screen."""

from __future__ import annotations

import copy
import dataclasses
import io
import re
import shutil
import time
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra `app`")
playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `test`")

from app.examples import write_examples  # noqa: E402
from app.handlers import Handlers  # noqa: E402
from app.limits import Limits  # noqa: E402
from app.marks import mark  # noqa: E402
from app.page import build  # noqa: E402
from app.serve import serve  # noqa: E402
from app.system import FaceSystem  # noqa: E402
from app.texts import LABELS  # noqa: E402
from app.visits import Visits  # noqa: E402
from slf_common.errors import UserError  # noqa: E402
from slf_jax.cascade.sizes import STAGES  # noqa: E402
from slf_jax.diffusion.samplers import SAMPLERS  # noqa: E402

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)  # fmt: skip
LIMITS = Limits(upload_mb=30, megapixels=25, closed_seconds=0.5)
RATE = 16_000
expect = playwright.expect
expect.set_options(timeout=120_000)  # the first use compiles, maybe beside other tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the server keeps its files."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def address(folder, system):
    """A server with the system that comes with the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        with serve(system, LIMITS, port=0) as url:
            yield url


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page, each time as another visitor; the page records the hosts that it asks."""
    contexts = []

    def open_page(url=address, **options):
        contexts.append(browser.new_context(permissions=["microphone"], **options))
        page = contexts[-1].new_page()
        page.hosts = set()
        page.on("request", lambda request: page.hosts.add(request.url))
        page.goto(url)
        expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Voices and pictures of drawn people."""
    return write_examples(tmp_path_factory.mktemp("people"), 2)


def write_wav(path, sound, rate=RATE, width=2):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, width, rate, 0, "NONE", ""))
        file.writeframes(sound.astype("<i2" if width == 2 else "u1").tobytes())
    return path


def give_voice(page, path):
    page.get_by_label("I may use this recording").check()
    page.locator("#voice input[type=file]").set_input_files(path)
    return page.locator("#voice-note .note")


def give_picture(page, path):
    page.locator("#picture input[type=file]").set_input_files(path)
    return page.locator("#picture-note .note")


def draw(page, count):
    """Draws and waits for images; their addresses."""
    before = page.locator("#faces img").first.get_attribute("src") if page.locator("#faces img").count() else ""
    page.get_by_role("button", name="Draw", exact=True).click()
    images = page.locator("#faces .grid-container img")
    expect(images.first).not_to_have_attribute("src", before or "", timeout=240_000)
    expect(images).to_have_count(count)
    return [image.get_attribute("src") for image in images.all()]


def fetch(page, url):
    answer = page.request.get(url)
    assert answer.ok
    return answer.body()


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_voice_a_thumbnail_and_attributes_give_a_face(visit, people, address):
    page, person = visit(), people[0]
    expect(give_voice(page, person.voice)).to_contain_text("person1.wav: 6.0 s heard")
    expect(give_picture(page, person.picture)).to_contain_text("these 8x8 pixels are used")
    shown = page.locator("img.thumbnail").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert shown == [8, 8]
    page.get_by_label("Age in years").fill("34")
    page.get_by_label("Gender").click()
    page.get_by_role("option", name="female", exact=True).click()
    (url,) = draw(page, 1)
    with Image.open(io.BytesIO(fetch(page, url))) as face:
        assert face.size == (128, 128)
        assert face.text["synthetic"].startswith("yes") and face.text["voice"] == "person1.wav, 6.0 s"
        assert (face.text["age"], face.text["gender"], face.text["scale"]) == ("34.0", "female", "2")
        pixels = np.asarray(face)
    assert pixels[:12, -58:].max() > 200 > pixels[:12, -58:].min() + 100  # the mark: white on dark
    page.get_by_role("button", name="What the system was given").click()
    expect(page.locator("#matrix img")).to_be_visible()
    known = "Known: thumbnail, pyaudioanalysis, mel, age, gender. Masked: ethnicity. Not used by this system: ecapa"
    expect(page.get_by_text(known)).to_be_visible()
    assert all(url.startswith((address, "data:", "blob:")) for url in page.hosts), page.hosts


def test_a_sweep_shows_a_row_of_scales_and_a_zip(visit, people):
    page = visit()
    give_picture(page, people[0].picture)
    expect(page.locator("img.thumbnail")).to_be_visible()
    page.get_by_label("Sweep").check()
    page.get_by_role("textbox", name="Guidance scales").fill("0, 2, 4")
    page.get_by_label("Samples").first.fill("2")
    draw(page, 6)
    captions = page.locator("#faces .caption-label").all_inner_texts()
    assert captions[:3] == ["scale 0, sample 1", "scale 2, sample 1", "scale 4, sample 1"]
    with page.expect_download() as download:
        page.locator("#archive").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert len(archive.namelist()) == 6 and "face_scale4_01.png" in archive.namelist()


def test_each_mistake_gives_one_clear_line(visit, people, tmp_path):
    page = visit()
    text = tmp_path / "notes.txt"
    text.write_text("no recording")
    for path, line in (
        (text, "notes.txt: .*"),
        (people[0].picture, "person1.png: .*"),
        (write_wav(tmp_path / "silence.wav", np.zeros(3 * RATE)), "silence.wav: the sound is silent .*"),
        (write_wav(tmp_path / "short.wav", 9e3 * np.sin(np.arange(RATE // 10))), "short.wav: 0.1 s of sound; .*"),
    ):
        expect(give_voice(page, path)).to_have_text(re.compile(f"^{line}$"))
        expect(page.locator("#voice-note .problem")).to_have_count(1)
    expect(give_picture(page, text)).to_have_text(re.compile("^notes.txt: the image cannot be read"))
    large = tmp_path / "large.png"
    Image.new("L", (6000, 5000)).save(large)
    expect(give_picture(page, large)).to_have_text(
        "large.png: 6000x5000 pixels; give a picture of at most 25 megapixels"
    )
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#status .problem")).to_contain_text("nothing to draw from")
    page.get_by_label("Age in years").fill("young")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#status .problem")).to_have_text("age 'young': give years as a number, or leave it empty")
    expect(page.locator("#faces img")).to_have_count(0)


def test_unusual_but_good_files_are_used(visit, tmp_path):
    page = visit()
    hour = np.tile(128 + 60 * np.sin(np.arange(8000) * 0.2), 3600)
    note = give_voice(page, write_wav(tmp_path / "hour.wav", hour, 8000, 1))
    expect(note).to_contain_text("hour.wav: 24.0 s heard; only the first 24 s are used")
    rng = np.random.default_rng(0)
    photograph = Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).resize((5000, 4000))
    photograph.save(tmp_path / "photograph.jpg")
    photograph.resize((90, 50)).save(
        tmp_path / "animation.gif", save_all=True, append_images=[Image.new("RGB", (90, 50))]
    )
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "transparent.png")
    for name in ("photograph.jpg", "animation.gif", "transparent.png"):
        expect(give_picture(page, tmp_path / name)).to_contain_text(f"{name}: these 8x8 pixels are used")


def test_an_upload_above_the_limit_is_refused(visit, tmp_path):
    page, path = visit(), tmp_path / "long.wav"
    path.write_bytes(bytes(31 * 10**6))
    give_voice(page, path)
    expect(page.get_by_text(re.compile("exceeds the maximum file size|maximum allowed size")).first).to_be_visible()


def test_a_recording_is_taken_only_with_consent(visit):
    page = visit()
    expect(page.locator("#voice")).to_be_hidden()
    page.get_by_label("I may use this recording").check()
    expect(page.locator("#voice")).to_be_visible()


def test_the_microphone_gives_a_voice(visit):
    page = visit()
    page.get_by_label("I may use this recording").check()
    page.get_by_role("tab", name="Microphone").click()
    page.locator("#microphone .record-button").click()
    expect(page.locator("#microphone .duration")).to_have_text("0:02")
    page.locator("#microphone .stop-button:visible").click()
    expect(page.locator("#voice-note .note")).to_contain_text("s heard")


def test_the_camera_gives_a_thumbnail(visit):
    page = visit()
    page.get_by_role("tab", name="Camera").click()
    page.get_by_title("grant webcam access").click()
    page.wait_for_function("() => document.querySelector('video')?.readyState > 2")  # frames have arrived
    page.get_by_role("button", name="capture photo").click()
    expect(page.locator("#picture-note .note")).to_contain_text("these 8x8 pixels are used")


def test_two_visitors_do_not_see_each_other(visit, people):
    pages = [visit(), visit()]
    for page, person in zip(pages, people, strict=True):
        give_picture(page, person.picture)
    for page, person in zip(pages, people, strict=True):
        expect(page.locator("#picture-note .note")).to_contain_text(person.picture.name)
    for page in pages:
        page.get_by_role("button", name="Draw", exact=True).click()
    images = []
    for page in pages:
        image = page.locator("#faces .grid-container img")
        expect(image).to_have_count(1, timeout=240_000)
        images.append(fetch(page, image.get_attribute("src")))
    assert images[0] != images[1]


def test_an_example_fills_the_page(visit, people):
    page = visit()
    page.locator("#examples .grid-container button").first.click()
    expect(page.locator("#voice-note .note")).to_contain_text("person1.wav")
    expect(page.locator("img.thumbnail")).to_be_visible()
    assert page.get_by_label("Age in years").input_value()
    expect(page.get_by_text("Voice of the example")).to_be_visible()
    draw(page, 1)
    give_voice(page, people[1].voice)
    expect(page.get_by_text("Voice of the example")).to_be_hidden()


def test_nothing_is_left_when_the_page_is_closed(visit, people, folder):
    page = visit()
    expect(give_voice(page, people[0].voice)).to_contain_text("heard")
    expect(give_picture(page, people[0].picture)).to_contain_text("used")
    draw(page, 1)
    (root,) = folder.iterdir()
    results = root / "results"
    assert not list(results.rglob("person1.*"))
    assert any(results.rglob("face*.png"))
    page.context.close()
    wait_until(lambda: not any(results.iterdir()))
    assert not list((root / "uploads").rglob("person1.*"))


def test_the_api_draws(address, people, tmp_path):
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False, download_files=tmp_path)
    person = people[1]
    given = dict(voice=handle_file(person.voice), thumbnail=handle_file(person.picture), age=50, api_name="/draw")
    faces, archive, matrix, note = client.predict(**given, scales="0,2", samples=1, seed=1, consent=True)
    assert len(faces) == 2 and Path(archive).is_file() and Path(matrix).is_file()
    assert note.startswith("Known: thumbnail, pyaudioanalysis, mel, age.")
    with Image.open(faces[1]) as face:
        assert (face.text["seed"], face.text["scale"]) == ("1", "2")
    with pytest.raises(Exception, match="upload the file itself, not its address"):
        client.predict(
            {"path": "http://127.0.0.1:9/x.wav", "meta": {"_type": "gradio.FileData"}}, None, api_name="/draw"
        )
    with pytest.raises(Exception, match="confirm first that you may use the recording"):
        client.predict(**given)
    with pytest.raises(Exception, match="'stepps': must be one of sampler, steps"):
        client.predict(None, None, 50, settings={"stepps": 3}, api_name="/draw")
    with pytest.raises(Exception, match="1000 sampler steps: give from 1 to 128"):
        client.predict(None, None, 50, settings={"steps": 1000}, api_name="/draw")


def test_a_system_without_a_voice_says_so(visit, system):
    trained = system.trained
    deaf = FaceSystem(dataclasses.replace(trained, system=trained.system.without(system.voice_inputs)))
    with serve(deaf, LIMITS, port=0) as address:
        page = visit(address)
        expect(page.get_by_text("This system was trained without a voice.")).to_be_visible()
        expect(page.get_by_label("I may use this recording")).to_have_count(0)
        page.context.close()


@pytest.mark.parametrize("flows", [(), ("upsampler",), STAGES])
def test_only_settings_that_the_system_has_are_offered(system, tmp_path, flows):
    """A flow has times of its own, and no sampler that adds noise."""
    config = copy.deepcopy(system.trained.meta.config)
    config.sample.sampler = "ddim"
    for stage in STAGES:
        config.diffusion[stage].preconditioning = "flow" if stage in flows else "x0"
    trained = dataclasses.replace(system.trained, meta=dataclasses.replace(system.trained.meta, config=config))
    with Visits(tmp_path, LIMITS) as visits:
        blocks = build(Handlers(FaceSystem(trained), visits, LIMITS, ())).blocks.values()
    found = {each.label: each for each in blocks if getattr(each, "label", "")}
    choices = {name for name, _ in found[LABELS["sampler"]].choices if name in SAMPLERS}
    assert choices == {"ddim", "heun", "dpmpp_2m", *(() if flows else ("ancestral",))}
    assert (LABELS["churn"] in found) == (not flows)
    assert (LABELS["sigma_schedule"] in found) == (flows != STAGES)
    assert LABELS["steps"] in found


def test_a_port_in_use_is_reported(address, system):
    with pytest.raises(UserError, match="--port"):
        with serve(system, LIMITS, port=int(address.rsplit(":", 1)[1].strip("/"))):
            pass


def test_the_mark_changes_only_the_corner():
    images = np.full((2, 3, 128, 128, 3), 90, np.uint8)
    marked = mark(images)
    assert marked.shape == images.shape and (images == 90).all()
    changed = (marked != images).any((0, 1, 4))
    assert changed[:5, -20:].any() and not changed[20:].any() and not changed[:, :50].any()
