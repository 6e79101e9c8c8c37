from __future__ import annotations

from tests.models.conftest import minilm

__all__ = ["minilm"]
