"""What vLLM and SGLang call things, for the messages to people who come from there."""

from __future__ import annotations

RENAMED = {
    "served_model_name": "model_name",
    **dict.fromkeys(("mem_fraction_static", "gpu_memory_utilization"), "memory"),
    **dict.fromkeys(("max_model_len", "max_seq_len"), "context_length"),
    **dict.fromkeys(("max_num_seqs", "max_running_requests"), "max_running"),
    **dict.fromkeys(
        ("max_num_batched_tokens", "chunked_prefill_size", "max_prefill_tokens"), "max_step_tokens"
    ),
    **dict.fromkeys(
        ("cpu_offload_gb", "swap_space", "hicache_size", "enable_hierarchical_cache"), "host_memory"
    ),
    "attention_backend": "attention",
    "random_seed": "seed",
    "api_key": "api_key_file",
}
"""The name of an option elsewhere → that of ours."""

TURNED_OFF = {
    **dict.fromkeys(("disable_radix_cache", "no_enable_prefix_caching"), "cache"),
    **dict.fromkeys(("enforce_eager", "disable_cuda_graph"), "graphs"),
}
"""The name of an option elsewhere → that of ours which is false then."""

_DEVICES = "a runtime has one device; run one on each, behind a router (docs/scale-out.md)"
_TEMPLATE = "the model's chat template says it; leave it out"
_MISSING = "there is no such thing here; leave it out"

WITHOUT = {
    **dict.fromkeys(("model", "model_path"), "give the directory as it is"),
    **dict.fromkeys(
        ("tp", "tp_size", "tensor_parallel_size", "dp", "dp_size", "data_parallel_size"), _DEVICES
    ),
    **dict.fromkeys(("pp_size", "pipeline_parallel_size"), _DEVICES),
    "enable_prefix_caching": "prefixes are always shared; leave it out",
    **dict.fromkeys(
        ("chat_template", "reasoning_parser", "tool_call_parser", "enable_auto_tool_choice"),
        _TEMPLATE,
    ),
    "trust_remote_code": "no code of a model is run; leave it out",
    **dict.fromkeys(("grammar_backend", "guided_decoding_backend"), _MISSING),
    **dict.fromkeys(("quantization", "kv_cache_dtype", "speculative_algorithm"), _MISSING),
    **dict.fromkeys(("lora_paths", "enable_lora", "tokenizer", "tokenizer_path"), _MISSING),
}
"""The name of an option elsewhere that none of ours corresponds to → what to do."""

COMMANDS = {
    **dict.fromkeys(("launch_server", "launch-server", "api_server", "start"), "serve"),
    **dict.fromkeys(("complete", "generate"), "run"),
    "benchmark": "bench",
}
"""The name of a command elsewhere → ours."""

NAMES = {
    **dict.fromkeys(("Anthropic", "LiteLLM", "VertexAI"), "OpenAI(base_url=…) at their addresses"),
    **dict.fromkeys(("Engine", "LLM"), "Runtime(model)"),
    "SamplingParams": "the options of gen, run and run_batch",
    "models": "Runtime(model) or connect(endpoint)",
}
"""A name of another package → what to use here."""


def option_hint(name: str, *, as_flag: bool = False) -> str:
    """Return what to use here instead of an option; nothing for one that no other server has."""
    key = name.lstrip("-").replace("-", "_")
    if key in WITHOUT:
        return WITHOUT[key]
    if key in RENAMED:
        return f"use {_flag(RENAMED[key]) if as_flag else RENAMED[key]}"
    if key in TURNED_OFF:
        return f"use {_flag('no_' + TURNED_OFF[key]) if as_flag else TURNED_OFF[key] + '=False'}"
    return ""


def command_line_hint(words: list[str]) -> str:
    """Return what is wrong with a command line that is written for another server, or nothing."""
    command = next(iter(words), "")
    if command in COMMANDS:
        return f"there is no command {command}: use radixrt {COMMANDS[command]}"
    if command not in ("serve", "plan", "config"):
        return ""
    for word in words[1:]:
        option = word.partition("=")[0]
        hint = option_hint(option, as_flag=True) if option.startswith("--") else ""
        if hint:
            return f"there is no option {option}: {hint} (radixrt serve --help has all)"
    return ""


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
