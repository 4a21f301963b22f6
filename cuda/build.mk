# The CUDA library, and its kernels on the emulator. cuda/make.py knows how each is built.
# UPDATE=1 writes budgets of kernels afresh, and LIST=1 prints what they are now.

.PHONY: cuda cuda-budget emu cuda-emulator cuda-kernels test-device test-emu test-gpu

CUDA_BUILD := LMDEPLOY_C_WERROR=1 $(BIN)/python cuda/make.py
CUDA_BUDGET := $(BIN)/python cuda/budget.py
BUDGET_FLAGS := $(if $(UPDATE),--update) $(if $(LIST),--list)

cuda: $(VENV)/.installed ## the CUDA library, by nvcc, beside the installed module; LMDEPLOY_C_CUDA_ARCHS=80,90a
	@$(BIN)/python cuda/toolkit.py install compiler
	@$(CUDA_BUILD) cuda --into "$$($(BIN)/python -Ic 'import lmdeploy_c; print(*lmdeploy_c.__path__)')"

cuda-budget: $(VENV)/.created ## registers, blocks, instructions of each kernel on each target, against their budgets
	@$(BIN)/python cuda/toolkit.py install compiler
	@$(BIN)/python cuda/toolkit.py install disassembler
	@$(CUDA_BUILD) budget
	@$(CUDA_BUDGET) compiled $(BUDGET_FLAGS)

emu: $(VENV)/.created ## the CUDA library and its tests with kernels on the emulator
	@$(BIN)/python cuda/toolkit.py install headers
	@$(CUDA_BUILD) emu

ON_EMULATOR := $(BIN)/python tests/cuda/on_emulator.py

cuda-emulator: emu ## what the emulator itself must refuse, and the bugs that it must find
	$(ON_EMULATOR) emulator

cuda-kernels: emu ## every launcher against plain C on the emulator, races and bounds, bytes against their budgets
	$(ON_EMULATOR) kernels
	@$(CUDA_BUDGET) emulated build/emu-checked/profile.json $(BUDGET_FLAGS)

# ---- the engine on a device ----

test-device: $(VENV)/.test-tools emu ## the engine's suite on an emulated device, its kernels in plain C; the thread sanitizer
	$(ON_EMULATOR) device

test-emu: $(VENV)/.test-tools emu ## every kernel on the emulator, and models on them beside the CPU
	$(ON_EMULATOR) models
	@$(CUDA_BUDGET) emulated build/emu-checked/profile.json $(BUDGET_FLAGS)

test-gpu: ## all that a GPU should see, on a machine that has one and nvcc; needs no network
	$(PYTHON) tests/cuda/on_gpu.py
