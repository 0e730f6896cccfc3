# Each target sets up what it needs (tools/setup): Debian's packages and .venv. A second call only looks.
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test test-fast chaos test-tools csi-sanity kube lint bench proto clean multitier-images multitier-files images-check clean-multitier clean-multitier-controller setup-runtime setup-bench setup-test setup-lint setup-chaos setup-sanity setup-kube setup-images

PYTHON ?=
ONLY ?=
ARGS ?=
export PYTHON
# Of multitier-images; tools/images says what each is.
export REPO_PATH MULTITIER_TAG REPLICATION_WORKER_DEBUG_BACKUP CONTAINER_TOOL BASE_IMAGE BUILD_OPTIONS PUSH_OPTIONS

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-26s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup-runtime ## three nodes, a coordinator and a bucket on this machine: write, lose, restore, verify
	@.venv/bin/fuse-tier demo $(ARGS)

test: setup-test ## the whole suite; ARGS="-k name" for a part
	@.venv/bin/pytest $(ARGS)

test-fast: setup-test ## what needs no FUSE, no network and no other process: at each save
	@HYPOTHESIS_PROFILE=fast .venv/bin/pytest -q -m fast $(ARGS)

chaos: setup-chaos ## hundreds of random examples, faults and public suites; ARGS="-k name" for a part
	@.venv/bin/pytest -m chaos $(ARGS)

test-tools: setup-chaos ## the public suites that tests run, from Debian, crates.io and Go modules, into .tools

kube: setup-kube ## etcd, an API server and promtool, which make test runs where they are: minutes to build, once

csi-sanity: setup-sanity ## of these only the CSI community's, which make test runs where it is

lint: setup-lint ## style, types, import layers, generated code
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@tools/proto --check

bench: setup-bench ## the benchmarks, into bench.json; ONLY="fs.write.seq1 peer.snapshot" for some
	@.venv/bin/fuse-tier bench --json bench.json $(ONLY)

proto: setup-lint ## generate the code of the wire protocol
	@tools/proto

multitier-images: ## build and push the images, make the manifests that name them: REPO_PATH= MULTITIER_TAG=
	@tools/images

multitier-files: ## of these only the manifests, for images that are built elsewhere
	@tools/images --files-only

images-check: setup-images ## build the images for real, with buildah, and run what is in them
	@.venv/bin/pytest -m images $(ARGS)

clean-multitier: clean-multitier-controller ## remove what make multitier-images made
	@rm -f deploy/multitier/controller/csi-container-images.yaml

clean-multitier-controller: ## of that, what names the controller's image
	@cd deploy/multitier/controller && rm -f controller-image.yaml run-make-multitier-images-first.yaml

clean: ## remove everything that make made
	@rm -rf .venv .venv.lock .tools bench.json dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup-runtime setup-bench setup-test setup-lint setup-chaos setup-sanity setup-kube setup-images: setup-%:
	@tools/setup $*
