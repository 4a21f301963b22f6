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

# What the emulator says while it refuses is in build/*/*.log.
cuda-emulator: emu ## what the emulator itself must refuse, and the bugs that it must find
	build/emu/check_runtime 2> build/emu/check_runtime.log
	build/emu/check_cublaslt build/emu/libcublasLt.so 2> build/emu/check_cublaslt.log
	build/emu/conformance
	build/emu-checked/check_bugs

CUDA_CHECKED := build/emu-checked/check_cuda
CUDA_PROFILE := build/emu-checked/profile.json

# Threads run first come first, last come first, and at random; then each access is checked.
cuda-kernels: emu ## every launcher against plain C on the emulator, races and bounds, bytes against their budgets
	EMU_ORDER=0 build/emu/check_cuda
	EMU_ORDER=1 build/emu/check_cuda
	EMU_ORDER=7 build/emu/check_cuda
	EMU_CHECK=1 EMU_PROFILE=1 EMU_PROFILE_FILE=$(CUDA_PROFILE) $(CUDA_CHECKED) 2> $(CUDA_CHECKED).log || { cat $(CUDA_CHECKED).log; exit 1; }
	@$(CUDA_BUDGET) emulated $(CUDA_PROFILE) $(BUDGET_FLAGS)

# ---- the engine on a device ----

# Files whose subject is what a device computes; the others would test the host once more.
DEVICE_TESTS := tests/device $(patsubst %,tests/core/test_%.py,engine exactness golden packed_weights sampler snapshots)
EMULATED := LMDEPLOY_C_TEST_DEVICE=cuda LMDEPLOY_C_CUDA_LIBRARY=$(CURDIR)/build/emu/liblmdeploy_cuda.so

test-device: $(VENV)/.test-tools emu ## the engine's suite on an emulated device, its kernels in plain C; the thread sanitizer
	LMDEPLOY_C_CUDA_KERNELS=ref build/emu-tsan/stress_device
	$(EMULATED) LMDEPLOY_C_CUDA_KERNELS=ref $(PYTEST) $(DEVICE_TESTS) -k "not many_heads"

test-emu: $(VENV)/.test-tools cuda-emulator cuda-kernels ## every kernel on the emulator, and models on them beside the CPU
	$(EMULATED) $(PYTEST) tests/device tests/core/test_golden.py -k "test_models or hd64 or hd128 or hd256"

test-gpu: ## all that a GPU should see, on a machine that has one and nvcc; needs no network
	$(PYTHON) tests/cuda/on_gpu.py
