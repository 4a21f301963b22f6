"""Configurations: LMDeploy's names and defaults, refusals in words; sizes of memory."""

import dataclasses
import re
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lmdeploy_c import (
    GenerationConfig,
    PytorchEngineConfig,
    Response,
    SpeculativeConfig,
    TurbomindEngineConfig,
    UnsupportedError,
    VisionConfig,
    pipeline,
    plan,
)
from lmdeploy_c.engine.sizes import kv_size
from lmdeploy_c.messages import ErrorCode
from lmdeploy_c.units import GIB, parse_size

CONFIGS = (GenerationConfig, TurbomindEngineConfig, PytorchEngineConfig, VisionConfig)

LMDEPLOY_DEFAULTS: dict[type, dict[str, Any]] = {
    GenerationConfig: {
        "n": 1, "max_new_tokens": 512, "do_sample": False, "top_p": 1.0, "top_k": 50, "min_p": 0.0,
        "temperature": 0.8, "repetition_penalty": 1.0, "ignore_eos": False, "random_seed": None,
        "stop_words": None, "bad_words": None, "stop_token_ids": None, "bad_token_ids": None,
        "min_new_tokens": None, "skip_special_tokens": True, "spaces_between_special_tokens": True,
        "logprobs": None, "response_format": None, "logits_processors": None,
        "output_logits": None, "output_last_hidden_state": None,
        "include_stop_str_in_output": False, "return_ppl": False, "with_cache": False,
        "preserve_cache": False, "migration_request": None, "return_routed_experts": False,
        "repetition_ngram_size": 0, "repetition_ngram_threshold": 0, "logprob_start_len": -1,
    },
    TurbomindEngineConfig: {
        "dtype": "auto", "model_format": None, "gemm_input_dtype": None, "tp": 1, "dp": 1, "cp": 1,
        "ep": 1, "device_num": None, "attn_tp_size": None, "attn_cp_size": None,
        "attn_dp_size": None, "mlp_tp_size": None, "mlp_dp_size": None, "outer_dp_size": None,
        "nnodes": 1, "node_rank": 0, "dist_init_addr": None, "devices": None, "session_len": None,
        "max_batch_size": None, "cache_max_entry_count": None, "cache_chunk_size": -1,
        "cache_block_seq_len": 64, "enable_prefix_caching": True,
        "cache_checkpoint_interval": 4096, "cache_prompt": "auto",
        "cache_prompt_boundary_skip": 1, "cache_generation": "auto", "quant_policy": 0,
        "rope_scaling_factor": 0.0, "use_logn_attn": False, "download_dir": None, "revision": None,
        "max_prefill_token_num": None, "num_tokens_per_iter": 0, "max_prefill_iters": 1,
        "async_": 1, "empty_init": False, "language_model_only": False, "communicator": "nccl",
        "moe_a2a_backend": "auto", "hf_overrides": None, "enable_metrics": True,
    },
    PytorchEngineConfig: {
        "dtype": "auto", "tp": 1, "dp": 1, "dp_rank": 0, "ep": 1, "session_len": None,
        "max_batch_size": None, "attn_tp_size": None, "mlp_tp_size": None, "moe_tp_size": None,
        "cache_max_entry_count": None, "prefill_interval": 16, "block_size": 64,
        "kernel_block_size": -1, "num_cpu_blocks": 0, "num_gpu_blocks": 0, "adapters": None,
        "max_prefill_token_num": None, "cudagraph_capture_batch_sizes": None, "thread_safe": False,
        "enable_prefix_caching": True, "prefix_cache_state_budget": 0,
        "prefix_cache_decode_state_interval": 0, "device_type": "auto", "eager_mode": False,
    },
    VisionConfig: {"max_batch_size": 1, "thread_safe": False},
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
def test_lmdeploys_fields_come_first_with_their_defaults(config: type) -> None:
    wanted = LMDEPLOY_DEFAULTS[config]
    fields = dataclasses.fields(config)
    assert [f.name for f in fields][: len(wanted)] == list(wanted)
    made = config()
    assert {name: getattr(made, name) for name in wanted} == wanted


@pytest.mark.parametrize("config", CONFIGS)
def test_unserved_fields_are_refused_by_name(config: type) -> None:
    n_refused = 0
    for field in dataclasses.fields(config):
        for served in field.metadata.get("served", ()):
            config(**{field.name: served})
        if "served" in field.metadata:
            with pytest.raises(UnsupportedError, match=rf"{config.__name__}\.{field.name}='odd'"):
                config(**{field.name: "odd"})
            n_refused += 1
    assert n_refused > 0


@pytest.mark.parametrize("config", [*CONFIGS, SpeculativeConfig, Response])
def test_every_field_that_is_served_is_documented(config: type) -> None:
    documented = re.findall(r"\w+", re.sub(r":.*", "", config.__doc__ or ""))
    for field in dataclasses.fields(config):
        assert field.metadata.get("served") or field.name in documented, field.name


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (GenerationConfig, "n", 0),
        (GenerationConfig, "n", 129),
        (GenerationConfig, "n", True),
        (GenerationConfig, "top_p", 1.5),
        (GenerationConfig, "top_p", float("nan")),
        (GenerationConfig, "top_k", -1),
        (GenerationConfig, "top_k", 0.5),
        (GenerationConfig, "temperature", 2.5),
        (GenerationConfig, "temperature", "hot"),
        (GenerationConfig, "min_p", -0.1),
        (GenerationConfig, "max_new_tokens", -1),
        (GenerationConfig, "max_new_tokens", True),
        (GenerationConfig, "do_sample", 1),
        (GenerationConfig, "stop_words", "stop"),
        (GenerationConfig, "stop_words", [1]),
        (GenerationConfig, "stop_words", [""]),
        (GenerationConfig, "stop_token_ids", ["1"]),
        (GenerationConfig, "logit_bias", [1]),
        (GenerationConfig, "output_logits", "some"),
        (GenerationConfig, "random_seed", -1),
        (TurbomindEngineConfig, "session_len", 0),
        (TurbomindEngineConfig, "max_batch_size", "8"),
        (TurbomindEngineConfig, "cache_max_entry_count", 0),
        (TurbomindEngineConfig, "cache_max_entry_count", 1.5),
        (TurbomindEngineConfig, "cache_max_entry_count", "lots"),
        (TurbomindEngineConfig, "device", "npu"),
        (TurbomindEngineConfig, "num_threads", 0),
        (TurbomindEngineConfig, "hf_overrides", "x"),
        (PytorchEngineConfig, "block_size", 0),
        (TurbomindEngineConfig, "cache_block_seq_len", 7),
        (PytorchEngineConfig, "device_type", "ascend"),
    ],
)
def test_wrong_values_name_the_field(config: type, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{config.__name__}\.{name}"):
        config(**{name: value})
    with pytest.raises(AssertionError):  # what LMDeploy's configurations raise
        config(**{name: value})


def test_numpy_numbers_are_numbers() -> None:
    numbers: dict[str, Any] = {"temperature": np.float32(0.5), "top_k": np.int32(3)}
    GenerationConfig(**numbers, stop_token_ids=np.array([2]).tolist())


def test_a_device_that_cannot_be_used_is_refused_with_the_reason() -> None:
    for config in (
        TurbomindEngineConfig(device="cuda:99"),
        PytorchEngineConfig(device_type="cuda:99"),
    ):
        for make in (pipeline, plan):
            with pytest.raises(ValueError, match='device "cuda:99" cannot be used: .'):
                make(None, config)


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "cuda:0001", "CPU", "cpu:0", "", None, 1])
def test_a_name_that_is_no_device(device: Any) -> None:
    with pytest.raises(ValueError, match=r"TurbomindEngineConfig\.device.*'cuda:N'"):
        TurbomindEngineConfig(device=device)


