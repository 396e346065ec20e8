"""What the engine's and the experts' metrics mean, by name without `trimaran_` and `_total`."""

from __future__ import annotations

_HELP = {
    "prompt_tokens": "Prompt tokens of all requests",
    "prompt_tokens_cached": "Prompt tokens that an earlier request had computed",
    "generation_tokens": "Generated tokens",
    "prefix_cache_queries": "Tokens that were looked up in the prefix cache",
    "prefix_cache_hits": "Tokens that the prefix cache had",
    "num_preemptions": "Requests that gave up their pages for others",
    "num_requests_running": "Requests in the batch",
    "num_requests_waiting": "Requests that wait for a place in the batch",
    "kv_cache_usage_perc": "Used share of the key-value cache, 0 to 1",
    "gpu_expert_tokens": "Of the tokens that experts computed, those that the attention service did",
    "gpu_expert_share": "Share of all routes that experts in the attention service served, 0 to 1",
    "gpu_expert_bytes": "Bytes of the experts in the attention service",
    "gpu_experts": "Experts in the attention service",
    "expert_rpc_latency_seconds": "From a layer's submit to its answer",
    "attention_wait_on_experts_seconds": "Of that, what the attention service waited",
    "expert_calls": "Layer calls",
    "expert_engine_calls": "Computations of layer calls: fewer than calls where some were merged",
    "expert_merged_calls": "Layer calls that were computed together with others",
    "expert_failures": "Layer calls that failed",
    "expert_tokens": "Tokens computed, each layer counted",
    "expert_bytes_read": "Bytes of weights read",
    "expert_compute_seconds": "Time spent in layer calls",
    "expert_layer_compute_seconds": "Time of a layer call",
    "transport_bytes": "Bytes of tensors that went to the experts and came back",
    "expert_malformed_messages": "Messages that could not be read",
    "expert_queue_depth": "Layer calls that wait",
    "expert_clients": "Attention services that are connected",
    "expert_load_progress": "Share of the weights that is read, 0 to 1",
    "expert_load_bytes_per_second": "Speed at which the weights are, or were, read and packed",
    "expert_load_eta_seconds": "Time until the weights are there, at that speed",
    "expert_threads": "Compute threads",
    "expert_load_imbalance_ratio": "Busiest expert's tokens over the mean, 1 is even",
    "expert_service_up": "1 while the shard serves",
    "attention_service_up": "1 while the engine is connected and was heard of within the last minute",
    "attention_service_silence_seconds": "How long nothing was heard of the engine: it is asked every second",
    "late_tokens": "Tokens that came for requests that were aborted or given up before",
    "request_failure": "Requests that the engine refused or could not finish",
    "requests_moved": "Requests that the engine lost or refused before they began, asked of another",
}

NAMES = frozenset(_HELP)


def help_of(name: str) -> str:
    """The HELP text of a metric."""
    return _HELP.get(name, f"{name}, by the engine")
