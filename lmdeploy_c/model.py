"""Where LMDeploy's users find chat templates: `from lmdeploy_c.model import MODELS`."""

from .text.chat_template import MODELS, BaseChatTemplate, ChatTemplateConfig

__all__ = ["MODELS", "BaseChatTemplate", "ChatTemplateConfig"]
