"""Where LMDeploy's users find chat templates: `from lmdeploy_c.model import MODELS`."""

from __future__ import annotations

from typing import Any

from .text.built_in_templates import MODELS, BaseChatTemplate
from .text.chat_template import ChatTemplate, ChatTemplateConfig
from .text.jinja_template import JinjaChatTemplate, template_sources
from .tokenizer import Tokenizer

__all__ = ["MODELS", "BaseChatTemplate", "ChatTemplateConfig", "HFChatTemplate",
           "get_chat_template"]  # fmt: skip


@MODELS.register_module("hf")
class HFChatTemplate(JinjaChatTemplate):
    """The template that the files of a model bring.

    model_path: see `Tokenizer`. trust_remote_code and other keywords are accepted and ignored: no
    code of a model is ever run. Raises ValueError where a template cannot be read from there.
    """

    def __init__(
        self, model_path: str = "", trust_remote_code: bool = False, **kwargs: Any
    ) -> None:
        self.model_path = model_path
        try:
            self.tokenizer = Tokenizer(model_path)
            source, tool_source = template_sources(self.tokenizer.chat_templates)
        except Exception as error:  # whatever is wrong with the files
            raise ValueError(f"no chat template can be read from {model_path!r}: {error}") from None
        eos = self.tokenizer.eos_token
        super().__init__(source, self.tokenizer, [eos] if eos else [], tool_source)

    @classmethod
    def match(cls, model_path: str, **kwargs: Any) -> bool:
        """Whether the files bring a template."""
        try:
            cls(model_path)
        except ValueError:
            return False
        return True


def get_chat_template(
    model_path: str, config: ChatTemplateConfig | None = None, trust_remote_code: bool = False
) -> ChatTemplate:
    """LMDeploy's choice: config's template, else the first whose `match` knows the path, else
    "base". trust_remote_code: accepted and ignored."""
    if config is None:
        matching = (name for name, cls in MODELS.module_dict.items() if cls.match(model_path))
        config = ChatTemplateConfig(next(matching, "base"), model_path=model_path)
    return config.chat_template()
