# Every target bootstraps what it needs in .venv; `make` alone lists them.
#   DEVICE=cpu|cuda  which install (default: cuda where nvidia-smi answers; gpu is cuda, too);
#                    a switch rebuilds .venv
#   PYTHON=...       the interpreter to build .venv from, 3.11 to 3.14
#   RECIPE=...       the training recipe: default, seed, best, or fine-tune, the default with EXTRA
#   EXTRA=DIR        your own digits to train on, too: pictures in DIR/0 to DIR/9
#   RESUME=1         resume the training that was interrupted
#   PEERS=...        servers for `make bench-peers` that run already: triton=oip://HOST:PORT
#   SEEDS=...        how many seeds `make simulate` runs
#   SEED=, NUMBER=, KIND=   which mutants `make mutants` draws, how many, and of which kind: hands or operators
#   SOAK_S=...       how long `make soak` keeps the server under load, in seconds

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help train export serve serve-edge demo bench bench-full bench-peers verify-gpu
.PHONY: check test test-slow mutants simulate test-reliability soak test-interop test-web test-packaging test-deploy
.PHONY: lint docs screenshots reference verdict protos protos-check lock clean

DEVICE ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
override DEVICE := $(DEVICE:gpu=cuda)
ifeq ($(filter cpu cuda,$(DEVICE)),)
$(error DEVICE is cpu or cuda, not '$(DEVICE)')
endif
SOAK_S ?= 1800
SEEDS ?= 1000
SEED ?= $(shell date +%s)
NUMBER ?= 20
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && echo $(p))))
APART := interop reliability packaging web deploy
RUN := .venv/bin/python
INSTALLED := .venv/.installed-$(DEVICE)
PIP := -m pip --disable-pip-version-check --quiet

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

train: $(INSTALLED)  ## get MNIST, fit the network, write artifacts/
	$(RUN) -m training train $(if $(RECIPE),--recipe $(RECIPE)) $(if $(RESUME),--resume) $(if $(EXTRA),--extra "$(EXTRA)")

export: $(INSTALLED)  ## write the next version under models/digits/
	$(RUN) -m training export

serve: $(INSTALLED)  ## serve models/digits, or the bundled model, on 127.0.0.1:50051 (Ctrl-C drains)
	$(RUN) -m serving serve

serve-edge: $(INSTALLED) .venv-edge/.installed  ## two servers behind Envoy with TLS on port 8443 (Ctrl-C drains)
	$(RUN) -m deploy.serve_edge

demo: $(INSTALLED)  ## the whole path: train, export, serve, classify 10,000 test images
	$(RUN) -m training train $(if $(RECIPE),--recipe $(RECIPE))
	$(RUN) -m training export
	$(RUN) -m deploy.demo

bench: $(INSTALLED)  ## measure four servers (2 min); benchmarks/results/local/bench.md
	$(RUN) -m benchmarks run --suite bench

bench-full: $(INSTALLED)  ## measure four scenarios on all devices, precisions, workers (20 min)
	$(RUN) -m benchmarks run --suite full

bench-peers: $(INSTALLED)  ## compare with Triton, LitServe, BentoML, mosec, MLServer, Ray Serve; the README's figures (70 min; goes on where it was ended)
	$(RUN) -m benchmarks peers $(if $(PEERS),--peer $(PEERS)) --output benchmarks/results/peers.json
	$(RUN) -m benchmarks plot benchmarks/results/peers.json --readme README.md

verify-gpu: $(INSTALLED)  ## train, export and measure on a GPU (25 min); DEVICE=cpu rehearses it
	$(RUN) -m training train --artifacts build/verify $(if $(filter cpu,$(DEVICE)),--epochs 1)
	@grep -q '"device": "$(DEVICE)"' build/verify/metrics.json || { echo "make: TensorFlow did not train on $(DEVICE)" >&2; exit 1; }
	$(RUN) -m training export --artifacts build/verify --models build/verify/models
	$(RUN) -m benchmarks run --suite full --targets h2 --device cpu,cuda --precision fp32,int8 \
		--models build/verify/models \
		$(if $(filter cpu,$(DEVICE)),--seconds 0.05 --rounds 1,--output benchmarks/results/gpu.json)

