"""Makes lmdeploy_templates.json: what LMDeploy 0.18's built-in chat templates write.

Give it the folder that its wheel was unpacked to. lmdeploy/model.py is imported alone, with empty
modules for what it asks of others, so that neither torch nor a GPU is needed. Texts of more than
LONGEST characters, which are DeepSeek's instructions for tools, are stored as hashes.
"""

import hashlib
import importlib
import json
import logging
import sys
import types
from pathlib import Path

from conversations import BUILT_IN, DEEPSEEK

ROOT = Path(__file__).parent
LONGEST = 700

OPTIONS = {
    "vicuna": [{"capability": "completion"}, {"meta_instruction": None}],
    "llama2": [{"meta_instruction": "Speak."}, {"capability": "completion"}],
    "codellama": [{"capability": "python"}, {"capability": "completion"}],
    "deepseek-vl2": [{"capability": "completion"}],
    "base": [{"system": "S:", "meta_instruction": "M", "eosys": ".", "user": "U:", "eoh": ";",
              "assistant": "A:", "eoa": "!", "separator": "|"}],
}  # fmt: skip
PATHS = [
    "lmsys/vicuna-7b-v1.5", "WizardLM-13B", "liuhaotian/llava-v1.5-7b", "llava-v1.6-34b",
    "llava-v1.6-mistral-7b", "meta-llama/Llama-2-7b-chat-hf", "codellama/CodeLlama-7b-hf",
    "THUDM/chatglm2-6b", "mistralai/Mistral-7B-Instruct-v0.1", "mistralai/Mistral-7B-v0.1",
    "mistralai/Mixtral-8x7B-Instruct-v0.1", "OpenGVLab/InternVL-Chat-V1-1",
    "deepseek-ai/deepseek-vl-7b-chat", "deepseek-ai/deepseek-vl2", "THUDM/cogvlm-chat-hf",
    "THUDM/cogvlm2-llama3-chat-19B", "Qwen/Qwen3-0.6B",
]  # fmt: skip


class Registry:
    """The little of mmengine's that model.py uses."""

    def __init__(self, *args, **kwargs):
        self.module_dict = {}

    def register_module(self, name):
        def register(cls):
            self.module_dict.update(dict.fromkeys([name] if isinstance(name, str) else name, cls))
            return cls

        return register


def import_model(folder):
    def stub(name, **names):
        module = types.ModuleType(name)
        vars(module).update(names)
        sys.modules[name] = module
        return module

    stub("mmengine", Registry=Registry)
    stub("lmdeploy").__path__ = [str(Path(folder) / "lmdeploy")]
    stub("lmdeploy.archs", get_model_arch=None)
    stub("lmdeploy.utils", get_logger=logging.getLogger)
    return importlib.import_module("lmdeploy.model")


def stored(text):
    if len(text) <= LONGEST:
        return text
    return {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def main(folder):
    models = import_model(folder).MODELS.module_dict
    templates, matches = {}, {}
    for name, cls in models.items():
        if name == "hf":
            continue
        cases = DEEPSEEK if name.startswith(("deepseek-v3", "deepseek-v4")) else BUILT_IN
        rows = []
        for options in [{}, *OPTIONS.get(name, [])]:
            texts = {
                case: stored(cls(**options).messages2prompt(messages, **kwargs))
                for case, (messages, kwargs) in cases.items()
            }
            stop_words = cls(**options).stop_words
            rows.append({"options": options, "stop_words": stop_words, "texts": texts})
        templates[name] = rows
        matches[name] = [path for path in PATHS if cls.match(path)]
    out = {"templates": templates, "matches": matches, "paths": PATHS}
    text = json.dumps(out, ensure_ascii=False, indent=1)
    (ROOT / "lmdeploy_templates.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
