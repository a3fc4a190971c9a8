# Each target sets up what it needs in .venv; a fresh machine needs python3.11 (with venv), pip and make.
PY ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check -c requirements/lock.txt

.PHONY: demo test bench lint lava clean

# torch first: an unpinned requirement would fetch several GB of CUDA libraries. spikingjelly without
# its dependencies: the torchvision and torchaudio it asks for do not import beside a CPU torch.
$(BIN)/.ok: pyproject.toml requirements/lock.txt requirements/tools.txt
	$(PY) -m venv .venv
	$(PIP) torch
	$(PIP) -e ".[cpu,event,openvino,readers,plots,dev]"
	$(PIP) loguru tqdm
	$(PIP) --no-deps spikingjelly -r requirements/tools.txt
	touch $@

demo: $(BIN)/.ok
	$(BIN)/python samples/demo.py

# Lava in an environment of its own: it forks, and wants no torch beside it.
.venv-lava/.ok: requirements/lava.txt
	$(PY) -m venv .venv-lava
	.venv-lava/bin/pip install -q --disable-pip-version-check -r requirements/lava.txt
	.venv-lava/bin/pip install -q --disable-pip-version-check --no-deps --ignore-requires-python \
		lava-nc==0.10.0 lava-dl==0.6.0
	touch $@

lava: .venv-lava/.ok

test: $(BIN)/.ok .venv-lava/.ok
	$(BIN)/python -m pytest

bench: $(BIN)/.ok .venv-lava/.ok
	$(BIN)/python benchmarks/export_onnx.py
	$(BIN)/python benchmarks/onnx_quality.py --networks out/networks
	$(BIN)/python benchmarks/trace_large.py
	$(BIN)/python benchmarks/latency.py --networks out/networks
	$(BIN)/python benchmarks/latency.py --device cuda
	$(BIN)/python benchmarks/energy_overhead.py
	$(BIN)/python benchmarks/lava_encoder.py
	$(BIN)/python benchmarks/nir_paper_scale.py
	$(BIN)/python -m benchmarks.event_engine --networks out/networks
	$(BIN)/python -m benchmarks.tables

lint: $(BIN)/.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-lava build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
