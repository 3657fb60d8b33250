"""The documentation mentions only links, modules, scripts, flags and config keys that exist."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from slf_common.config import load_config
from slf_common.rules import find_leaves

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("slf_common", "tfrecords", "extract", "slf_jax")
README_LINES, README_WIDTH = 150, 120

sys.path.insert(0, str(ROOT / "docs"))
import config_reference  # noqa: E402

sys.path.pop(0)


def text_of(page):
    return page.read_text(encoding="utf-8")


def commands(page):
    """The lines of a page's code blocks and code spans, with continuation lines joined and comments removed."""
    text = text_of(page).replace("\\\n", " ")
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE))
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return lines + spans


ALL_COMMANDS = [(page.name, line) for page in PAGES for line in commands(page)]


def config_keys(path):
    return {key for key, _ in find_leaves(load_config(str(ROOT / path)))}


def quotes(page):
    """(file, line) of each line of the code blocks whose first line is a comment with a file's path."""
    for path, block in re.findall(r"^```python\n# ([\w/]+\.py)\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE):
        yield from ((path, line) for line in block.splitlines())


def test_quoted_code_is_that_of_the_file():
    quoted = [quote for page in PAGES for quote in quotes(page)]
    assert quoted
    assert [(path, line) for path, line in quoted if line not in text_of(ROOT / path).splitlines()] == []


def test_readme_is_short():
    lines = text_of(ROOT / "README.md").splitlines()
    assert len(lines) <= README_LINES
    assert [line for line in lines if len(line) > README_WIDTH] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_exist(page):
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    relative = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in relative if not (page.parent / target).exists()] == []


def test_every_page_is_in_the_navigation():
    navigation = text_of(ROOT / "mkdocs.yml")
    pages = [page.name for page in PAGES if page.parent == ROOT / "docs"]
    assert [page for page in pages if f": {page}\n" not in navigation] == []


def test_modules_and_scripts_exist():
    modules = {(page, name) for page, line in ALL_COMMANDS for name in re.findall(r"python\S* -m ([\w.]+)", line)}
    ours = [(page, name) for page, name in modules if name.split(".")[0] in PACKAGES]
    assert ours
    assert [(page, name) for page, name in ours if importlib.util.find_spec(name) is None] == []
    paths = r"(?<![\w/.-])((?:benchmarks|configs|tests)/[\w/]+\.py)\b"
    scripts = {(page, path) for page, line in ALL_COMMANDS for path in re.findall(paths, line)}
    assert scripts
    assert [(page, path) for page, path in scripts if not (ROOT / path).exists()] == []


def test_modules_in_the_api_reference_exist():
    modules = re.findall(r"^::: ([\w.]+)$", text_of(ROOT / "docs" / "api.md"), re.MULTILINE)
    paths = {name: ROOT / name.replace(".", "/") for name in modules}
    assert modules
    assert [n for n, p in paths.items() if not (p.with_suffix(".py").exists() or (p / "__init__.py").exists())] == []


def defined_flags():
    """The names passed to `add_argument` anywhere in the packages and benchmarks."""
    sources = [path for folder in (*PACKAGES, "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    nodes = (node for path in sources for node in ast.walk(ast.parse(text_of(path))))
    calls = (node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    arguments = (arg for call in calls if call.func.attr == "add_argument" for arg in call.args)
    return {arg.value for arg in arguments if isinstance(arg, ast.Constant)}


def test_flags_exist():
    known = {"--help"} | defined_flags()
    ours = re.compile(r"python\S* (?:-m (?:slf_jax|extract)|benchmarks/).*")
    lines = [(page, found[0]) for page, line in ALL_COMMANDS if (found := ours.search(line))]
    shown = {(page, flag) for page, line in lines for flag in re.findall(r"(?<=\s)--[\w-]+(?![\w.-])", line)}
    assert shown
    assert [(page, flag) for page, flag in shown if flag not in known] == []


def test_config_keys_exist():
    keys = config_keys("configs/base.py") | config_keys("configs/ablations.py")
    shown = {(page, key) for page, line in ALL_COMMANDS for key in re.findall(r"--config\.([a-z][\w.]*\w)", line)}
    assert shown
    known = keys | {key.rpartition(".")[0] for key in keys}
    assert [(page, key) for page, key in shown if key not in known and "NAME" not in key] == []


def test_config_reference_lists_every_key_and_default():
    config = load_config(str(ROOT / "configs/base.py"))
    leaves = dict(find_leaves(config))
    reference = config_reference.read(text_of(ROOT / "configs/base.py"))
    entries = {entry.key: entry for entry in reference.entries}
    computed = [key for key in leaves if key not in entries]
    assert [key for key in computed if key.rpartition(".")[0] not in entries] == []
    plain = {key: ast.literal_eval(entries[key].default) for key in leaves if key in entries}
    assert plain == {key: leaves[key] for key in plain}
    page = config_reference.on_page_markdown(text_of(ROOT / "docs/configuration.md"))
    assert config_reference.MARKER not in page
    assert [key for key in entries if f"| `{key}` |" not in page] == []


def test_comments_become_descriptions():
    source = """
def get_config():
    config.a = 1  # one
    # Two and
    # three.
    config.b, config.c = 2, 3
    # A group.
    config.g.base = dict(
        x=1,  # an x
        y=dict(z=(  # a z
            4, 5,
        )),
    )
    config.g.upsampler = dict(x=2)
"""
    found = config_reference.read(source)
    assert [(entry.key, entry.default, entry.comment) for entry in found.entries] == [
        ("a", "1", "one"),
        ("b", "2", "Two and three."),
        ("c", "3", "Two and three."),
        ("g.base.x", "1", "an x"),
        ("g.base.y.z", "(4, 5)", "a z"),
        ("g.upsampler.x", "2", "an x"),
    ]
    assert found.notes == {"g.base": "A group."}
