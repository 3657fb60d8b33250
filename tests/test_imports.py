"""Package structure: allowed imports, and the maximum length of files and functions.

The sources are parsed, not imported; imports inside functions count too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The other packages that each package may import.
PACKAGES = {
    "slf_common": set(),
    "tfrecords": {"slf_common"},
    "extract": {"slf_common", "tfrecords"},
    "slf_jax": {"slf_common", "tfrecords"},
    "app": {"slf_common", "tfrecords", "extract", "slf_jax"},
    "configs": set(),
}
FRONT_DOOR = "slf_jax/__init__.py"  # the one exception: `slf_jax.load` is implemented in app
JAX, TORCH = {"jax", "flax", "optax", "orbax"}, {"torch", "tensorflow"}
FORBIDDEN = {
    "slf_common": JAX | TORCH,
    "tfrecords": JAX | TORCH,
    "extract": JAX,
    "slf_jax": TORCH,
    "app": TORCH,
    "configs": JAX | TORCH,
}
# Within slf_jax, a module or folder may import only those before it; the commands come last.
ORDER = (
    "streams", "pytrees", "distributed", "plots", "features", "diffusion", "models", "cascade", "training", "inference",
    "evaluation", "train", "distill", "sample", "sweep", "evaluate", "ablate", "report", "export",
)  # fmt: skip
COMMANDS = ORDER[ORDER.index("train") :]
CODE = [name for name in PACKAGES if name != "configs"]  # configs are tables of any length
FILE_LINES, FUNCTION_LINES = 450, 60


def sources(package: str) -> list[Path]:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths, f"{package}/ has no Python files"
    return paths


def module_name(path: Path) -> str:
    """`slf_jax.cascade.stage` for slf_jax/cascade/stage.py, `slf_jax` for slf_jax/__init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and full name of everything that a file imports: `a.b` for `from a import b`."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join((*base, *filter(None, [node.module])))
            yield from ((node.lineno, f"{prefix}.{name.name}") for name in node.names)


def report(path: Path, line: int, name: str) -> str:
    return f"{path.relative_to(ROOT)}:{line} imports {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_those_below_them(package):
    allowed, forbidden = {package} | PACKAGES[package], FORBIDDEN[package]
    wrong = [
        report(path, line, name)
        for path in sources(package)
        for line, name in imports(path)
        if not (str(path.relative_to(ROOT)) == FRONT_DOOR and name.startswith("app.system."))
        if (top := name.split(".")[0]) in forbidden or (top in PACKAGES and top not in allowed)
    ]
    assert not wrong, "\n".join(wrong)


def top_part(module: str) -> str:
    """`cascade` for `slf_jax.cascade.stage`; empty for `slf_jax` itself."""
    return (module.split(".") + [""])[1]


def jax_imports() -> Iterator[tuple[str, str, str]]:
    """All imports within slf_jax: the importing part, the imported part, and a description."""
    for path in sources("slf_jax"):
        for line, name in imports(path):
            if name.split(".")[0] == "slf_jax":
                yield top_part(module_name(path)), top_part(name), report(path, line, name)


def test_every_part_of_slf_jax_is_in_order():
    assert {top_part(module_name(path)) for path in sources("slf_jax")} == {"", *ORDER}


def test_parts_of_slf_jax_import_only_those_before_them():
    rank = {"": -1} | {name: i for i, name in enumerate(ORDER)}
    wrong = [text for part, other, text in jax_imports() if rank.get(other, 0) > rank.get(part, 0)]
    assert not wrong, "\n".join(wrong)


def test_commands_do_not_import_each_other():
    wrong = [text for part, other, text in jax_imports() if other in COMMANDS and part != other]
    assert not wrong, "\n".join(wrong)


def test_plots_take_arrays_only():
    """Of our packages, plots import only slf_common."""
    wrong = [
        report(path, line, name)
        for path in sources("slf_jax/plots")
        for line, name in imports(path)
        if name.split(".")[0] in PACKAGES and not name.startswith(("slf_common.", "slf_jax.plots"))
    ]
    assert not wrong, "\n".join(wrong)


def test_relative_and_nested_imports_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "slf_jax" / "plots" / "grids.py"
    path.parent.mkdir(parents=True)
    path.write_text("from . import curves\nfrom ..streams import stream as s\ndef f():\n    import torch.nn as nn\n")
    found = {(1, "slf_jax.plots.curves"), (2, "slf_jax.streams.stream"), (4, "torch.nn")}
    assert set(imports(path)) == found and module_name(path) == "slf_jax.plots.grids"


@pytest.mark.parametrize("package", CODE)
def test_files_are_short(package):
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(package)}
    wrong = [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lengths.items() if n > FILE_LINES]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", CODE)
def test_functions_are_short(package):
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines"
        for path in sources(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    ]
    assert not wrong, "\n".join(wrong)
