from __future__ import annotations

from pathlib import Path

import pytest

import radixrt
from radixrt.runtime.grammar.llguidance import LlguidanceEngine

NANO = Path(radixrt.__file__).parent / "models" / "nano"


@pytest.fixture(scope="session")
def engine() -> LlguidanceEngine:
    """Matchers over the shipped model's tokens."""
    return LlguidanceEngine(NANO / "tokenizer.json", 4160, [0], 1)
