"""The mistakes of a first hour, and the sentences that cure them: each is raised where it is made,
at the call and not with the first piece of a stream."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted_models import write_directory

from lmdeploy_c import (
    ChatTemplateConfig,
    GenerationConfig,
    Pipeline,
    PytorchEngineConfig,
    Session,
    SpeculativeConfig,
    TurbomindEngineConfig,
    pipeline,
    plan,
)

FEW = GenerationConfig(max_new_tokens=4)
ENGINE = TurbomindEngineConfig(session_len=512, cache_max_entry_count=64)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    path, _ = write_directory(tmp_path_factory.mktemp("model"), ["tick"], ["tick", "tick"])
    with pipeline(path, ENGINE) as made:
        yield made


Mistake = tuple[Callable[[Any], object], type[Exception], str]


def refused(mistake: Mistake, pipe: Any = None) -> None:
    make, error, why = mistake
    with pytest.raises(error) as raised:
        make(pipe)
    assert why in str(raised.value)


# Names

NAMES: list[Mistake] = [
    (
        lambda p: p("hi", max_new_tokens=5),
        TypeError,
        "'max_new_tokens' is no keyword of a call but a field of a config: "
        "pipe(prompts, gen_config=GenerationConfig(max_new_tokens=5))",
    ),
    (lambda p: p.stream_infer("hi", top_k=1), TypeError, "gen_config=GenerationConfig(top_k=1)"),
    (lambda p: p.chat("hi", temperature=0.5), TypeError, "GenerationConfig(temperature=0.5)"),
    (lambda p: p.generate("hi", n=2), TypeError, "GenerationConfig(n=2)"),
    (lambda p: p.session()("hi", n=2), TypeError, "GenerationConfig(n=2)"),
    (
        lambda p: p("hi", session_len=512),
        TypeError,
        "pipeline(model, backend_config=TurbomindEngineConfig(session_len=512))",
    ),
    (
        lambda _: pipeline(session_len=4096),
        TypeError,
        "'session_len' is no keyword of pipeline() but a field of a config: "
        "pipeline(model, backend_config=TurbomindEngineConfig(session_len=4096))",
    ),
    (lambda _: pipeline(tp=2), TypeError, "backend_config=TurbomindEngineConfig(tp=2)"),
    (lambda _: pipeline(block_size=64), TypeError, "PytorchEngineConfig(block_size=64)"),
    (lambda _: pipeline(temperature=0), TypeError, "gen_config=GenerationConfig(temperature=0)"),
    (
        lambda _: GenerationConfig(max_new_token=5),  # type: ignore[call-arg]
        TypeError,
        "GenerationConfig has no 'max_new_token'; did you mean 'max_new_tokens'?",
    ),
    (
        lambda _: GenerationConfig(seed=5),  # type: ignore[call-arg]
        TypeError,
        "did you mean 'random_seed'?",
    ),
    (
        lambda _: TurbomindEngineConfig(sesion_len=5),  # type: ignore[call-arg]
        TypeError,
        "TurbomindEngineConfig has no 'sesion_len'; did you mean 'session_len'?",
    ),
    (
        lambda _: ChatTemplateConfig(stop_word=["x"]),  # type: ignore[call-arg]
        TypeError,
        "did you mean 'stop_words'?",
    ),
    (
        lambda _: SpeculativeConfig(speculative_tokens=3),  # type: ignore[call-arg]
        TypeError,
        "did you mean 'num_speculative_tokens'?",
    ),
]


@pytest.mark.parametrize("mistake", NAMES, ids=[m[2][-40:] for m in NAMES])
def test_a_name_in_the_wrong_place(pipe: Pipeline, mistake: Mistake) -> None:
    refused(mistake, pipe)


@pytest.mark.parametrize(
    ("config", "name", "meant"),
    [
        (GenerationConfig(), "max_new_token", "max_new_tokens"),
        (TurbomindEngineConfig(), "cache_max_entry_counts", "cache_max_entry_count"),
        (PytorchEngineConfig(), "device", "device_type"),
        (SpeculativeConfig(), "nmethod", "method"),
        (ChatTemplateConfig(), "system_", "system"),
    ],
)
def test_no_attribute_comes_out_of_nothing(config: Any, name: str, meant: str) -> None:
    with pytest.raises(AttributeError, match=f"has no '{name}'; did you mean '{meant}'?"):
        setattr(config, name, 5)
    setattr(config, meant, getattr(config, meant))
    with pytest.raises(AttributeError, match=r"has no 'qqqq'$"):
        config.qqqq = 5


def test_a_config_of_ones_own_has_its_own_attributes() -> None:
    class Mine(GenerationConfig):
        label: str = ""

    mine = Mine(top_k=3)
    mine.label = "first"
    assert (mine.label, mine.top_k) == ("first", 3)

    class Named(Mine):
        def __init__(self, name: str) -> None:
            super().__init__(top_k=4)
            self.label = name

    assert (Named(name="second").label, Named(name="second").top_k) == ("second", 4)


def test_what_is_like_nothing_is_ignored_with_a_hint(pipe: Pipeline) -> None:
    for keyword, hint in (("genconfig", "gen_config"), ("max_tokens", "max_new_tokens")):
        with pytest.warns(UserWarning, match=f"'{keyword}'; did you mean '{hint}'"):
            pipe("hi", FEW, **{keyword: 5})
    with pytest.warns(UserWarning, match="'frobnicate': options of an answer belong into gen_conf"):
        pipe("hi", FEW, frobnicate=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("hi", FEW, add_generation_prompt=True)


# Types

TYPES: list[Mistake] = [
    (lambda p: p(FEW, "hi"), TypeError, "a GenerationConfig is gen_config of a call"),
    (lambda p: p(5), TypeError, "prompts: a prompt is a text, a list of texts"),
    (lambda p: p(["a", 5]), TypeError, "an item of prompts: a prompt is a text"),
    (lambda p: p("a", "b"), TypeError, "GenerationConfig (several prompts are one list), not 'b'"),
    (lambda p: p("a", {}), TypeError, "gen_config: a GenerationConfig, not dict"),
    (lambda p: p("a", ENGINE), TypeError, "a TurbomindEngineConfig is backend_config of pipeline"),
    (lambda p: p(["a"], [FEW, 3]), ValueError, "gen_config has 2 items for 1 prompts"),
    (lambda p: p(["a", "b"], []), ValueError, "gen_config has 0 items for 2 prompts"),
    (lambda p: p(["a"], [3]), TypeError, "gen_config: a GenerationConfig, not 3"),
    (lambda p: p.infer("a", FEW, "b"), TypeError, "do_preprocess: True or False, not 'b'"),
    (lambda p: p("a", use_tqdm="x"), TypeError, "use_tqdm: None, True or False, not 'x'"),
    (lambda p: p("a", tools="get"), TypeError, "tools: a list of tools, not 'get'"),
    (lambda p: p("a", enable_thinking="no"), TypeError, "enable_thinking: True or False"),
    (lambda p: p("a", chat_template_kwargs=[1]), TypeError, "chat_template_kwargs: a mapping"),
    (
        lambda p: p.stream_infer("a", FEW),
        TypeError,
        "sessions: a Session, such as pipe.session() gives, not GenerationConfig; "
        "a GenerationConfig is gen_config of a call",
    ),
    (lambda p: p.stream_infer(5), TypeError, "prompts: a prompt is a text"),
    (lambda p: p.stream_infer("a", stream_response=1), TypeError, "stream_response: True or"),
    (lambda p: p.chat("a", FEW), TypeError, "a GenerationConfig is gen_config of a call"),
    (lambda p: p.chat("a", p.session(), {}), TypeError, "gen_config: a GenerationConfig"),
    (lambda p: p.chat(["a", "b"]), TypeError, "a turn takes one prompt"),
    (lambda p: p.generate(["a", "b"]), TypeError, "generate answers one prompt"),
    (lambda p: p.generate("a", session=5), TypeError, "session: a Session"),
    (lambda p: p.generate("a", 5), TypeError, "gen_config: a GenerationConfig, not 5"),
    (lambda p: p.session("a"), TypeError, "gen_config: a GenerationConfig"),
    (lambda p: p.session()("a", 5), TypeError, "gen_config: a GenerationConfig, not 5"),
    (lambda p: p.session().rewind("1"), TypeError, "n_turns: an integer, not '1'"),
    (lambda p: p.session().rewind(tokens=1.5), TypeError, "tokens: an integer, not 1.5"),
    (lambda _: Session("model"), TypeError, "engine: a TextEngine or a Pipeline, not 'model'"),
    (lambda p: p.get_ppl(5), TypeError, "get_ppl: a text, a list of token ids"),
    (lambda p: p.get_ppl([]), TypeError, "get_ppl: a text, a list of token ids"),
    (lambda p: p.get_ppl([[1.5, 2.5]]), TypeError, "ids are integers"),
    (lambda p: p.get_ppl([1, "a"]), TypeError, "ids are integers"),
    (
        lambda _: pipeline(ENGINE),
        TypeError,
        "model_path: a path, a model id, or None for the default, not TurbomindEngineConfig; "
        "a TurbomindEngineConfig is backend_config of pipeline()",
    ),
    (lambda _: plan(5), TypeError, "model_path: a path"),
    (
        lambda _: pipeline(None, FEW),
        TypeError,
        "backend_config: a TurbomindEngineConfig or PytorchEngineConfig, not GenerationConfig; "
        "a GenerationConfig is gen_config of a call",
    ),
    (lambda _: pipeline(None, {"session_len": 5}), TypeError, "backend_config: a Turbomind"),
    (
        lambda _: pipeline(chat_template_config="hf"),
        TypeError,
        "chat_template_config: a ChatTemplateConfig, such as ChatTemplateConfig('hf'), not 'hf'",
    ),
    (lambda _: pipeline(speculative_config="ngram"), TypeError, "a SpeculativeConfig, not 'ngram'"),
    (lambda _: pipeline(max_log_len="9"), TypeError, "max_log_len: None or a number"),
    (lambda _: pipeline(model_name=9), TypeError, "model_name: None or a text, not 9"),
    (lambda _: pipeline(vision_config={}), TypeError, "vision_config: a VisionConfig, not dict"),
    (lambda _: ChatTemplateConfig(5), TypeError, "ChatTemplateConfig.model_name: None or a text"),
    (
        lambda _: ChatTemplateConfig(stop_words="</s>"),  # type: ignore[arg-type]
        TypeError,
        "ChatTemplateConfig.stop_words: None or a list of texts, not '</s>'",
    ),
    *(
        (
            lambda _, value=value: GenerationConfig(logit_bias=value),
            ValueError,
            "GenerationConfig.logit_bias must be None or a mapping of token id to number",
        )
        for value in ("x", [5], {"x": 1}, {5: "x"}, {5: None}, {5: float("nan")}, {1.5: 1})
    ),
    (lambda _: TurbomindEngineConfig(fast_activations="yes"), ValueError, "True or False"),
    (lambda _: TurbomindEngineConfig(batch_invariant=1), ValueError, "True or False"),
    (lambda _: TurbomindEngineConfig(download_dir=5), ValueError, "None or a folder, not 5"),
    (lambda _: PytorchEngineConfig(revision=5), ValueError, "None or the name of a version"),
]


@pytest.mark.parametrize("mistake", TYPES, ids=[m[2][-40:] for m in TYPES])
def test_a_wrong_type(pipe: Pipeline, mistake: Mistake) -> None:
    refused(mistake, pipe)


def test_a_turn_that_is_refused_leaves_the_session_as_it_was(pipe: Pipeline) -> None:
    session = pipe.session(FEW)
    for wrong in (5, GenerationConfig(n=2)):
        with pytest.raises((TypeError, ValueError)):
            pipe.chat("hi", session, wrong, stream_response=True)
    assert session.gen_config is FEW
    assert pipe.chat("hi", session).history


def test_a_session_of_another_pipeline(pipe: Pipeline) -> None:
    with pipeline(pipe.engine.model_path, ENGINE) as other:
        session = other.session()
        for call in (
            lambda: pipe.chat("hi", session),
            lambda: pipe.generate("hi", session=session),
        ):
            with pytest.raises(ValueError, match="belongs to another pipeline; `save` it there"):
                call()


def test_several_answers_to_a_turn_are_refused_at_the_call(pipe: Pipeline) -> None:
    two = GenerationConfig(n=2)
    for call in (
        lambda: pipe.session()("hi", two),
        lambda: pipe.generate("hi", two, session=pipe.session()),
        lambda: pipe.stream_infer("hi", gen_config=two, session_id=3, sequence_end=False),
    ):
        with pytest.raises(ValueError, match="n=2: a turn of a conversation has one answer"):
            call()


def test_token_ids_as_text_are_biases_as_in_openais_requests() -> None:
    assert GenerationConfig(logit_bias={"50256": -100}).logit_bias  # type: ignore[dict-item]
