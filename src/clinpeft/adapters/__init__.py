"""What is trained: small adapters on a frozen base, one or a stack of them.

``attach`` puts new and earlier ones on a base, ``save`` and ``load`` write and read their folders, ``pooled``, ``flat`` and ``logits`` ask base and
adapters together, ``watch`` proves afterwards that what was meant to learn has learned and nothing else. ``together`` puts several stacks on one
base, to be trained in one pass.
"""

from clinpeft.adapters.attach import attach
from clinpeft.adapters.combine import COMBINATIONS, Combination, combinations
from clinpeft.adapters.generation import continued
from clinpeft.adapters.hidden import flat, hidden, logits, pooled
from clinpeft.adapters.joint import Joint, Reading, Trial, together
from clinpeft.adapters.liveness import Liveness, Proof, Witness, watch
from clinpeft.adapters.methods import METHODS, Method
from clinpeft.adapters.probing import check_kept_probe, keep_probe
from clinpeft.adapters.recomputing import obstacle, recompute, rescue
from clinpeft.adapters.stack import Attached, Counts, Stack
from clinpeft.adapters.store import load, load_all, save, save_all

__all__ = [
    "COMBINATIONS",
    "METHODS",
    "Attached",
    "Combination",
    "Counts",
    "Joint",
    "Liveness",
    "Method",
    "Proof",
    "Reading",
    "Stack",
    "Trial",
    "Witness",
    "attach",
    "check_kept_probe",
    "combinations",
    "continued",
    "flat",
    "hidden",
    "keep_probe",
    "load",
    "load_all",
    "logits",
    "obstacle",
    "pooled",
    "recompute",
    "rescue",
    "save",
    "save_all",
    "together",
    "watch",
]
