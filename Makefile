# From a bare clone: `make demo` runs the whole path on the synthetic people, `make test` passes the tests.
# Both make their own .venv. Another Python: `make demo PYTHON=python3.12`.
PYTHON ?= python3.11
PY = .venv/bin/python
PIP = $(PY) -m pip install --quiet --disable-pip-version-check

.PHONY: demo test clean

demo: .venv/demo
	$(PY) -m extract.talkers --out data/demo/videos
	$(PY) -m extract.run --config configs/demo.py
	$(PY) -m slf_jax.train --config configs/demo.py
	$(PY) -m slf_jax.sweep --workdir runs/demo --scales 0,1,2,4,8

test: .venv/test
	$(PY) -m pytest

$(PY):
	$(PYTHON) -m venv .venv

.venv/demo .venv/test: setup.py | $(PY)
	$(PIP) --editable ".[$(notdir $@)]"
	touch $@

clean:
	rm -rf .venv data/demo runs/demo
