"""The clients that are tried, and what each is installed from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Client:
    """One client: ``sessions/SCRIPT`` is run in a virtual environment of its own.

    ``package`` is the one whose version is reported. ``torch`` pins the one build of torch that
    the project uses, for clients that need it.
    """

    name: str
    package: str
    requirements: tuple[str, ...]
    script: str
    exercised: str
    timeout_s: float = 600.0
    torch: bool = False


_PROGRAMS = ("msgspec>=0.19", "numpy>=1.26", "orjson>=3.10", "pyzmq>=26")
"""What the language itself needs, for clients that run it: from the sources, nothing is built."""

CLIENTS = (
    Client(
        "openai",
        "openai",
        ("openai>=3", "pydantic"),
        "with_openai.py",
        "models, chat, streams, n, seed, stop, logprobs, schemas, tools, completions, errors, "
        "hanging up, async",
    ),
    Client("openai-1", "openai", ("openai<2", "pydantic"), "with_openai.py", "the same"),
    Client(
        "instructor",
        "instructor",
        ("instructor",),
        "with_instructor.py",
        "models as tools, as JSON schema, as JSON; lists, partial objects, retries",
    ),
    Client(
        "pydantic-ai",
        "pydantic-ai-slim",
        ("pydantic-ai-slim[openai]",),
        "with_pydantic_ai.py",
        "agents with text, native and tool output, tools, streams",
    ),
    Client(
        "outlines",
        "outlines",
        ("outlines", "openai"),
        "with_outlines.py",
        "choices, regexes, pydantic models, grammars through its vLLM and SGLang models",
        torch=True,
    ),
    Client(
        "guidance",
        "guidance",
        ("guidance", "openai"),
        "with_guidance.py",
        "its vLLM model: the grammar is enforced by the server; select, gen with regex, json",
        torch=True,
    ),
    Client(
        "litellm",
        "litellm",
        ("litellm",),
        "with_litellm.py",
        "chat, streams, tools, schemas, text completions; as openai/ and hosted_vllm/",
    ),
    Client(
        "langchain-openai",
        "langchain-openai",
        ("langchain-openai",),
        "with_langchain.py",
        "chat, streams, batches, structured output, tools, text completions",
    ),
    Client(
        "radixrt",
        "httpx",
        ("httpx>=0.28,<1", "jsonschema>=4.23,<5", *_PROGRAMS),
        "with_radixrt.py",
        "our own rt.OpenAI without torch, as a client of each dialect (the version is httpx's)",
    ),
    Client(
        "lm-eval",
        "lm-eval",
        ("lm-eval[api]", *_PROGRAMS),
        "with_lm_eval.py",
        "a local jsonl task, multiple choice, perplexity and generation: local-completions, "
        "local-chat-completions, over ZeroMQ; scores with the cache on, off, flushed and evicted",
        timeout_s=1200.0,
    ),
    Client(
        "guidellm",
        "guidellm",
        ("guidellm",),
        "with_guidellm.py",
        "a short run of concurrent streams",
        torch=True,
    ),
    Client(
        "schemathesis",
        "schemathesis",
        ("schemathesis",),
        "with_schemathesis.py",
        "requests made up from /openapi.json: none is answered with a server error",
    ),
    Client(
        "sglang-router",
        "sglang-router",
        ("sglang-router",),
        "with_sglang_router.py",
        "two servers behind its cache-aware policy: shared prefixes go to one of them",
    ),
    Client(
        "ray",
        "ray",
        ("ray[data]", *_PROGRAMS),
        "with_ray.py",
        "examples/ray_batch.py: the few-shot evaluation over Ray Data",
    ),
)
"""In the order of the table."""
