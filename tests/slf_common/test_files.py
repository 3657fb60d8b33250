"""Path parsing, write checks, atomic writes and folders."""

import contextlib
import importlib
import pickle
import resource
import tempfile
from pathlib import Path

import pytest

from slf_common import cli, files
from slf_common.errors import UserError
from slf_common.files import check_writable, check_writable_file, local_path

# Every command with the flags it needs; the last one is under test.
OUTPUTS = {
    "slf_jax.sample": ("--workdir", "run", "--out"),
    "slf_jax.sweep": ("--workdir", "run", "--scales", "1", "--out"),
    "slf_jax.evaluate": ("--workdir", "run", "--out"),
    "slf_jax.report": ("--workdir", "run", "--out"),
    "slf_jax.features": ("--data", "data", "--out"),
    "slf_jax.train": ("--config", "{configs}/demo.py", "--config.workdir"),
    "slf_jax.ablate": ("--config", "{configs}/ablations.py:demo", "--config.workdir"),
    "extract.run": ("--config", "{configs}/demo.py", "--videos", "videos", "--out"),
    "extract.inspect": ("--data", "data", "--out"),
    "extract.random_weights": ("--small", "--out"),
    "extract.talkers.__main__": ("--people", "3", "--workers", "1", "--out"),
}
INPUTS = {
    "slf_jax.sample": ("--workdir",),
    "slf_jax.report": ("--workdir",),
    "slf_jax.train": ("--config",),
    "extract.run": ("--config", "{configs}/demo.py", "--out", "out", "--videos"),
    "extract.inspect": ("--data",),
}
CONFIGS = Path(__file__).parents[2] / "configs"


def call(command: str, flags: tuple[str, ...], path: str) -> None:
    """Runs the `main` of a command in this process."""
    *before, last = (flag.format(configs=CONFIGS) for flag in flags)
    end = [f"{last}={path}"] if last.startswith("--config.") else [last, path]
    importlib.import_module(command).main([*before, *end])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, and a separate home directory."""
    (tmp_path / "here").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "here"


@pytest.mark.parametrize(
    "command, flags", [*OUTPUTS.items(), *INPUTS.items()], ids=[*OUTPUTS, *(f"{name} reads" for name in INPUTS)]
)
def test_a_bucket_is_refused_for_local_paths(command, flags, here):
    """(fault 8)"""
    for url in ("gs://bucket/x", "s3://bucket/x"):
        with pytest.raises(UserError, match=f"{url}: must be a path on this machine; only datasets"):
            call(command, flags, url)
    assert not list(here.iterdir())


def test_a_tilde_expands_to_the_home_of_the_named_user(here, monkeypatch):
    """(fault 8)"""
    assert local_path("~/x") == here.parent / "home" / "x" and local_path("~root") == Path("/root")
    assert local_path("a/~/b") == Path("a/~/b") and local_path(f"file://{here}/x") == here / "x"
    (here.parent / "home" / "data").mkdir()
    (here.parent / "home" / "data" / "x").write_bytes(b"there")
    assert files.Folder("~/data").read("x") == b"there"
    for wrong, message in {
        "~nobody-of-this-name/x": "home directory is not known",
        "": "an empty path",
        "a\nb": "control characters",
        "a\udcffb": "control characters and bytes other than UTF-8",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            local_path(wrong)
        assert "\n" not in str(error.value)


def test_a_dataset_folder_may_have_any_name(tmp_path):
    for name in ("a::b", "[x]*?", "c:d", "per%41cent", "#hash ü"):
        folder = files.Folder(tmp_path / name)
        folder.write("file", b"text")
        assert folder.read("file", 1, 3) == b"ex" and list(folder.sizes()) == ["file"]
        assert (tmp_path / name / "file").is_file()


def obstacles(here: Path) -> dict[str, str]:
    """Paths that even the superuser cannot write to, and the reason to be reported."""
    (here / "file").write_text("")
    (here / "loop").symlink_to("loop")
    (here / "nowhere").symlink_to("missing/folder")
    return {
        "file/x": "file is a file",
        "loop/x": "Too many levels of symbolic links",
        "nowhere/x": "No such file",
        "/proc/x/y": "No such file",
        "n" * 300 + "/x": "File name too long",
    }


@pytest.mark.parametrize("command, flags", OUTPUTS.items(), ids=OUTPUTS)
def test_every_command_checks_its_output_path_first(command, flags, here):
    (here / "videos").mkdir()
    reasons = obstacles(here)
    before = sorted(here.rglob("*"))
    for path, reason in reasons.items():
        with pytest.raises(UserError, match=f"cannot be written to .*{reason}") as error:
            call(command, flags, path)
        assert "\n" not in str(error.value)
    assert sorted(here.rglob("*")) == before


def test_a_write_check_leaves_nothing_behind(here):
    (here / "there").mkdir()
    before = sorted(here.rglob("*"))
    check_writable(here / "there", "a.json")
    check_writable(Path("new/and/deeper"), "a.json", "folder/")
    check_writable_file(Path("new.png"))
    assert sorted(here.rglob("*")) == before


def test_checking_an_existing_folder_makes_no_named_file(tmp_path, monkeypatch):
    """A process that was killed during the check left a folder in the dataset."""
    before = tmp_path.stat().st_mtime_ns
    monkeypatch.setattr(tempfile, "TemporaryDirectory", None)
    check_writable(tmp_path, "a.json")
    assert not list(tmp_path.iterdir()) and tmp_path.stat().st_mtime_ns == before


def test_a_folder_in_the_way_of_a_file_is_reported(here):
    (here / "a.json").mkdir()
    (here / "folder").write_text("")
    with pytest.raises(UserError, match="a.json: this is a directory, but a file must be written here"):
        check_writable(here, "a.json")
    with pytest.raises(UserError, match="folder: cannot be written to .*folder is a file.; .* with --config.workdir"):
        check_writable(here, "folder/", flag="--config.workdir")
    for path in (".", "a.json", "/"):
        with pytest.raises(UserError, match="this is a directory; give the name of a file"):
            check_writable_file(Path(path))
    with pytest.raises(UserError, match="/dev/full: this is not a regular file"):
        check_writable_file(Path("/dev/full"))
    assert Path("/dev/full").is_char_device()


@contextlib.contextmanager
def full_disk():
    """Lets no file grow: every write fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_detected_before_the_work(here):
    with full_disk(), pytest.raises(UserError, match=r"new/folder: cannot be written to \(File too large\)"):
        check_writable(Path("new/folder"))
    assert not list(here.iterdir())
    with full_disk(), pytest.raises(OSError) as error:
        files.write_atomically(Path("report.html"), b"text")
    assert not list(here.iterdir())
    line = cli.explain(pickle.loads(pickle.dumps(error.value)))  # as from a worker
    assert line == "report.html: File too large; free some space there, then run the same command again"
