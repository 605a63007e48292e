"""``radixrt top`` on a real server."""

from __future__ import annotations

import uuid

import pytest

import radixrt as rt
from radixrt.cli import main
from radixrt.errors import RuntimeUnavailable
from radixrt.inspection import Picture, TreeNode
from radixrt.top import hottest, run_top


@rt.function
def ask(s: rt.ProgramState, text: str) -> None:
    s += text + rt.gen("answer", max_tokens=4, temperature=0)


def snapshot(endpoint: str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["top", "--endpoint", endpoint, "--once", "--every-s", "0.1", *options])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_once_prints_what_there_is(
    served: tuple[str, str],
    backend: rt.Backend,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    text = f"{uuid.uuid4().hex[:8]} begins this text, which is long enough for a page."
    for _ in range(2):
        ask.run(text, backend=backend).text()
    told = snapshot(served[0], capsys)
    assert "radixrt · nano" in told
    assert "hit rate" in told
    assert "device" in told
    assert "nothing runs" in told
    assert text[:20] in told
    assert "\x1b" not in told
    assert text[:20] not in snapshot(served[0], capsys, "--no-texts")


def test_without_a_runtime_it_says_so() -> None:
    with pytest.raises(RuntimeUnavailable, match="nobody answers"):
        run_top(
            lambda: rt.connect("ipc:///tmp/no-such-runtime", timeout_s=0.1),
            every_s=0.1,
            once=True,
            texts=True,
        )


def test_the_hottest_subtrees_are_those_in_use_then_those_used_most() -> None:
    def node(node_id: int, parent: int, tokens: int, uses: int, **rest: object) -> TreeNode:
        return TreeNode(
            id=node_id,
            parent=parent,
            tokens=tokens,
            tier="device",
            uses=uses,
            **rest,  # type: ignore[arg-type]
        )

    nodes = [
        node(1, 0, 0, 0),
        node(2, 1, 10, 5),
        node(3, 1, 20, 9),
        node(4, 1, 30, 1, locked=True),
        node(5, 2, 7, 3),
        node(6, 5, 100, 3),
    ]
    picture = Picture(nodes={n.id: n for n in nodes})
    assert [(n.id, below) for n, below in hottest(picture, 3)] == [(4, 30), (3, 20), (2, 117)]
