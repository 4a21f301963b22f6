"""LMDeploy's built-in chat templates, made of pieces, by their names; and users' own.

What they write is LMDeploy 0.18's (lmdeploy/model.py), to the character.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from .prompts import Prompt, as_messages

#: What a template is made of, each a text.
PIECES = ("system", "meta_instruction", "eosys", "user", "eoh", "assistant", "eoa", "separator",
          "tool", "eotool")  # fmt: skip
Pieces = dict[str, Any]
Names = dict[str, Callable[[str], bool]]
T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """Template classes by their names, in the order in which LMDeploy asks them (`match`)."""

    def __init__(self) -> None:
        self.module_dict: dict[str, Any] = {}

    def register_module(
        self,
        name: str | Sequence[str] | None = None,
        force: bool = False,
        module: Callable[..., Any] | None = None,
    ) -> Any:
        """Decorates a class, or takes it as `module`: its templates are then known by this name, or
        these, or the class' own. A name that is known already gets the new class. force: accepted
        for LMDeploy's calls."""

        def register(cls: T) -> T:
            names = [cls.__name__] if name is None else [name] if isinstance(name, str) else name
            self.module_dict.update(dict.fromkeys(names, cls))
            return cls

        return register if module is None else register(module)

    def get(self, name: str) -> Any:
        """The class of this name, or None."""
        return self.module_dict.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self.module_dict

    def __iter__(self) -> Iterator[str]:
        return iter(self.module_dict)

    def __len__(self) -> int:
        return len(self.module_dict)


MODELS = Registry()


@MODELS.register_module("base")
class BaseChatTemplate:
    """A template of pieces:
    {system}{meta_instruction}{eosys}{user}{content}{eoh}{assistant}{reply}{eoa}{separator}{user}...

    meta_instruction: the system's message where a conversation brings none; None writes none.
    capability: "completion" takes a text as it is. stop_words: strings that end an answer.
    Subclass it and register the class: `@MODELS.register_module(name="mine")`. Other keywords are
    ignored.
    """

    adds_bos = False
    normalizes = False

    def __init__(
        self,
        system: str = "",
        meta_instruction: str | None = "",
        eosys: str = "",
        user: str = "",
        eoh: str = "",
        assistant: str = "",
        eoa: str = "",
        separator: str = "",
        tool: str = "",
        eotool: str = "",
        capability: str = "chat",
        stop_words: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.system, self.meta_instruction, self.eosys = system, meta_instruction, eosys
        self.user, self.eoh, self.assistant, self.eoa = user, eoh, assistant, eoa
        self.separator, self.tool, self.eotool = separator, tool, eotool
        self.capability, self.stop_words = capability, stop_words

    def get_prompt(self, prompt: str) -> str:
        """The prompt of one message of the user."""
        if self.capability == "completion":
            return prompt
        return f"{self._instruction()}{self.user}{prompt}{self.eoh}{self.assistant}"

    def messages2prompt(
        self, messages: Prompt, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        """The prompt of a conversation. A last message of the assistant's is left open. ValueError
        for a role that has no pieces."""
        if isinstance(messages, str):
            return self.get_prompt(messages)
        conversation = as_messages(messages)
        pieces = {"system": (self.system, self.eosys), "user": (self.user, self.eoh),
                  "assistant": (self.assistant, self.eoa + self.separator),
                  "tool": (self.tool, self.eotool)}  # fmt: skip
        instructed = not conversation or conversation[0]["role"] == "system"
        text = "" if instructed else self._instruction()
        end = ""
        for message in conversation:
            role = message["role"]
            if role not in pieces:
                raise ValueError(f"role {role!r} is none of {', '.join(pieces)}")
            start, after = pieces[role]
            text += end + start + message["content"]
            end = after
        if not add_generation_prompt:
            return text + end
        if conversation and conversation[-1]["role"] == "assistant":
            return text
        return text + end + self.assistant

    def _instruction(self) -> str:
        if self.meta_instruction is None:
            return ""
        return f"{self.system}{self.meta_instruction}{self.eosys}"

    @classmethod
    def match(cls, model_path: str, **kwargs: Any) -> str | None:
        """The name of this template where the path is one of its models', else None."""
        return None


class _Named(BaseChatTemplate):
    """A template whose pieces have values of their own where nothing else is asked for.

    names: its names, each with a test of a model's path in small letters.
    """

    pieces: ClassVar[Pieces] = {}
    names: ClassVar[Names] = {}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**self.pieces, **kwargs})

    @classmethod
    def match(cls, model_path: str, **kwargs: Any) -> str | None:
        path = str(model_path).lower()
        return next((name for name, fits in cls.names.items() if fits(path)), None)


