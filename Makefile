PYTHON = python3
BIN = .venv/bin
# As root JupyterLab wants --allow-root. The settings keep it from asking you, or a server, for news and updates.
LAB = $(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb
LAB_SETTINGS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}

.PHONY: lab test test-gpu bench notebooks clean

lab: .venv/installed
	$(LAB) $(ARGS)

# Two files at a time, each on half of the cores; the lessons, which take longest, come first.
test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder
	@if $(BIN)/python -c "import torch; exit(not torch.cuda.is_available())"; then $(MAKE) test-gpu; fi

test-gpu: .venv/installed
	BERT_COURSE_DEVICE=cuda $(BIN)/python -m pytest notebooks

# On a machine that does nothing else.
bench: .venv/installed
	$(BIN)/python -m benchmarks.run $(ARGS)

notebooks: .venv/installed
	$(BIN)/bert-course stamp
	BERT_COURSE_DEVICE=cpu $(BIN)/python tests/execute_lessons.py

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[lab,test]"
	@mkdir -p .venv/share/jupyter/lab/settings
	@echo '$(LAB_SETTINGS)' > .venv/share/jupyter/lab/settings/overrides.json
	@touch $@
