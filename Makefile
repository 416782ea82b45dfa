MAKEFLAGS += --warn-undefined-variables --no-builtin-rules
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

environments := .modelmill/environments

##@ Use
.PHONY: demo
demo: environments ## Fine-tune, merge, quantize and judge a real small model on this machine
	@examples/text-to-sql/demo.sh

.PHONY: demo-quick
demo-quick: environments ## The same stages on the same model, with a tenth of the work
	@examples/text-to-sql/demo.sh --quick

.PHONY: gpu-check
gpu-check: environments ## Run the chain on the GPU of this machine, and say what each stage took
	@$(environments)/light/bin/python benchmarks/gpu.py

.PHONY: environments
environments: ## Make the environments the stages run in, from the locks that ship
	@for name in light train quantize; do images/environment.sh $$name $(environments)/$$name || exit; done

##@ Develop
.PHONY: dev
dev: environments ## Make .venv, which holds every package and the test tools
	@images/environment.sh dev .venv

.PHONY: test
test: dev ## Run every test that needs nothing but this machine
	@.venv/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore tests/images --ignore tests/cluster \
		--ignore tests/auto_gptq --ignore tests/vllm

.PHONY: test-auto-gptq
test-auto-gptq: dev ## Read what quantize writes with auto-gptq, in an environment of its age
	@images/environment.sh auto-gptq $(environments)/auto-gptq
	@.venv/bin/pytest tests/auto_gptq

.PHONY: test-vllm
test-vllm: dev ## Hold what is said of vLLM against the source of the version that is pinned
	@.venv/bin/python -m tests.vllm.source .modelmill/vllm
	@.venv/bin/pytest tests/vllm

.PHONY: format
format: dev ## Format the code
	@.venv/bin/ruff format --quiet .
	@.venv/bin/ruff check --quiet --fix-only .

.PHONY: lint
lint: dev ## Check format, style, types and import contracts
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@PYTHONPATH=src .venv/bin/lint-imports
	@.venv/bin/hadolint images/*/Dockerfile

.PHONY: families
families: dev ## Prove every way of quantizing on tiny models of every family, for docs/families.md
	@.venv/bin/python -m tests.models.families

.PHONY: generate
generate: dev ## Write what is derived from the code: schemas, reference, values, example Jobs
	@.venv/bin/python -m docs.generate

.PHONY: verify
verify: generate ## Fail where a generated file is not what the code says
	@git diff --exit-code -- docs helm k8s/jobs

.PHONY: locks
locks: ## Compile every lock anew from pyproject.toml
	@images/lock.sh

.PHONY: clean
clean: ## Remove environments, the embedded store and everything it holds
	rm -rf .modelmill .venv

##@ Cluster
.PHONY: cluster
cluster: ## Start a real one-node Kubernetes with Kueue, S3 and a pretended GPU
	@images/environment.sh light $(environments)/light
	@k8s/dev/up.sh

.PHONY: test-cluster
test-cluster: dev ## Run whole runs, and what can go wrong with them, on that cluster
	@PATH="$(CURDIR)/.venv/bin:$$PATH" k8s/dev/with.sh k8s/dev/test.sh

.PHONY: test-cluster-quick
test-cluster-quick: dev ## The same but for what takes minutes or stops parts of it
	@PATH="$(CURDIR)/.venv/bin:$$PATH" k8s/dev/with.sh k8s/dev/test.sh quick

.PHONY: cluster-down
cluster-down: ## Stop it and remove all it has made
	@k8s/dev/down.sh

##@ Images
.PHONY: images
images: ## Build every image that CI builds, with buildah; BASE_IMAGE=... for another base
	@images/build.sh

.PHONY: images-cml
images-cml: ## Build the Runtimes of Cloudera AI, one for each environment of the stages
	@images/build.sh light-cml finetune-cml quantize-cml

.PHONY: test-images
test-images: dev ## Run the built images as a cluster would; needs root, buildah and runc
	@.venv/bin/pytest -n 2 --dist worksteal tests/images

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*##/ {printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
