"""Files by llm-compressor, which compressed-tensors reads."""

from pathlib import Path
from tempfile import TemporaryDirectory

import common
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig

SUFFIXES = ("weight_scale", "weight", "weight_packed", "weight_zero_point", "weight_shape")


def decode(folder):
    """By compressed-tensors' own code, with scales in fp32, so that nothing is rounded."""
    settings = common.settings(folder)
    if settings["quant_method"] != "compressed-tensors":
        return None
    [scheme] = QuantizationConfig.model_validate(settings).config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(scheme.format or settings["format"])
    values = {}
    for module, tensors in common.modules(folder, SUFFIXES).items():
        tensors["weight_scale"] = tensors["weight_scale"].float()
        values[f"{module}.weight"] = compressor.decompress(tensors, scheme)["weight"].float()
    return values


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def weights(bits, symmetric, group_size=None):
    strategy = "group" if group_size else "channel"
    args = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy}
    if group_size:
        args["group_size"] = group_size
    return {"group_0": {"targets": ["Linear"], "weights": args}}


def write(folder, base):
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import LlamaForCausalLM

    nearest, ignore = QuantizationModifier, ["lm_head"]
    recipes = {
        "w4_sym": nearest(config_groups=weights(4, True, 32), ignore=ignore),
        "w4_asym_gptq": GPTQModifier(config_groups=weights(4, False, 32), ignore=ignore),
        "w3_sym": nearest(config_groups=weights(3, True, 32), ignore=ignore),
        "w3_asym_gptq": GPTQModifier(config_groups=weights(3, False, 32), ignore=ignore),
        "w3_asym_channel": nearest(config_groups=weights(3, False), ignore=ignore),
        "w8a8": nearest(scheme="W8A8", targets="Linear", ignore=ignore),
    }
    ids = common.calibration()
    data = Dataset.from_dict(
        {"input_ids": ids.tolist(), "attention_mask": (ids >= 0).long().tolist()}
    )
    calibration = {"dataset": data, "num_calibration_samples": len(ids), "max_seq_length": 64}
    for name, recipe in recipes.items():
        model = LlamaForCausalLM.from_pretrained(base)
        oneshot(model=model, recipe=[recipe], **(calibration if "gptq" in name else {}))
        with TemporaryDirectory() as made:
            model.save_pretrained(made, save_compressed=True)
            tools = ("llmcompressor", "compressed-tensors")
            common.record(Path(made), folder / f"llmcompressor_{name}", decode(made), tools)


if __name__ == "__main__":
    common.main(write, decode, load)
