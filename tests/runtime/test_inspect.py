"""What ``Inspect`` tells of a real runtime with the shipped model."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

import radixrt as rt
from radixrt.inspection import Inspection, Picture, TreeNode


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rt.Backend]:
    disk = tmp_path_factory.mktemp("disk")
    with rt.Runtime(memory="256MiB", host_memory="32MiB", disk=disk, store_on="once") as runtime:
        yield runtime


@rt.function
def ask(s: rt.ProgramState, text: str, num_tokens: int = 4) -> None:
    s += text + rt.gen("answer", max_tokens=num_tokens, temperature=0, ignore_eos=True)


def fresh() -> str:
    return f"The number of this test is {uuid.uuid4().hex}, and it is not to be repeated. "


def look(backend: rt.Backend, picture: Picture) -> Inspection:
    """Bring the picture up to date; return the last answer."""
    while True:
        answer = backend.inspect(picture.generation, texts=True)
        picture.take(answer)
        if not answer.is_more:
            return answer


def leaf(backend: rt.Backend, picture: Picture, text: str) -> TreeNode:
    """The last node of what was computed of the text and what was generated after it."""
    newest = sorted(picture.nodes.values(), key=lambda node: -node.id)
    return next(n for n in newest if not n.children and text_of(backend, n).startswith(text))


def text_of(backend: rt.Backend, node: TreeNode) -> str:
    path = backend.inspect_node(node.id).path
    return "".join(run.text or "" for run in path or ())


def await_tier(backend: rt.Backend, picture: Picture, is_there) -> Inspection:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 30
    while True:
        answer = look(backend, picture)
        if is_there(answer):
            return answer
        assert time.monotonic() < deadline, picture.nodes
        time.sleep(0.05)


def test_a_program_appears_in_the_tree_with_its_text_and_is_counted(backend: rt.Backend) -> None:
    picture = Picture()
    before = look(backend, picture)
    text = fresh()
    state = ask.run(text, backend=backend)
    after = look(backend, picture)
    assert not after.is_full
    node = leaf(backend, picture, text)
    assert (text + state["answer"]).startswith(text_of(backend, node))
    usage = state.get_meta_info("answer")
    (ended,) = [e for e in after.ended if e.seq > max((e.seq for e in before.ended), default=0)]
    assert ended.prompt == usage["prompt_tokens"]
    assert ended.computed == usage["prompt_tokens"] - usage["cached_tokens"]
    assert ended.generated + ended.forced == usage["completion_tokens"]
    assert after.totals.prompt - before.totals.prompt == ended.prompt
    assert after.totals.sampled - before.totals.sampled == ended.generated
    assert {tier.name for tier in after.tiers} == {"device", "host", "disk"}
    device = after.tiers[0]
    assert 0 < device.tokens <= device.capacity


def test_a_second_use_is_seen_on_the_node(backend: rt.Backend) -> None:
    text = fresh()
    ask.run(text, backend=backend)
    picture = Picture()

    def uses() -> list[int]:
        look(backend, picture)
        path = backend.inspect_node(leaf(backend, picture, text).id).path or ()
        return [picture.nodes[run.id].uses for run in path]

    before = uses()
    ask.run(text, backend=backend)
    assert max(uses()) == max(before) + 1


def test_a_running_request_is_told_with_its_split(backend: rt.Backend) -> None:
    text = fresh()
    ask.run(text, backend=backend)
    state = ask.run(text, 200, backend=backend, stream=True)
    pieces = state.text_iter("answer")
    next(pieces)
    (request,) = backend.inspect().requests
    assert request.state == "generating"
    assert request.device > 0
    served = request.device + request.host + request.disk + request.coalesced + request.computed
    assert served == request.prompt
    assert 0 < request.generated <= 200
    assert "".join(pieces)
    assert backend.inspect().requests == ()


def test_a_node_says_how_much_of_it_the_tiers_below_have(
    backend: rt.Backend,
) -> None:
    text = fresh()
    ask.run(text, backend=backend)
    picture = Picture()
    look(backend, picture)
    node_id = leaf(backend, picture, text).parent  # tiers below have full pages only
    await_tier(
        backend,
        picture,
        lambda _: picture.nodes[node_id].disk > 0 and picture.nodes[node_id].host > 0,
    )
    assert picture.nodes[node_id].tier == "device"


def test_texts_are_told_only_when_they_are_asked_for(backend: rt.Backend) -> None:
    ask.run(fresh(), backend=backend)
    nodes = backend.inspect().nodes
    assert nodes
    assert all(node.text is None for node in nodes)
    path = backend.inspect_node(nodes[-1].id, texts=False).path
    assert path is not None
    assert all(run.text is None for run in path)


def test_a_picture_that_has_grown_too_large_begins_anew(backend: rt.Backend) -> None:
    picture = Picture(max_nodes=4)
    for _ in range(3):
        ask.run(fresh(), backend=backend)
        look(backend, picture)
    assert picture.generation == 0
    assert backend.inspect(picture.generation).is_full


def test_a_node_that_has_gone_has_no_path(backend: rt.Backend) -> None:
    assert backend.inspect_node(10**9).path is None