def test_a_change_after_construction_is_checked_again() -> None:
    config = GenerationConfig()
    config.with_cache = True
    with pytest.raises(UnsupportedError, match=r"GenerationConfig\.with_cache=True"):
        config.check()


# LMDeploy: repetition_ngram_size and repetition_ngram_threshold of 0 or less, either of them,
# switch both off.
@pytest.mark.parametrize(("size", "threshold"), [(-1, -2), (3, 0), (0, 3), (-3, 5)])
def test_repetition_ngrams_are_off_where_lmdeploy_has_them_off(size: int, threshold: int) -> None:
    config = GenerationConfig(repetition_ngram_size=size, repetition_ngram_threshold=threshold)
    assert (config.repetition_ngram_size, config.repetition_ngram_threshold) == (0, 0)
    with pytest.raises(UnsupportedError, match="repetition_ngram_size=3"):
        GenerationConfig(repetition_ngram_size=3, repetition_ngram_threshold=2)


class Words:
    """A tokenizer of the words whose ids are their places."""

    words = ("a", "stop", "nonstop", "bad", "b")

    def indexes_containing_token(self, token: str) -> list[int]:
        return [i for i, word in enumerate(self.words) if token in word]


def test_words_become_token_ids_as_lmdeploys_do() -> None:
    config = GenerationConfig(n=3, stop_words=["stop"], stop_token_ids=[9, 2], bad_words=["b"])
    config.convert_stop_bad_words_to_ids(Words())
    assert (config.stop_token_ids, config.bad_token_ids) == ([1, 2, 9], [3, 4])
    plain = GenerationConfig()
    plain.convert_stop_bad_words_to_ids(Words())
    assert (plain.stop_token_ids, plain.bad_token_ids) == (None, None)


