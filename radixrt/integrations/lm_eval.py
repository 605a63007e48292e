"""radixrt as a model of lm-evaluation-harness, over ZeroMQ or in this process.

    python -m radixrt.integrations.lm_eval run --model radixrt \\
        --model_args endpoint=ipc:///tmp/radixrt/main.sock --tasks mytask

registers the model and hands over to lm_eval's own command line. In Python, importing this module
registers it; ``lm_eval.simple_evaluate(model="radixrt", model_args={…})`` finds it then.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import lm_eval.models  # noqa: F401 - registers lm_eval's own models, which ours is to stand beside
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from radixrt.errors import InvalidArgument
from radixrt.integrations.scores import Scorer, rolling_windows
from radixrt.lang.backend import Backend, Runtime, connect
from radixrt.lang.sampling import sampling_options
from radixrt.protocol import Sampling

log = logging.getLogger(__name__)

_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop_regex")
"""Of a task's ``generation_kwargs``, what is passed on under its own name."""

_WITHOUT_EFFECT = frozenset({"do_sample", "use_cache", "num_beams", "skip_special_tokens"})


@register_model("radixrt")
class RadixLM(LM):  # type: ignore[misc]
    """A runtime at ``endpoint``, or one of its own for ``pretrained`` (a directory; without either,
    the model that ships).

    ``add_bos_token``: whether texts begin with the tokenizer's beginning; None is the tokenizer's
    own way. ``max_gen_toks``: tokens of a generation that does not say.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        pretrained: str | None = None,
        *,
        add_bos_token: bool | str | None = None,
        max_gen_toks: int = 256,
        timeout_s: float = 60.0,
        server_key: str | None = None,
        client_key: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
        **options: Any,
    ) -> None:
        """``options`` are those of ``radixrt.Runtime`` where one is started. ``batch_size``,
        ``max_batch_size`` and ``device`` are lm_eval's; the runtime chooses for itself."""
        super().__init__()
        if endpoint is not None and (pretrained is not None or options):
            extra = pretrained or sorted(options)
            raise InvalidArgument("endpoint", endpoint, f"a runtime runs there; leave {extra} out")
        self.backend: Backend = (
            connect(
                endpoint, timeout_s=float(timeout_s), server_key=server_key, client_key=client_key
            )
            if endpoint is not None
            else Runtime(pretrained, **options)
        )
        adds = True if add_bos_token is None else str(add_bos_token).lower() in ("true", "1")
        self._max_gen_toks = int(max_gen_toks)
        self._scorer = Scorer(self.backend.client, add_special_tokens=adds)

    # ------------------------------------------------------------ what lm_eval asks

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return (log probability, whether it is the greedy one) of each continuation."""
        pairs = self._encoded([request.args for request in requests])
        scores = self._scorer.score(pairs)
        answers = [(score.logprob, score.is_greedy) for score in scores]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return the log probability of each whole text."""
        scorer = self._scorer
        tokenized = scorer.tokenize([request.args[0] for request in requests])
        prefix, longest = scorer.prefix_id, scorer.max_context - 1
        texts = [ids[1:] if ids[:1] == (prefix,) else ids for ids in tokenized]
        windows = [rolling_windows(text, prefix, longest) for text in texts]
        scores = iter(scorer.score([window for text in windows for window in text]))
        answers = [sum(next(scores).logprob for _ in text) for text in windows]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return answers

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the text that follows each context, up to one of its ``until``."""
        contexts = self._scorer.tokenize([request.args[0] for request in requests])
        sampling = [self._sampling(request.args[1]) for request in requests]
        texts = self._scorer.generate(list(zip(contexts, sampling, strict=True)))
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    # ------------------------------------------------------------ chat templates

    @property
    def tokenizer_name(self) -> str:
        """Names the model in the cache of requests."""
        return self.backend.get_model_name().replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the model's chat template, for lm_eval's records."""
        template = self._scorer.tokenizer["chat_template"]
        return None if template is None else str(template)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the model's template writes it."""
        conversation: dict[str, Any] = {
            "messages": chat_history,
            "tools": None,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
            "template_kwargs": {},
        }
        return self._scorer.render(json.dumps(conversation))

    # ------------------------------------------------------------ between the two

    def _encoded(
        self, pairs: Sequence[tuple[str, str]]
    ) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return the tokens of contexts and continuations: those of both together, cut where the
        context's own end. A blank between them belongs to the continuation."""
        scorer = self._scorer
        moved = []
        for context, continuation in pairs:
            blank = len(context) - len(context.rstrip())
            at = len(context) - blank
            moved.append((context[:at], context[at:] + continuation))
        contexts = scorer.tokenize([context for context, _ in moved])
        wholes = scorer.tokenize([context + text for context, text in moved])
        encoded = []
        for (before, _), context_ids, token_ids in zip(moved, contexts, wholes, strict=True):
            at, whole = len(context_ids), token_ids
            if not before:  # nothing stands before it but what texts begin with
                prefix = (scorer.prefix_id,)
                at, whole = 1, whole if whole[:1] == prefix else prefix + whole
            # A token that spells the end of both counts as the continuation's.
            at = min(at, len(whole) - 1)
            encoded.append((whole[:at], whole[at:]))
        return encoded

    def _sampling(self, given: Mapping[str, Any]) -> Sampling:
        kwargs = dict(given)
        until = kwargs.pop("until", None)
        stop = [until] if isinstance(until, str) else list(until or ())
        lengths = [kwargs.pop(name, None) for name in ("max_gen_toks", "max_tokens")]
        is_greedy = kwargs.get("do_sample") is False and "temperature" not in kwargs
        options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        if is_greedy or "temperature" not in options:
            options["temperature"] = 0.0
        if unknown := sorted(kwargs.keys() - _WITHOUT_EFFECT):
            raise InvalidArgument(
                "generation_kwargs",
                unknown,
                f"use until, max_gen_toks, {', '.join(_OPTIONS)}",
            )
        max_tokens = next((n for n in lengths if n is not None), self._max_gen_toks)
        stop = [text for text in stop if text]
        checked = sampling_options(max_tokens=max_tokens, stop=stop or None, **options)
        return checked.resolve()


def main() -> None:
    """lm_eval's command line, with this model known to it."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