check: lint  ## lint, types, and the tests that start no process (95 s)
	$(RUN) -m pytest -q -n 2 --dist loadfile -m "not process and not slow $(addprefix and not ,$(APART))"

# Of two cores two workers use 70 %: tests wait for starts, ends and deadlines of servers.
test: $(INSTALLED)  ## run the test suite (no GPU needed; 12 minutes on two cores)
	$(RUN) -m pytest -q -n 3 --dist loadfile

test-slow: $(INSTALLED)  ## the tests that take more than four seconds each
	$(RUN) -m pytest -q -n 2 --dist loadfile -m slow tests/docs tests/http2 tests/programs tests/proof tests/serving tests/training tests/test_*.py

mutants: $(INSTALLED) .venv-mutants/.installed  ## make NUMBER=... faults in copies of the code; which do tests notice?
	.venv-mutants/bin/python -m tests.mutation --seed $(SEED) --number $(NUMBER) $(if $(KIND),--kind $(KIND))

simulate: $(INSTALLED)  ## a server, its callers and injected faults, simulated for SEEDS=... seeds
	$(RUN) -m tests.simulation $(SEEDS)

test-reliability: $(INSTALLED)  ## real servers under faults, load and hostile bytes (minutes)
	$(RUN) -m pytest -q -n 2 --dist loadfile -m reliability tests/reliability

soak: $(INSTALLED)  ## the long soak, SOAK_S=... seconds
	SOAK_S=$(SOAK_S) $(RUN) -m pytest -s -m reliability --timeout 0 tests/reliability/load/test_soak.py

test-interop: $(INSTALLED)  ## test against tritonclient, perf_analyzer, KServe, grpc-js, curl, nghttp (2 min; installs its own)
	$(RUN) -m pytest -q -m interop tests/interop

test-web: $(INSTALLED)  ## the page in Chromium, and the HTTP API by its document (a minute; needs chromium)
	$(RUN) -m pytest -q -m web tests/web

test-deploy: $(INSTALLED) .venv-edge/.installed .venv-ray/.installed  ## the files of deploy/ with Envoy, Prometheus, kubectl, Ray and others (4 min)
	deploy/check
	$(RUN) -m pytest -q -m deploy tests/deploy

test-packaging: $(INSTALLED)  ## build wheel and sdist, install each extra apart and use it (2 to 7 min, by the downloads)
	$(RUN) -m pytest -q -m packaging tests/packaging

lint: $(INSTALLED)  ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: .venv-docs/.installed  ## build build/docs; `python -m http.server -d build/docs` shows it
	.venv-docs/bin/python -m mkdocs build

reference: $(INSTALLED)  ## write docs/reference/ from docstrings and options
	$(RUN) docs/reference.py

screenshots: $(INSTALLED)  ## take the screenshots of docs/pictures in Chromium (needs chromium)
	$(RUN) -m tests.web.screenshots

# Generated code refuses runtimes older than its generator, so the generator is pinned to our floor and lives
# apart. It has wheels up to Python 3.13.
PROTOC = .venv-protos/bin/python -m grpc_tools.protoc

protos: .venv-protos/.installed  ## generate digit_classifier/pb, serving/protocols/pb, serving/proof/onnx.binpb and serving/model/model_config.binpb from protos/
	$(PROTOC) -Idigit_classifier/pb=protos --python_out=. --pyi_out=. --grpc_python_out=. protos/digits/v1/digits.proto
	$(PROTOC) -Iprotos --descriptor_set_out=serving/protocols/pb/inference.binpb protos/inference/inference.proto
	$(PROTOC) -Iprotos --descriptor_set_out=serving/proof/onnx.binpb protos/onnx/onnx.proto
	$(PROTOC) -Iprotos --descriptor_set_out=serving/model/model_config.binpb protos/triton/model_config.proto

