"""A model directory with a tokenizer only, and a frontend over it."""

from __future__ import annotations

from pathlib import Path

import pytest
from frontend_harness import Harness
from tiny_tokenizer import write_model_directory


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_directory(tmp_path_factory.mktemp("tiny-tokenizer"))


@pytest.fixture
def harness(model_directory: Path) -> Harness:
    return Harness(model_directory)
