"""Every prompt token has an outcome, every miss one cause, and they sum exactly to the prompt."""

from __future__ import annotations

from random import Random

import pytest
from engine_harness import Runtime

from radixrt.cache.explain import Explained, Miss
from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.wire import Done, Scored

PROMPT = [3 + i * 7 % 110 for i in range(41)]


def explained(runtime: Runtime, call: int) -> Explained:
    account = runtime.end(call).explained
    assert account is not None
    check_sum(account)
    return account


def check_sum(account: Explained) -> None:
    """Assert that outcomes and misses make up the prompt, without a gap or an overlap."""
    served = account.device + account.host + account.stores + account.coalesced
    at = served
    for miss in account.misses:
        assert miss.start == at
        assert miss.end > miss.start
        at = miss.end
    assert at == account.prompt


def causes(account: Explained) -> list[tuple[str, int]]:
    return [(miss.cause, miss.end - miss.start) for miss in account.misses]


def run(runtime: Runtime, prompt: list[int], **options: object) -> Explained:
    call = runtime.run(prompt, max_tokens=2, **options)  # type: ignore[arg-type]
    runtime.finish()
    return explained(runtime, call)


def test_what_nobody_has_sent_was_never_seen(model: CausalLM) -> None:
    account = run(Runtime(model), PROMPT)
    assert account == Explained(41, 0, 0, 0, 0, (Miss(0, 41, "never_seen"),))


def test_a_repeated_prompt_computes_its_last_token_alone(model: CausalLM) -> None:
    runtime = Runtime(model)
    run(runtime, PROMPT)
    account = run(runtime, PROMPT)
    assert account.device == 40
    assert account.misses == (Miss(40, 41, "page_tail"),)


@pytest.mark.parametrize("common", [4, 6, 20, 39])
def test_a_divergence_names_the_token_and_what_follows_instead(
    model: CausalLM, common: int
) -> None:
    runtime = Runtime(model)
    run(runtime, PROMPT)
    account = run(runtime, [*PROMPT[:common], 120, 121, 122])
    assert account.device == common
    (miss,) = account.misses
    assert (miss.start, miss.cause) == (common, "diverged")
    known = PROMPT + runtime.tokens(1)[:1]  # the last one sampled was never computed
    assert list(miss.theirs) == known[common : common + 8]


def test_what_follows_a_known_prompt_was_never_seen(model: CausalLM) -> None:
    runtime = Runtime(model)
    run(runtime, PROMPT, branch=1)
    tokens = PROMPT + runtime.tokens(1)
    account = run(runtime, [*tokens, *range(60, 70)])
    assert account.device >= len(PROMPT)
    assert [cause for cause, _ in causes(account)] == ["never_seen"]


def test_an_eviction_names_its_tier_its_time_and_for_whom_it_was(model: CausalLM) -> None:
    runtime = Runtime(model, num_pages=31, max_context=120)
    run(runtime, PROMPT)
    runtime.clock.now += 100
    other = runtime.run([50 + i % 7 for i in range(90)], max_tokens=2)
    runtime.finish()
    runtime.clock.now += 7
    account = run(runtime, PROMPT)
    evicted = [miss for miss in account.misses if miss.cause == "evicted"]
    assert evicted
    assert {(miss.tier, miss.whom, miss.ago_s) for miss in evicted} == {("device", other, 7.0)}
    # The last page was full and went with the others, but for the token that is always computed.
    assert sum(miss.end - miss.start for miss in evicted) + account.device >= 36


def test_a_namespace_is_named_when_the_tokens_are_everybody_elses(model: CausalLM) -> None:
    runtime = Runtime(model)
    run(runtime, PROMPT)
    account = run(runtime, PROMPT, namespace="tenant=a")
    assert account.device == 0
    assert causes(account)[0] == ("namespace", 40)
    assert account.misses[0].field == "tenant"
    # What a tenant has sent is nobody else's to know.
    run(runtime, PROMPT[::-1], namespace="tenant=a")
    assert causes(run(runtime, PROMPT[::-1])) == [("never_seen", 41)]
    assert causes(run(runtime, PROMPT[::-1], namespace="tenant=b"))[-1][0] != "evicted"


def test_without_reuse_everything_is_disabled(model: CausalLM) -> None:
    runtime = Runtime(model, reuse=False)
    run(runtime, PROMPT)
    assert causes(run(runtime, PROMPT)) == [("disabled", 41)]


def test_who_waited_for_another_request_has_coalesced_tokens(model: CausalLM) -> None:
    runtime = Runtime(model)
    run(runtime, PROMPT[:9])
    first, second = (runtime.run(PROMPT, max_tokens=2) for _ in range(2))
    runtime.finish()
    accounts = [explained(runtime, first), explained(runtime, second)]
    waited = max(accounts, key=lambda account: account.coalesced)
    assert waited.coalesced >= 28
    assert waited.device + waited.coalesced == 40
    assert min(account.coalesced for account in accounts) == 0


def test_host_hits_are_told_apart_from_device_hits(model: CausalLM) -> None:
    runtime = Runtime(model, host_pages=80)
    run(runtime, PROMPT)
    assert runtime.tiers is not None
    assert runtime.tiers.fence(10)
    runtime.cache.clear()
    run(runtime, PROMPT[:17])
    account = run(runtime, PROMPT)
    assert account.host > 0
    assert account.device >= 16


def test_a_selection_accounts_for_its_prompt_alone(model: CausalLM) -> None:
    runtime = Runtime(model)
    call = runtime.score(PROMPT, [[5, 6, 7], [5, 6, 8]])
    runtime.finish()
    assert explained(runtime, call).prompt == len(PROMPT)
    call = runtime.score(PROMPT, [[5, 6, 7], [5, 6, 8]])
    runtime.finish()
    account = explained(runtime, call)
    assert account.prompt == len(PROMPT)
    assert account.device >= 40


@pytest.mark.parametrize("host_pages", [0, 24])
@pytest.mark.parametrize("seed", range(3))
def test_accounts_are_exact_also_when_memory_is_short(
    model: CausalLM, seed: int, host_pages: int
) -> None:
    """With chunks, retraction, sharing between requests that run together, and selections."""
    random = Random(seed)
    runtime = Runtime(model, num_pages=32, max_context=100, host_pages=host_pages)
    calls = []
    for _ in range(60):
        prompt = PROMPT[: random.randrange(1, 41)]
        prompt += [random.randrange(3, 9) for _ in range(random.randrange(12))]
        if random.random() < 0.2:
            calls.append(runtime.score(prompt, [[5, 6, 7], [5, 8]]))
        else:
            calls.append(
                runtime.run(
                    prompt,
                    branch=random.randrange(1, 9),
                    max_tokens=random.randrange(1, 30),
                    namespace=random.choice(["", "", "tenant=a"]),
                )
            )
        for _ in range(random.randrange(4)):
            runtime.step()
            runtime.clock.now += random.random()
    runtime.finish()
    for call in calls:
        end = runtime.end(call)
        assert isinstance(end, Done | Scored)
        account = explained(runtime, call)
        usage = end.usage
        assert account.prompt == usage.prompt
        served = account.device + account.host + account.stores + account.coalesced
        assert served == usage.cached
        assert usage.cached + usage.computed == usage.prompt