verdict: $(INSTALLED)  ## prove the bundled model's rows independent again, after a change of the rules
	$(RUN) -m training.export.verdict digit_classifier/pretrained/digits/1

protos-check:  ## fail if the committed generated code is stale
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 14))'; then \
		echo "generated code is not checked: its generator has wheels up to Python 3.13"; \
	else \
		$(MAKE) protos && git diff --exit-code --stat -- digit_classifier/pb serving/protocols/pb serving/proof/onnx.binpb serving/model/model_config.binpb; \
	fi

LOCK = .venv-lock/bin/uv pip compile --quiet --upgrade pyproject.toml --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --custom-compile-command "make lock"
LOCK_ALL = $(LOCK) --extra pictures --extra otel --extra score --extra dev

lock:  ## resolve requirements/*.lock to the newest versions
	$(PYTHON) -m venv .venv-lock && .venv-lock/bin/python $(PIP) install uv
	$(LOCK_ALL) --extra serve --extra train --output-file requirements/cpu.lock
	$(LOCK_ALL) --extra serve-gpu --extra train-gpu --output-file requirements/cuda.lock
	$(LOCK) --extra serve --extra pictures --extra remote --extra s3 --output-file requirements/serve.lock
	$(LOCK) --extra serve-gpu --extra pictures --extra remote --extra s3 --output-file requirements/serve-cuda.lock
	$(LOCK) --extra serve --extra pictures --extra ray --output-file requirements/ray.lock
	$(LOCK) --extra edge --group deploy --output-file requirements/edge.lock
	$(subst pyproject.toml,,$(LOCK)) --group docs --output-file requirements/docs.lock
	$(subst pyproject.toml,,$(LOCK)) --group mutants --output-file requirements/mutants.lock

clean:  ## remove everything built, trained or exported (the MNIST cache stays)
	rm -rf .venv .venv-protos .venv-lock .venv-edge .venv-ray .venv-docs .venv-mutants .cache artifacts models build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: python
python:
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 to 3.14: apt-get install python3 (or name one: make PYTHON=...)" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) has no venv module: apt-get install python3-venv" >&2; exit 2; }

.venv/.installed-%: requirements/%.lock pyproject.toml | python
	@echo "installing into .venv ($*, a minute or two) ..."
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(RUN) $(PIP) install --no-compile --no-cache-dir --require-hashes -r requirements/$*.lock
	$(RUN) $(PIP) install --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	@touch $@

# The site is built from Markdown alone, without TensorFlow and the rest.
.venv-docs/.installed: requirements/docs.lock | python
	rm -rf .venv-docs
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python $(PIP) install --require-hashes -r requirements/docs.lock
	@touch $@

# Cosmic Ray changes files and runs no test: what it needs (90 MB) lives apart.
.venv-mutants/.installed: requirements/mutants.lock | python
	rm -rf .venv-mutants
	$(PYTHON) -m venv .venv-mutants
	.venv-mutants/bin/python $(PIP) install --require-hashes -r requirements/mutants.lock
	@touch $@

# Envoy unpacks to 100 MB, so it lives apart.
.venv-edge/.installed: requirements/edge.lock | python
	rm -rf .venv-edge
	$(PYTHON) -m venv .venv-edge
	.venv-edge/bin/python $(PIP) install --require-hashes -r requirements/edge.lock
	@touch $@

# Ray and what it needs unpack to 500 MB, and has requirements that the rest should not bend to.
.venv-ray/.installed: requirements/ray.lock | python
	rm -rf .venv-ray
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python $(PIP) install --require-hashes -r requirements/ray.lock
	.venv-ray/bin/python $(PIP) install --no-deps --config-settings editable_mode=compat --editable .
	@touch $@

.venv-protos/.installed: | python
	$(PYTHON) -m venv .venv-protos
	.venv-protos/bin/python $(PIP) install "grpcio-tools==1.66.2"
	@touch $@
