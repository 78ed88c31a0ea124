.PHONY: setup setup-test demo test lint test-slow judge test-judge clean-demo lock

PY := .venv/bin/python

# What running needs; setup-test adds the tools of the tests.
setup: .venv/.run.done
setup-test: .venv/.test.done

.venv/.%.done: scripts/setup.sh $(wildcard requirements/*.txt)
	@bash scripts/setup.sh $*

# The five commands on a generated data set; continues where an earlier run stopped.
demo: setup
	@bash scripts/demo.sh

clean-demo:
	rm -rf runs/demo result

lint: setup-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: lint
	$(PY) -m pytest --durations=15

test-slow: setup-test
	$(PY) -m pytest -m slow --durations=15

# Installs PyTorch (gigabytes on some machines) and the official Segment Anything: only to judge this
# project's numbers.
judge: .venv/.judge.done

test-judge: judge
	$(PY) -m pytest -m torch

# Writes requirements/lock-py*.txt and the pins of requirement.yaml anew; OPTIONS=--upgrade takes the
# newest release of everything.
lock:
	@bash scripts/lock.sh $(OPTIONS)
