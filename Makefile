# From a fresh clone: `make demo` runs the whole pipeline on synthetic people, `make test` runs the tests, `make docs`
# builds the documentation into site/, `make app` opens a page that draws faces, with the system of `make demo` if there
# is one, else with the one that comes with the repository. All of them use .venv and create it if needed. To use another
# Python: `make demo PYTHON=python3.12`. A quick check of the demo: `make demo SIZE=toy PEOPLE=24`.
PYTHON ?= python3.11
SIZE = demo
PEOPLE =
PY = .venv/bin/python
# Downloads in parallel. With pip and its settings: `make demo INSTALL=".venv/bin/python -m pip install"`.
UV = .venv/bin/uv
INSTALL = $(UV) pip install --quiet --python $(PY)
# Huge pages: on a CPU, XLA takes new memory for each training step (glibc 2.35 or later; docs/scaling.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
CONFIG = configs/demo.py$(if $(filter-out demo,$(SIZE)),:$(SIZE))

.PHONY: demo pretrained app test lint docs clean

demo: .venv/demo
	$(PY) -m extract.talkers --out data/$(SIZE)/videos$(if $(PEOPLE), --people $(PEOPLE))
	$(PY) -m extract.run --config $(CONFIG)
	$(PY) -m slf_jax.train --config $(CONFIG)
	$(PY) -m slf_jax.sweep --workdir runs/$(SIZE) --scales 0,1,2,4,8

# The system that comes with the repository: the demo's.
pretrained: demo
	$(PY) -m slf_jax.export --workdir runs/demo --out slf_jax/pretrained/demo --dtype bfloat16 --license apache-2.0 \
	  --about "faces drawn and voices synthesised by a program (extract.talkers). It shows that the machinery works, and says nothing about people."

app: .venv/app
	$(PY) -m app.serve --open $(if $(wildcard runs/$(SIZE)/checkpoints),--workdir runs/$(SIZE))

test: .venv/test
	$(PY) -m pytest

lint: .venv/lint
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

docs: .venv/docs
	$(PY) -m mkdocs build --strict

$(UV):
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check uv

.venv/demo .venv/app .venv/test .venv/lint .venv/docs: setup.py | $(UV)
	$(INSTALL) --editable ".[$(notdir $@)]"
	touch $@

clean:
	rm -rf .venv site data/$(SIZE) runs/$(SIZE)
