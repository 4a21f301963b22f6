"""Metrics in Prometheus' form, under LMDeploy's names, so that its Grafana dashboard works.

`prometheus_text(pipe)` is the text of a scrape, without a dependency. A server that has
prometheus-client registers a `Collector`, which reads the engine only when it is scraped:

    from lmdeploy_c.metrics import Collector
    prometheus_client.REGISTRY.register(Collector(pipe))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

PREFIX = "lmdeploy:"
#: What `prometheus_text` is, for an HTTP header.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics(dict[str, Any]):
    """What `Pipeline.metrics` returns: a dict, which prints as a summary."""

    def __repr__(self) -> str:
        try:
            return self._summary()
        except KeyError:  # some of it was taken out
            return super().__repr__()

    def _summary(self) -> str:
        ended = ", ".join(f"{n} {reason}" for reason, n in self["n_ended"].items() if n)
        return (
            f"requests  {self['n_running']} running, {self['n_waiting']} waiting, "
            f"{sum(self['n_ended'].values())} ended{f' ({ended})' if ended else ''}\n"
            f"tokens    {self['n_prompt_tokens']} of prompts, {self['n_cached_tokens']} of them "
            f"found in the KV cache; {self['n_tokens_generated']} of answers\n"
            f"KV cache  {self['n_active_blocks']} blocks in use, {self['n_cached_blocks']} cached, "
            f"{self['n_free_blocks']} free\n"
            f"means     first token after {self._mean('time_to_first_token_seconds')}, "
            f"later ones {self._mean('inter_token_seconds')}, "
            f"whole request {self._mean('request_seconds')}"
        )

    def _mean(self, name: str) -> str:
        histogram = self["histograms"][name]
        n = histogram["count"]
        return f"{1e3 * histogram['sum'] / n:.4g} ms" if n else "?"


#: Histogram of Engine.metrics -> Prometheus names and help. Tokens are timed one by one (those that
#: accepted drafts give in one step are 0 s apart), so that LMDeploy's time per output token and its
#: inter-token latency are the same here.
_HISTOGRAMS: dict[str, tuple[tuple[str, ...], str]] = {
    "time_to_first_token_seconds": (
        ("time_to_first_token_seconds",),
        "Seconds from the submission of a request to its first token.",
    ),
    "inter_token_seconds": (
        ("time_per_output_token_seconds", "iter_token_latency"),
        "Seconds between two tokens of an answer.",
    ),
    "request_seconds": (
        ("e2e_request_latency_seconds",),
        "Seconds from the submission of a request to its end.",
    ),
    "queue_seconds": (
        ("request_queue_time_seconds",),
        "Seconds from the submission of a request to its first step.",
    ),
    "inference_seconds": (
        ("request_inference_time_seconds",),
        "Seconds from the first step of a request to its end.",
    ),
    "prefill_seconds": (
        ("request_prefill_time_seconds",),
        "Seconds from the first step of a request to its first token.",
    ),
    "decode_seconds": (
        ("request_decode_time_seconds",),
        "Seconds from the first token of an answer to its last one.",
    ),
    "prompt_tokens": (("request_prompt_tokens",), "Tokens of a prompt."),
    "generated_tokens": (("request_generation_tokens",), "Tokens of an answer."),
    "cached_tokens": (
        ("request_cached_tokens",),
        "Tokens of a prompt that were found in the KV cache.",
    ),
    "cache_hit_ratio": (
        ("request_cache_hit_ratio",),
        "Share of a prompt's tokens that were found in the KV cache.",
    ),
    "step_tokens": (("iteration_tokens_total",), "Tokens computed in one step."),
    "step_seconds": (("iteration_time_seconds",), "Seconds of one step."),
}


class Measured(Protocol):
    """What has metrics: a `Pipeline` or a `TextEngine`."""

    @property
    def model_name(self) -> str: ...
    def metrics(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Family:
    """One metric. samples: (labels, value); the value of a histogram is its dict in
    `Engine.metrics`."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    samples: Sequence[tuple[Mapping[str, str], Any]]


