# All that a newcomer needs: `make demo` and `make test`. Each installs what it needs into .venv and nothing elsewhere.

PYTHON ?= python3
PY := .venv/bin/python
PIP_FLAGS ?=
PIP := $(PY) -m pip --disable-pip-version-check install $(PIP_FLAGS) -c constraints.txt
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-faults test-processors test-aarch64 fuzz lint proto wheel bench-peers clean

help: ## This list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "  make %-15s %s\n", $$1, $$2}'
	@echo "ARGS='...' passes arguments to demo and to pytest; PYTHON=... chooses the interpreter (3.11 or newer);"
	@echo "PIP_FLAGS='...' is for pip: an index of CPU builds of torch, as in Dockerfile.cpu, spares Linux the CUDA libraries."

demo: .venv/installed ## The main job: three PNodes train a model, one is killed, every bit is compared
	$(PY) -m pnode role=devnet job=digits $(ARGS)

# Files stay whole, for their fixtures are dear, and in order, for the longest are not the last. A test's own limit cannot
# end what hangs in C; after twice that, the whole run ends with all threads' stacks.
test: lint ## Lint, types and all tests but the slow ones
	@$(PY) -c "import samebits; samebits.warm()"  # once, or every worker of a cold cache would compile it all
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow" \
		-o faulthandler_timeout=240 -o faulthandler_exit_on_timeout=true $(ARGS)

test-slow: .venv/installed-dev ## The longer proofs
	$(PY) -m pytest -m slow $(ARGS)

test-faults: .venv/installed-dev ## 200 steps with lost, doubled, late calls and killed nodes, five seeds; then the long property of exactly once
	$(PY) -m pytest -m slow tests/e2e/test_e2e_faults.py tests/properties/test_properties_exactly_once.py $(ARGS)

test-processors: .venv/installed-dev ## The same bits as compiled for AVX2 and for SSE without fma
	$(PY) -m pytest -m slow tests/kernels/test_kernels_processors.py $(ARGS)

test-aarch64: .venv/installed-dev ## The same bits on aarch64, under qemu; prepares all it needs in ~/.cache
	PYTHON=$(abspath $(PY)) kernels/test_aarch64.sh $(ARGS)

# Apart from the development install: there is no wheel of it for every interpreter, and it is of use here alone.
fuzz: .venv/installed-dev ## Parsers of bytes from outside, fuzzed by coverage: ARGS='--seconds 600'
	@$(PY) -c 'import atheris' 2>/dev/null || $(PY) -m pip --disable-pip-version-check install -q --only-binary :all: $(PIP_FLAGS) 'atheris>=3,<4' \
		|| { echo "skipped: no wheel of atheris can be had for $$($(PY) -V) on $$(uname -m)"; exit 0; }; \
		$(PY) -m tests.fuzz $(ARGS)

lint: .venv/installed-dev ## ruff and mypy; warnings are errors
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

proto: .venv/installed-dev ## Write the generated code from protos/
	PYTHON=$(PY) protos/generate.sh

wheel: .venv/installed-dev ## Build dist/*.whl
	$(PY) -m build --wheel

# In an environment of their own: they pin what we do not. torch is in the constraints, so PIP_FLAGS chooses its build.
bench-peers: ## Install Ray and hivemind for `python -m benchmarks.rpc` into .venv-peers
	test -x .venv-peers/bin/pip || $(PYTHON) -m venv --clear .venv-peers || { rm -rf .venv-peers; exit 2; }
	.venv-peers/bin/pip --disable-pip-version-check install $(PIP_FLAGS) -c benchmarks/rpc/peers/constraints.txt \
		torch hivemind ray

clean: ## Remove .venv, builds and caches; runs/ stays
	rm -rf .venv .venv-peers dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The development install has all of the runtime's, so it stands for both.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(PIP) -e .
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/pip
	$(PIP) -e '.[dev]'
	@touch .venv/installed $@

# A half-made environment would look like a whole one the next time.
.venv/bin/pip:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there: install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1): Python 3.11 or newer is needed, e.g. make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv || { rm -rf .venv; exit 2; }
