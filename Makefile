# From a bare clone: `make demo` runs the whole path on the synthetic people, `make test` passes the tests.
# Both make their own .venv. Another Python: `make demo PYTHON=python3.12`. A first look: `make demo SIZE=toy PEOPLE=24`.
PYTHON ?= python3.11
SIZE = demo
PEOPLE =
PY = .venv/bin/python
PIP = $(PY) -m pip install --quiet --disable-pip-version-check
CONFIG = configs/demo.py$(if $(filter-out demo,$(SIZE)),:$(SIZE))

.PHONY: demo test clean

demo: .venv/demo
	$(PY) -m extract.talkers --out data/$(SIZE)/videos$(if $(PEOPLE), --people $(PEOPLE))
	$(PY) -m extract.run --config $(CONFIG)
	$(PY) -m slf_jax.train --config $(CONFIG)
	$(PY) -m slf_jax.sweep --workdir runs/$(SIZE) --scales 0,1,2,4,8

test: .venv/test
	$(PY) -m pytest

$(PY):
	$(PYTHON) -m venv .venv

.venv/demo .venv/test: setup.py | $(PY)
	$(PIP) --editable ".[$(notdir $@)]"
	touch $@

clean:
	rm -rf .venv data/$(SIZE) runs/$(SIZE)
