"""The body of a chat completion."""

from __future__ import annotations

from typing import Any

import msgspec

from radixrt.gateway.fields import SamplingFields


class ChatRequest(SamplingFields, kw_only=True):
    """The body of a chat completion."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    reasoning_effort: Any = None
    separate_reasoning: bool | None = None
    include_reasoning: bool | None = None
    modalities: list[str] | None = None

    # Known, and without an effect here.
    prediction: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    add_special_tokens: Any = None

    @property
    def opens_answer(self) -> bool:
        """Whether a new answer is begun: unless it says so, not where the last message goes on."""
        given = self.add_generation_prompt
        return not self.continue_final_message if given is None else given
