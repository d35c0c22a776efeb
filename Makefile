.PHONY: test slow lint format types wheel docs ci bench

test:
	uv run pytest
slow:
	uv run pytest -m "slow and not gpu and not speed"
lint:
	uv run ruff check . && uv run ruff format --check .
format:
	uv run ruff check --fix . && uv run ruff format .
types:
	uv run mypy
wheel:
	uv run python tests/wheel.py
docs:
	uv run mkdocs build --strict
bench:
	uv run pytest tests/benchmarks --benchmark-only -m "" -n 0 -s
ci:
	.ci/run