def families(metrics: Mapping[str, Any], model_name: str) -> Iterator[Family]:
    """The numbers of `Engine.metrics` as Prometheus' metrics."""
    labels = {"model_name": model_name, "engine": "0"}
    ended = metrics["n_ended"]
    n_used, n_free = metrics["n_active_blocks"], metrics["n_free_blocks"]
    n_blocks = n_used + n_free + metrics["n_cached_blocks"]
    gauges = {
        "num_requests_running": (metrics["n_running"], "Requests that have a slot in the batch."),
        "num_requests_waiting": (metrics["n_waiting"], "Requests that wait for a slot."),
        "num_requests_succeeded": (ended["stop"] + ended["length"], "Requests that were answered."),
        "num_requests_failed": (
            ended["error"] + ended["abort"],
            "Requests that ended by an error or were aborted.",
        ),
        "num_api_requests_routed": (
            metrics["n_running"] + metrics["n_waiting"],
            "Requests that the engine has accepted: all that have not ended.",
        ),
        "num_api_requests_waiting": (0, "Requests that the engine has not accepted yet: none."),
        "gpu_cache_usage_perc": (n_used / n_blocks, "Share of the KV blocks in use. 1 means all."),
        "prefix_cache_hit_rate": (
            metrics["prefix_hit_rate"],
            "Share of all prompt tokens that were found in the KV cache.",
        ),
    }
    counters = {
        "prompt_tokens_total": ("n_prompt_tokens", "Tokens of prompts."),
        "cached_tokens_total": ("n_cached_tokens", "Those of them found in the KV cache."),
        "generation_tokens_total": ("n_tokens_generated", "Tokens generated."),
        "preemptions_total": ("n_preempted", "Times that a request has lost its slot."),
        "iterations_total": ("n_steps", "Steps of the engine."),
    }
    for name, (value, text) in gauges.items():
        yield Family(PREFIX + name, "gauge", text, [(labels, value)])
    for name, (key, text) in counters.items():
        yield Family(PREFIX + name, "counter", text, [(labels, metrics[key])])
    yield Family(
        PREFIX + "kv_blocks",
        "gauge",
        "KV blocks: free, active (in use), cached (kept until they are evicted).",
        [
            ({**labels, "state": state}, metrics[f"n_{state}_blocks"])
            for state in ("free", "active", "cached")
        ],
    )
    yield Family(
        PREFIX + "request_success_total",
        "counter",
        "Requests that ended, by reason.",
        [({**labels, "finished_reason": reason}, n) for reason, n in ended.items()],
    )
    for key, (names, text) in _HISTOGRAMS.items():
        for name in names:
            histogram = metrics["histograms"][key]
            yield Family(PREFIX + name, "histogram", text, [(labels, histogram)])


def _buckets(histogram: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(upper bound, number of values up to it) of each bucket, as Prometheus counts them."""
    found, total = [], 0
    bounds = [*map(repr, histogram["bounds"]), "+Inf"]
    for bound, count in zip(bounds, histogram["counts"], strict=True):
        total += count
        found.append((bound, total))
    return found


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

    inside = ",".join(f'{key}="{escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value!r}\n"


def prometheus_text(pipe: Measured) -> str:
    """The pipeline's metrics in Prometheus' text format, `CONTENT_TYPE`.

    Raises RuntimeError when metrics are off (enable_metrics=False) or the pipeline is closed.
    """
    lines = []
    for family in families(pipe.metrics(), pipe.model_name):
        lines.append(f"# HELP {family.name} {family.text}\n# TYPE {family.name} {family.kind}\n")
        for labels, value in family.samples:
            if family.kind != "histogram":
                lines.append(_sample(family.name, labels, value))
                continue
            for bound, count in _buckets(value):
                lines.append(_sample(f"{family.name}_bucket", {**labels, "le": bound}, count))
            lines.append(_sample(f"{family.name}_sum", labels, value["sum"]))
            lines.append(_sample(f"{family.name}_count", labels, value["count"]))
    return "".join(lines)


class Collector:
    """A collector for a registry of prometheus-client, which must be installed to use it."""

    def __init__(self, pipe: Measured) -> None:
        self._pipe = pipe

    def collect(self) -> Iterator[Any]:
        """The metrics at this moment; the registry calls it at each scrape."""
        from prometheus_client import core

        kinds = {"gauge": core.GaugeMetricFamily, "counter": core.CounterMetricFamily}
        for family in families(self._pipe.metrics(), self._pipe.model_name):
            names = list(family.samples[0][0])
            if family.kind == "histogram":
                metric = core.HistogramMetricFamily(family.name, family.text, labels=names)
                for labels, value in family.samples:
                    metric.add_metric(list(labels.values()), _buckets(value), value["sum"])
            else:
                metric = kinds[family.kind](family.name, family.text, labels=names)
                for labels, value in family.samples:
                    metric.add_metric(list(labels.values()), value)
            yield metric
