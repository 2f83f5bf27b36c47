# make demo: one whole turn of the wheel.   make test: the tests.   Both set up .venv by themselves.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
# The build of torch: by default what your package index serves (on Linux often the CUDA build).
# TORCH_INDEX=ADDRESS takes it from another index; README says which and why.
TORCH_FLAGS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

# Where the environment forbids bytecode (images do), each process would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-long check bench bench-gpu clean
.DELETE_ON_ERROR:

demo: $(VENV)/.all
	$(BIN)/flywheel demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -m repeat -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "long and not repeat"

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/turn.py

bench-gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,python3) benchmarks/gpu.py

# torch first and by pip: anything else that asked for it would bring a build of its own choice.
$(VENV)/.torch: constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_FLAGS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet "$$(grep '^uv==' constraints.txt)"
	touch $@

# uv is quick; where it does not know your package index, pip does the same.
define install
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[$(1)]' \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(1)]'
	touch $@
endef

$(VENV)/.all: $(VENV)/.torch pyproject.toml constraints.txt
	$(call install,all)

$(VENV)/.dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(call install,dev)
	touch $(VENV)/.all

clean:
	rm -rf $(VENV) data/demo .pytest_cache .ruff_cache .import_linter_cache