class _Trimmed(_Named):
    """A template whose assistant's piece ends in a space, which a prompt leaves to the model."""

    def get_prompt(self, prompt: str) -> str:
        text = super().get_prompt(prompt)
        return text[:-1] if self.capability == "chat" else text

    def messages2prompt(
        self, messages: Prompt, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        text = super().messages2prompt(messages, add_generation_prompt, **kwargs)
        if isinstance(messages, str) or not add_generation_prompt:
            return text
        is_open = bool(messages) and messages[-1].get("role") == "assistant"
        return text if is_open else text[:-1]


@MODELS.register_module("cogvlm")
class CogVLM(_Named):
    pieces: ClassVar[Pieces] = {
        "user": "Question: ", "separator": "\n", "eoh": " ", "assistant": "Answer:",
        "eoa": "</s>", "stop_words": ["</s>"],
    }  # fmt: skip
    names: ClassVar[Names] = {"cogvlm": lambda path: "cogvlm" in path and "cogvlm2" not in path}


@MODELS.register_module("vicuna")
class Vicuna(_Trimmed):
    pieces: ClassVar[Pieces] = {
        "meta_instruction": "A chat between a curious user and an artificial intelligence "
        "assistant. The assistant gives helpful, detailed, and polite answers to the user's "
        "questions.",
        "eosys": " ", "user": "USER: ", "eoh": " ", "assistant": "ASSISTANT: ", "eoa": "</s>",
        "stop_words": ["</s>"],
    }  # fmt: skip
    names: ClassVar[Names] = {
        "vicuna": lambda path: "vicuna" in path and "llava" not in path,
        "wizardlm": lambda path: "wizardlm" in path,
    }


@MODELS.register_module("llava-v1")
class LlavaV1(_Trimmed):
    pieces: ClassVar[Pieces] = {
        **Vicuna.pieces,
        "meta_instruction": "A chat between a curious human and an artificial intelligence "
        "assistant. The assistant gives helpful, detailed, and polite answers to the human's "
        "questions.",
    }
    names: ClassVar[Names] = {
        "llava-v1": lambda path: (
            "llava-1.5" in path
            or (
                "llava" in path
                and "v1" in path
                and "v1.6-34b" not in path
                and "mistral" not in path
            )
        )
    }


@MODELS.register_module("llama2")
class Llama2(_Named):
    pieces: ClassVar[Pieces] = {
        "system": "[INST] <<SYS>>\n",
        "meta_instruction": "You are a helpful, respectful and honest assistant. Always answer as "
        "helpfully as possible, while being safe. Your answers should not include any harmful, "
        "unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your "
        "responses are socially unbiased and positive in nature.\n\nIf a question does not make "
        "any sense, or is not factually coherent, explain why instead of answering something not "
        "correct. If you don't know the answer to a question, please don't share false "
        "information.",
        "eosys": "\n<</SYS>>\n\n", "assistant": " [/INST] ", "eoa": "</s>",
        "separator": "<s>[INST] ",
    }  # fmt: skip
    names: ClassVar[Names] = {"llama2": lambda path: "llama-2" in path or "llama2" in path}


@MODELS.register_module("codellama")
class CodeLlama(Llama2):
    """capability "chat" is Llama 2's; "infilling" takes a text with one <FILL> in it, and
    suffix_first writes what follows it first; "completion" and "python" take a text as it is.
    Raises AssertionError for another capability, as LMDeploy does."""

    pieces: ClassVar[Pieces] = {**Llama2.pieces, "meta_instruction": ""}
    names: ClassVar[Names] = {"codellama": lambda path: "codellama" in path}

    def __init__(self, suffix_first: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        known = ("completion", "infilling", "chat", "python")
        if self.capability not in known:
            raise AssertionError(
                f"codellama's capability is one of {', '.join(known)}, not {self.capability!r}"
            )
        self.suffix_first = suffix_first
        if self.capability == "infilling" and self.stop_words is None:
            self.stop_words = ["<EOT>"]

    def get_prompt(self, prompt: str) -> str:
        if self.capability == "chat":
            return super().get_prompt(prompt)
        if self.capability != "infilling":
            return prompt
        if prompt.count("<FILL>") != 1:
            raise ValueError("a prompt for infilling needs one <FILL> where the text is missing")
        before, after = prompt.split("<FILL>")
        if self.suffix_first:
            return f"<PRE> <SUF>{after} <MID> {before}"
        return f"<PRE> {before} <SUF>{after} <MID>"


@MODELS.register_module("chatglm")
class ChatGLM2(_Named):
    """Counts its rounds; knows the roles user and assistant alone, and passes over others."""

    pieces: ClassVar[Pieces] = {"user": "问：", "eoh": "\n\n", "assistant": "答：", "eoa": "\n\n"}
    names: ClassVar[Names] = {"chatglm": lambda path: "chatglm2" in path}

    def get_prompt(self, prompt: str) -> str:
        return self._round(1, prompt)

    def messages2prompt(
        self, messages: Prompt, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        text, n_rounds = "", 0
        for message in as_messages(messages):
            if message["role"] == "user":
                n_rounds += 1
                text += self._round(n_rounds, message["content"])
            elif message["role"] == "assistant":
                text += message["content"]
        return text if add_generation_prompt else text.removesuffix(self.assistant)

    def _round(self, number: int, prompt: str) -> str:
        return f"[Round {number}]\n\n{self.user}{prompt}{self.eoh}{self.assistant}"


@MODELS.register_module(["mistral", "mixtral"])
class MistralChat(_Named):
    pieces: ClassVar[Pieces] = {"user": "[INST] ", "eoh": " [/INST]", "eoa": "</s>"}
    names: ClassVar[Names] = {
        "mistral": lambda path: "mistral" in path and ("instruct" in path or "llava" in path),
        "mixtral": lambda path: "mixtral" in path and ("instruct" in path or "llava" in path),
    }


@MODELS.register_module("internvl-zh")
class InternVLZH(_Trimmed):
    pieces: ClassVar[Pieces] = {
        "user": "<human>: ",
        "eoh": " ",
        "assistant": "<bot>: ",
        "eoa": "</s>",
    }
    names: ClassVar[Names] = {
        "internvl-zh": lambda path: "internvl-chat" in path and "v1-1" in path
    }


@MODELS.register_module("deepseek-vl")
class DeepseekVL(_Trimmed):
    pieces: ClassVar[Pieces] = {
        "meta_instruction": "You are a helpful language and vision assistant. You are able to "
        "understand the visual content that the user provides, and assist the user with a variety "
        "of tasks using natural language.",
        "eosys": "\n\n", "user": "User: ", "eoh": "\n\n", "assistant": "Assistant: ",
        "eoa": "<｜end▁of▁sentence｜>",
    }  # fmt: skip
    names: ClassVar[Names] = {"deepseek-vl": lambda path: "deepseek-vl" in path and "chat" in path}


@MODELS.register_module("deepseek-vl2")
class DeepseekVL2(_Trimmed):
    pieces: ClassVar[Pieces] = {
        "user": "<|User|>: ", "eoh": "\n\n", "assistant": "<|Assistant|>: ",
        "eoa": "<｜end▁of▁sentence｜>",
    }  # fmt: skip
    names: ClassVar[Names] = {"deepseek-vl2": lambda path: "deepseek-vl2" in path}

    def get_prompt(self, prompt: str) -> str:
        return BaseChatTemplate.get_prompt(self, prompt)[:-1]


@MODELS.register_module("llava-chatml")
class ChatmlDirect(_Named):
    pieces: ClassVar[Pieces] = {
        "system": "<|im_start|>system\n", "meta_instruction": "Answer the questions.",
        "eosys": "<|im_end|>", "user": "<|im_start|>user\n", "eoh": "<|im_end|>",
        "assistant": "<|im_start|>assistant\n", "eoa": "<|im_end|>",
    }  # fmt: skip
    names: ClassVar[Names] = {"llava-chatml": lambda path: "llava" in path and "v1.6-34b" in path}