@pytest.mark.parametrize(
    ("of_config", "of_tokenizer", "found"),
    [({"eos_token_id": 2}, 1, [1, 2, 7]), ({"eos_token_id": [2, 3]}, None, [2, 3, 7]),
     ({}, 1, [1, 7]), ({"eos_token_id": None}, None, [7])],
)  # fmt: skip
def test_end_tokens_of_a_models_files_become_stop_token_ids(
    of_config: dict[str, Any], of_tokenizer: int | None, found: list[int]
) -> None:
    config = GenerationConfig(stop_token_ids=[7])
    config.update_from_hf_gen_cfg(of_config, of_tokenizer)
    assert config.stop_token_ids == found


def test_pytorch_config_maps_onto_the_c_engine() -> None:
    config = PytorchEngineConfig(
        session_len=100, block_size=32, device_type="cpu", enable_prefix_caching=False
    )
    mapped = config.to_turbomind()
    assert (mapped.session_len, mapped.cache_block_seq_len) == (100, 32)
    assert (mapped.device, mapped.enable_prefix_caching) == ("cpu", False)


def test_response_extend() -> None:
    first = Response(
        "a", 1, 5, token_ids=[1], logprobs=[{1: -0.5}], logits=np.zeros((1, 3), np.float32)
    )
    last = Response("b", 2, 5, "stop", [2], [{2: -1.0}], np.ones((1, 3), np.float32), ppl=2.0)
    whole = first.extend(last)
    assert whole is first
    assert (whole.text, whole.token_ids, whole.generate_token_len) == ("ab", [1, 2], 2)
    assert (whole.finish_reason, whole.ppl) == ("stop", 2.0)
    assert whole.logprobs == [{1: -0.5}, {2: -1.0}]
    assert whole.logits is not None and whole.logits.shape == (2, 3)
    assert last.token_ids == [2]


def test_a_response_prints_as_lmdeploys_does() -> None:
    """The lines of LMDeploy's Response.__str__ and __repr__ (0.16 to 0.18)."""
    rest = [
        "input_token_len=40", "generate_token_len=2", 'finish_reason="stop"', "token_ids=[5, 6]",
        "logprobs=[{5: -0.5}, {6: -1.0}]", "logits=None", "last_hidden_state=None",
        "routed_experts=None",
    ]  # fmt: skip
    response = Response("Pa\nris", 2, 40, "stop", [5, 6], [{5: -0.5}, {6: -1.0}])
    assert str(response).split("\n") == ["text=Pa", "ris", *rest]
    assert repr(response).split("\n") == ["text='Pa\\nris'", *rest]
    response.logits = np.zeros((3, 49152), np.float32)
    assert "\nlogits.shape=(3, 49152)\nlogits=[[0. 0. 0. ..." in str(response)
    failed = Response("", 0, 0, "error", error_code="invalid_request", error_message="no!")
    assert str(failed).endswith("error_code=invalid_request\nerror_message=no!")


