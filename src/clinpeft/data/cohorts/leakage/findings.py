"""What the leakage audit reports: findings, their verdicts, and the rules that grade a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

LeakageVerdict = Literal["not measured", "ok", "look", "stop"]

# From the mildest to the gravest.
LEAKAGE_VERDICTS: tuple[LeakageVerdict, ...] = ("not measured", "ok", "look", "stop")

STOP_COPY_FRACTION = 0.01  # of the evaluated notes: more copies than that move a metric
STOP_WORD_RATIO = 10.0  # times as often in one class as elsewhere: the words are the label
MIN_STOP_STAYS = 10
# Published AUROC of the best models on these tasks stay below 0.9 (arXiv 2102.04110, arXiv
# 2307.03042).
SUSPICIOUS_AUROC = 0.95
LOOK_NAMED_FRACTION, STOP_NAMED_FRACTION = 0.05, 0.5


@dataclass(frozen=True)
class LeakageFinding:
    """One measurement and its verdict.

    Attributes:
        name: of the measurement.
        value: None where it was not measured.
        verdict: how grave it is.
        meaning: what the value is, in words.
        detail: further numbers.
    """

    name: str
    value: float | None
    verdict: LeakageVerdict
    meaning: str
    detail: Mapping[str, object] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """The finding as in ``leakage.json``."""
        return {
            "name": self.name,
            "value": self.value,
            "verdict": self.verdict,
            "meaning": self.meaning,
            "detail": dict(self.detail),
        }


@dataclass(frozen=True)
class LeakageAudit:
    """All findings on one cohort."""

    findings: tuple[LeakageFinding, ...]

    @property
    def verdict(self) -> LeakageVerdict:
        """The gravest verdict of any finding."""
        return max((finding.verdict for finding in self.findings), key=LEAKAGE_VERDICTS.index)

    def get_finding(self, name: str) -> LeakageFinding:
        """The finding of that name."""
        return next(finding for finding in self.findings if finding.name == name)

    def as_json(self) -> dict[str, object]:
        """The audit as in ``leakage.json``."""
        return {
            "verdict": self.verdict,
            "findings": [finding.as_json() for finding in self.findings],
        }


def build_copy_finding(
    name: str, copies: int, evaluated: int, meaning: str, detail: Mapping[str, object]
) -> LeakageFinding:
    """A number of copies among evaluated notes or subjects.

    Args:
        name: of the finding.
        copies: how many of ``evaluated`` are also in training.
        evaluated: how many could be compared; with 0 the finding is not measured.
        meaning, detail: of the finding.
    """
    verdict: LeakageVerdict = "ok" if not copies else "look"
    if copies and copies >= STOP_COPY_FRACTION * evaluated:
        verdict = "stop"
    return LeakageFinding(name, copies, verdict if evaluated else "not measured", meaning, detail)
