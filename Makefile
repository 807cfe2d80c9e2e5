# The commands that people type. `make test` is all that a fresh clone needs.

PYTHON ?= python3
# The active virtual environment, else one of our own.
VENV   ?= $(or $(VIRTUAL_ENV),.venv)
PY     := $(VENV)/bin/python
# Random mutations of make fuzz, beside every truncation and boundary value.
FUZZ   ?= 5000
JOBS   ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
PIP    := $(PY) -m pip --disable-pip-version-check

SOURCES := pyproject.toml CMakeLists.txt $(shell find cmake csrc metal src python/grebe -type f -not -name '*.pyc')
CPP     := $(shell find csrc src tests/native tests/metal_emu -not -path '*/sysroot/*' \( -name '*.h' -o -name '*.cpp' -o -name '*.mm' \)) \
           $(wildcard metal/*.h metal/*.metal metal/args/*.h)

export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)

.PHONY: test test-all dev bench fmt lint stubs native asan fuzz clean

test: $(VENV)/.installed            ## the quick tests, against the package as users install it
	$(PY) -m pytest

test-all: $(VENV)/.installed        ## everything that this machine can run
	$(PY) -m pytest -m 'not gpu and not model'

# The build folder is kept (build-dir in pyproject.toml), so an edit compiles what it touches.
$(VENV)/.installed: $(SOURCES)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet '.[test]'
	touch $@

dev: $(VENV)/bin/python             ## editable install that rebuilds on import, and the linters
	$(PIP) install --quiet 'scikit-build-core>=1.1' 'nanobind>=3.1'
	command -v cmake >/dev/null && command -v ninja >/dev/null || $(PIP) install --quiet --only-binary :all: cmake ninja
	$(PIP) install --quiet --no-build-isolation --editable '.[dev]'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

bench: $(VENV)/.installed           ## speed of the embedded model; see benchmarks/README.md for the rest
	$(VENV)/bin/grebe bench

$(VENV)/.lint: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --quiet $$($(PYTHON) -c "import re; print(*re.findall(r'\"((?:ruff|mypy|clang-format)==[^\"]+|(?:numpy|starlette|uvicorn|msgspec|llguidance)>=[^\"]+)\"', open('pyproject.toml').read()))")
	touch $@

lint: $(VENV)/.lint                 ## what must be clean before a commit
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP)

fmt: $(VENV)/.lint                  ## put everything into shape
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .
	$(VENV)/bin/clang-format -i $(CPP)

stubs: $(VENV)/.installed           ## write python/grebe/_engine.pyi again
	$(PY) -m nanobind.stubgen --quiet -m grebe._engine -o python/grebe/_engine.pyi

native:                             ## the engine's own test programs
	cmake --preset native && cmake --build --preset native -j $(JOBS)

asan:                               ## the same under AddressSanitizer and UndefinedBehaviorSanitizer
	cmake --preset asan && cmake --build --preset asan -j $(JOBS)

# Only the code that reads files: the kernels take minutes to compile under the sanitizers.
fuzz: $(VENV)/.installed            ## damage GGUF files in thousands of ways, under the sanitizers
	cmake --preset asan
	cmake --build --preset asan -j $(JOBS) --target fuzz_gguf test_text
	build/asan/tests/native/test_text
	$(PY) tests/helpers/tiny_gguf.py build/tiny.gguf
	build/asan/tests/native/fuzz_gguf build/tiny.gguf $(FUZZ)

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
