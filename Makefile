PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint app results clean

install: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	@echo 'Installing into .venv: about 6 GB, some minutes. Nothing outside this folder changes.'
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# All four stages and the comparison, small, on drawn shapes. A second run finds everything done and compares again.
demo: install
	$(BIN)/python teacher_rectified_flow.py --preset tiny --data shapes --out demo/teacher
	$(BIN)/python generate_noise_dataset.py --teacher demo/teacher/teacher.safetensors --num-pairs 2560 \
		--out demo/noise_pairs
	$(BIN)/python distill_student.py --teacher demo/teacher/teacher.safetensors --pairs demo/noise_pairs --out demo/one_step \
		--preset tiny --evaluate-every 400
	$(BIN)/python four_step_student.py --teacher demo/teacher/teacher.safetensors --pairs demo/noise_pairs --out demo/four_step \
		--preset tiny --evaluate-every 400
	mkdir -p demo/models
	cp demo/teacher/teacher.safetensors demo/four_step/four_step.safetensors demo/one_step/student.safetensors demo/models
	$(BIN)/python sample.py --compare demo/models/teacher.safetensors demo/models/four_step.safetensors \
		demo/models/student.safetensors --out demo/comparison.png

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

app: install
	$(BIN)/streamlit run app.py

# The page of results, from docs/results.jsonl and the shipped models.
results: install
	$(BIN)/python -m benchmarks.results_page

# Removes what `make` made; checkpoints, pairs and data of your own stay.
clean:
	rm -rf .venv demo .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
