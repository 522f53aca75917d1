# Everything works on a fresh clone: the targets set up .venv first.
READY := .venv/.ready
PY := .venv/bin/python

# Hundreds of interpreters start here: what one has compiled serves the next.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-long test-hil check format bench bench-build fuzz lock clean
help:
	@echo "make demo    train, build, push, verify, measure and report on the board 'local' (BOARD=NAME for another)"
	@echo "             (BOARD=pi4 brings a virtual Raspberry Pi 4 up for it, where QEMU is)"
	@echo "make test    format, lint, types and all tests but the long ones"
	@echo "make test-long  what takes minutes: hundreds of rounds of chaos, gate-level netlists"
	@echo "make test-hil  the whole story on virtual boards of every kind, under QEMU"
	@echo "make check   format, lint and types alone"
	@echo "make bench   the figures that README.md states, measured here (ROWS='serial push' for some)"
	@echo "make bench-build  accuracy of compressed networks on all of CIFAR-10: hours; it goes on where it stopped (ROWS=--show)"
	@echo "make fuzz    feed garbage to everything that reads what the other side sends, guided by coverage (INPUTS=20000)"
	@echo "make lock    resolve the dependencies anew, with hashes"

setup: $(READY)
$(READY): .ci/lock.txt .ci/bootstrap pyproject.toml
	@.ci/bootstrap .venv

demo: $(READY)
	@.ci/demo

check: $(READY)
	@$(PY) -m ruff format --check --quiet deploy devices tests || { echo "\`make format\` formats them"; exit 1; }
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy

test: check
	@# Many tests wait for a line or a timer rather than compute.
	@$(PY) -m pytest -n 3 -m "not long and not alone"
	@# What measures needs the machine for itself.
	@$(PY) -m pytest -m "alone and not long"

test-long: $(READY)
	@$(PY) -m pytest -n 2 -m "long and not qemu"

# What is marked long, such as the corpus on each kind, comes with HIL=qemu.
HIL ?= qemu and not long
test-hil: $(READY)
	@DEPLOY_HIL=1 $(PY) -m pytest -n 2 --dist loadgroup -m "$(HIL)"

format: $(READY)
	@$(PY) -m ruff check --fix --quiet .
	@$(PY) -m ruff format --quiet deploy devices tests

bench: $(READY)
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .ci/bench.txt || \
	    echo "some peers are missing: their rows will say so"
	@$(PY) -m tests.benchmarks $(ROWS)

bench-build: $(READY)
	@$(PY) -m tests.benchmarks.build $(ROWS) $(if $(SEEDS),--seeds $(SEEDS))

INPUTS ?= 20000
fuzz: $(READY)
	@$(PY) -m tests.fuzz --inputs $(INPUTS)
	@DEPLOY_KERNELS_MUTANTS=$(INPUTS) $(PY) -m pytest -n 2 tests/kernels -k malformed

lock:
	@$(PY) -m pip install --quiet uv
	@$(PY) -m uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --quiet -o .ci/lock.txt
	@$(PY) -m uv pip compile .ci/bench.in --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --quiet -o .ci/bench.txt
	@$(PY) -m uv pip compile .ci/pynq.in --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --quiet -o .ci/pynq.txt
	@$(PY) -m uv pip compile deploy/runtime.in --no-deps --universal --python-version 3.9 --generate-hashes \
	    --no-emit-index-url --no-header --quiet -o deploy/runtime.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache build *.egg-info digits.bundle report.html
