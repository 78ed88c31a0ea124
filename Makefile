.PHONY: setup demo test lint test-slow judge test-judge clean-demo

PY := .venv/bin/python

setup: .venv/.requirements-test.txt.done

.venv/.%.done: %
	@bash scripts/setup.sh $< $(PIP_OPTIONS)

.venv/.requirements-test.txt.done: requirements-test.txt requirements.txt
.venv/.requirements-judge.txt.done: requirements-judge.txt requirements-test.txt requirements.txt
# What the official packages ask for would bring a CUDA build of PyTorch.
.venv/.requirements-official.txt.done: private PIP_OPTIONS = --no-deps --require-hashes
.venv/.requirements-official.txt.done: | .venv/.requirements-judge.txt.done

# The five commands on a generated data set; continues where an earlier run stopped.
demo: setup
	@bash scripts/demo.sh

clean-demo:
	rm -rf runs/demo result

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: lint
	$(PY) -m pytest --durations=15

test-slow: setup
	$(PY) -m pytest -m slow --durations=15

# Installs PyTorch (gigabytes on some machines) and the official Segment Anything: only to judge this
# project's numbers.
judge: .venv/.requirements-official.txt.done

test-judge: judge
	$(PY) -m pytest -m torch
