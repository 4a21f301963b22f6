"""Files by auto-round, whose linears read those of GPTQ; those of AWQ gptqmodel reads."""

from pathlib import Path
from tempfile import TemporaryDirectory

import common
import gptqmodel_files
import torch
from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


def _linear_of(settings):
    """The linear that runs a format: zeros as they are, or minus 1. None: another tool's."""
    form = settings.get("packing_format") or settings.get("checkpoint_format") or "gptq"
    kinds = {
        "auto_round": qlinear_torch.QuantLinear,
        "auto_round:auto_gptq": qlinear_torch_zp.QuantLinear,
        "gptq": qlinear_torch_zp.QuantLinear,
        "gptq_v2": qlinear_torch.QuantLinear,
    }
    return kinds.get(form) if settings["quant_method"] in ("gptq", "auto-round") else None


def decode(folder):
    """What a linear makes of the unit vectors is its weight."""
    settings = common.settings(folder)
    kind = _linear_of(settings)
    if kind is None:
        return None
    values = {}
    for module, tensors in common.modules(folder, SUFFIXES).items():
        bits = settings["bits"]
        n_in, n_out = len(tensors["qweight"]) * 32 // bits, tensors["qweight"].shape[1]
        group_size = n_in // len(tensors["scales"])
        linear = kind(bits, group_size, n_in, n_out, False)
        for name in SUFFIXES[:3]:
            assert getattr(linear, name).shape == tensors[name].shape, name
            setattr(linear, name, tensors[name].float() if name == "scales" else tensors[name])
        linear.post_init()
        values[f"{module}.weight"] = linear(torch.eye(n_in)).T
    return values


def write(folder, base):
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    schemes = {
        "auto_gptq": {"bits": 4, "sym": True},
        "auto_gptq_8_bits": {"bits": 8, "sym": True},
        "auto_round_3_bits": {"bits": 3, "sym": True},
        "auto_round_asym": {"bits": 4, "sym": False},
    }
    ids = common.calibration()
    for name, scheme in schemes.items():
        model = AutoModelForCausalLM.from_pretrained(base)
        tuner = AutoRound(
            model, AutoTokenizer.from_pretrained(base), group_size=32, iters=2, nsamples=len(ids),
            seqlen=ids.shape[1], batch_size=4, dataset=list(ids[:, None]), **scheme,
        )  # fmt: skip
        with TemporaryDirectory() as parent:
            tuner.quantize_and_save(parent, format="auto_gptq" if "gptq" in name else "auto_round")
            [made] = Path(parent).iterdir()
            values, tools = decode(made), ["auto-round"]
            if values is None:
                values, tools = gptqmodel_files.decode(made), [*tools, "gptqmodel"]
            common.record(made, folder / f"autoround_{name}", values, tools)


if __name__ == "__main__":
    common.main(write, decode, gptqmodel_files.load)
