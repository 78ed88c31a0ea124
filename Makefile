.PHONY: setup demo test lint test-slow judge test-judge clean-demo

PY := .venv/bin/python

setup: .venv/.requirements-test.txt.done

.venv/.%.done: %
	@bash scripts/setup.sh $<

.venv/.requirements-test.txt.done: requirements-test.txt requirements.txt
.venv/.requirements-judge.txt.done: requirements-judge.txt requirements-test.txt requirements.txt

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

# Installs PyTorch (gigabytes on some machines): only to judge this project's numbers.
judge: .venv/.requirements-judge.txt.done

test-judge: judge
	$(PY) -m pytest -m torch
