"""Files by gptqmodel, GPTQ and AWQ, which it reads itself."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import common
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


def _gptq(settings, tensors):
    """By a linear of its own that holds the tensors, its scales in fp32: nothing is rounded."""
    n_in, n_out = len(tensors["g_idx"]), tensors["qweight"].shape[1]
    module = TorchLinear(
        bits=settings["bits"], group_size=settings["group_size"], sym=settings["sym"],
        desc_act=settings["desc_act"], in_features=n_in, out_features=n_out, bias=False,
        register_buffers=True,
    )  # fmt: skip
    for name, tensor in tensors.items():
        assert getattr(module, name).shape == tensor.shape, name
        setattr(module, name, tensor.float() if name == "scales" else tensor)
    if (settings.get("checkpoint_format") or settings.get("format") or "gptq") == "gptq":
        convert_gptq_v1_to_v2_format_module(module, settings["bits"], torch.int32)
    module.dequant_dtype = torch.int32  # of codes
    return module.dequantize_weight().T


def _awq(settings, tensors):
    words, zeros, scales = (tensors[name] for name in SUFFIXES[:3])
    group_size = len(words) // len(scales)
    return dequantize_gemm(words, zeros, scales.float(), settings["bits"], group_size).T


def decode(folder):
    settings = common.settings(folder)
    form = settings.get("packing_format", settings["quant_method"])
    method = {"gptq": _gptq, "awq": _awq, "auto_round:auto_awq": _awq}.get(form)
    if method is None:
        return None
    found = common.modules(folder, SUFFIXES)
    return {f"{module}.weight": method(settings, tensors) for module, tensors in found.items()}


def load(folder):
    """Its linears compute in halves."""
    is_awq = common.settings(folder)["quant_method"] == "awq"
    backend = BACKEND.AWQ_TORCH if is_awq else BACKEND.TORCH
    return GPTQModel.load(str(folder), backend=backend, device="cpu").model


def write(folder, base):

    configs = {
        "v1_sym": {"bits": 4, "sym": True, "format": "gptq"},
        "v1_asym": {"bits": 4, "sym": False, "format": "gptq"},
        "v2_asym": {"bits": 4, "sym": False, "format": "gptq_v2"},
        "v1_desc_act": {"bits": 4, "sym": True, "desc_act": True, "format": "gptq"},
        "v1_8_bits": {"bits": 8, "sym": True, "format": "gptq"},
        "v1_3_bits_asym": {"bits": 3, "sym": False, "format": "gptq"},
        "awq": {"bits": 4, "quant_method": "awq", "format": "gemm"},
        "awq_asym": {"bits": 4, "quant_method": "awq", "format": "gemm", "sym": False},
    }
    ids = [
        {"input_ids": row, "attention_mask": [1] * len(row)}
        for row in common.calibration().tolist()
    ]
    for name, config in configs.items():
        if not config.get("desc_act"):
            config["desc_act"] = False
        model = GPTQModel.load(str(base), QuantizeConfig(group_size=32, **config), device="cpu")
        model.quantize(ids, batch_size=4, backend=BACKEND.AUTO)
        with TemporaryDirectory() as made:
            model.save(made)
            common.record(Path(made), folder / f"gptqmodel_{name}", decode(made), ("gptqmodel",))


if __name__ == "__main__":
    common.main(write, decode, load)
