"""A call's arguments, checked, and the answers that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..messages import ErrorCode, GenerationConfig, check_flag, unsupported, wrong_type
from ..text.chat_template import template_kwargs
from ..text.prompts import Prompt
from .answer import Answer
from .choices import Call, n_choices
from .session import Session, check_one_answer
from .stateful import KEYWORDS, NumberedSessions, read_keywords
from .text_engine import TextEngine, check_gen_configs


def make_call(
    numbered_sessions: NumberedSessions,
    prompts: list[Prompt],
    gen_config: GenerationConfig | list[GenerationConfig] | None,
    do_preprocess: bool,
    adapter_name: str | None,
    kwargs: Mapping[str, Any],
    session: Session | None = None,
) -> Call:
    """Checks a call's arguments.

    This is where LMDeploy's numbered sessions become Sessions, and nowhere else. session: the
    prompt is its next turn.
    """
    engine = numbered_sessions.engine
    _ = engine.core  # a closed pipeline raises here, not with the first answer
    check_adapter(adapter_name)
    check_flag("do_preprocess", do_preprocess)
    configs = check_gen_configs(gen_config, len(prompts))
    numbered = read_keywords(kwargs)
    options = template_kwargs({k: v for k, v in kwargs.items() if k not in KEYWORDS})
    if numbered is not None:
        if len(prompts) != 1:
            raise ValueError("session_id takes one prompt; ask each by itself")
        try:
            session = numbered_sessions.resolve(numbered)
        except LookupError as e:
            message = str(e)
            return Call([1], lambda i: engine.reject(message, code=ErrorCode.REQUEST_CONFLICT))
    if session is not None:
        check_one_answer(configs[0] or session.gen_config)

    def first(i: int) -> Answer:
        if session is not None:
            return session.start(
                prompts[i], configs[i], do_preprocess=do_preprocess, template_kwargs=options
            )
        return engine.ask(
            prompts[i],
            configs[i],
            do_preprocess=do_preprocess,
            template_kwargs=options,
            keep_snapshot=n_choices(configs[i]) > 1,
            index=i,
        )

    def again(first: Answer, choice: int) -> Answer:
        config = configs[first.response.index]
        return engine.ask_again(first, choice, config, do_preprocess=do_preprocess)

    return Call([n_choices(config) for config in configs], first, again)


def check_session(name: str, value: object, engine: TextEngine | None = None) -> None:
    """Raises TypeError, and ValueError for a session of another engine than the one given."""
    if not isinstance(value, (Session, type(None))):
        raise wrong_type(name, "a Session, such as pipe.session() gives", value)
    if value is not None and engine is not None and value.engine is not engine:
        raise ValueError(
            f"{name}: session {value.session_id} belongs to another pipeline; `save` it there and "
            "`load_session` it here"
        )


def check_adapter(name: str | None) -> None:
    """Raises UnsupportedError for any."""
    if name is not None:
        raise unsupported(f"adapter_name={name!r}: this release has no LoRA adapters")
