from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_harness import tiny_model
from tiny_models import save_tiny

from radixrt.runtime.model.decoder import CausalLM


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    path: Path = tmp_path_factory.mktemp("tiny")
    return tiny_model(save_tiny(path))