def test_the_repr_of_a_response_fits_a_terminal() -> None:
    n = 100_000
    text = "begin " + "word " * n + "end"
    long = Response(text, n, 5, token_ids=[1] * n, logprobs=[{1: 0.0}] * n)
    assert str(long).startswith(f"text={text}\n")
    assert len(repr(long)) < 2000
    assert "'begin word" in repr(long) and "word end' (500011 characters)" in repr(long)


def test_the_end_of_a_stream_comes_by_itself() -> None:
    logits = np.zeros((1, 3), np.float32)
    last = Response("b", 2, 5, "stop", [2], [{2: -1.0}], logits, index=3, random_seed=7, choice=1)
    content, end = last.pieces()
    assert (content.text, content.token_ids, content.finish_reason) == ("b", [2], None)
    assert content.logits is logits
    assert end == Response("", 2, 5, "stop", index=3, random_seed=7, choice=1)
    for whole in (Response("b", 2, 5), Response("", 0, 0, "error", error_message="no!")):
        assert whole.pieces() == [whole]


def test_logits_become_tensors_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.from_numpy takes arrays that are writable; a stand-in where there is no torch."""

    class Tensor(np.ndarray[Any, Any]):
        pass

    def from_numpy(array: Any) -> Any:
        assert array.flags.writeable and array.flags.c_contiguous
        return array.view(Tensor)

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(from_numpy=from_numpy))
    response = Response(
        "a", 1, 5, logits=np.zeros((1, 3), np.float32), choices=[Response("a", 1, 5)]
    )
    tensors = response.extend(Response("b", 2, 5, logits=np.ones((1, 3), np.float32))).to_torch()
    assert isinstance(tensors.logits, Tensor) and not isinstance(response.logits, Tensor)
    assert np.shares_memory(tensors.logits, response.logits)
    assert tensors.choices[0].logits is None


def test_error_codes_are_texts() -> None:
    assert ErrorCode.CONTEXT_LENGTH_EXCEEDED == "context_length_exceeded"
    assert ErrorCode("invalid_request") is ErrorCode.INVALID_REQUEST


# Memory


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512 << 20), ("2GB", 2 << 30), ("1.5 GiB", 3 << 29), ("100", 100), ("1k", 1024)],
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 PB", "1GBB"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        parse_size(text)


def sized(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "cache": None, "block_len": 64, "block_bytes": 1 << 20, "session_len": None,
        "model_len": 4096, "max_batch_size": 2, "available": 100 * GIB, "fraction": 0.5,
        "limit": 4 * GIB,
    }  # fmt: skip
    return kv_size(**{**values, **changes})


def test_kv_size_default_is_the_smallest_of_three() -> None:
    assert sized().n_blocks == 2 * 64  # every sequence at its full length
    assert sized(max_batch_size=512).n_bytes == 4 * GIB
    assert sized(max_batch_size=512, available=GIB).n_bytes == GIB // 2
    assert sized(max_batch_size=10**6, limit=0, fraction=0.8).n_bytes == 80 * GIB


def test_kv_size_as_asked() -> None:
    assert sized(cache="512MB").n_blocks == 512
    assert sized(cache=70).n_blocks == 70
    assert sized(cache=0.25, max_batch_size=10**6).n_bytes == 25 * GIB
    assert sized(cache=0.25).n_blocks == 2 * 64


def test_kv_size_lowers_an_automatic_session_len_only() -> None:
    assert sized(cache=10).session_len == 640
    with pytest.raises(ValueError, match=r"session_len=4096 needs .* lower session_len or raise"):
        sized(cache=10, session_len=4096)


def test_kv_size_refuses_what_is_not_there() -> None:
    with pytest.raises(MemoryError, match=r"asks for 2.0 GiB .* 1.0 GiB of memory"):
        sized(cache="2GB", available=GIB)
    with pytest.raises(ValueError, match="holds no block"):
        sized(available=1000)
