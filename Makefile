# Five verbs; CONTRIBUTING.md says when to use which. Versions are those of the active environment.
.PHONY: install test fast lint docs

install:
	pip install --editable ".[dev,docs,bench]"

test:
	pytest -n auto --dist loadfile

fast:
	pytest -n auto --dist loadfile -m fast

lint:
	ruff check .
	ruff format --check .
	mypy

docs:
	mkdocs build --strict
