# `make demo` prunes a bundled model; `make test` runs the default tests. Both set up .venv here and nothing outside it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow zoo real check clean

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: .venv/installed
	mkdir -p demo
	$(BIN)/onnxprune fixtures/mlp_torch.onnx demo/pruned.onnx --data fixtures/digits/calibration.npz --macs 60% --plan demo/plan.json --json demo/report.json
	@echo
	@echo "The same two models on digits that pruning never saw:"
	@$(BIN)/onnxprune compare fixtures/mlp_torch.onnx demo/pruned.onnx --data fixtures/digits/test.npz

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2

slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

zoo: .venv/installed-dev
	$(BIN)/python -m pytest -m zoo -n 2

real: .venv/installed-dev
	$(BIN)/python -m pytest -m real

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo
