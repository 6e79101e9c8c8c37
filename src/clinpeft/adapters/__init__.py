"""What is trained: small adapters on a frozen base, one or a stack of them.

``attach`` puts new and earlier ones on a base, ``save`` and ``load`` write and read their folders, ``pooled``, ``flat`` and ``logits`` ask base and
adapters together, ``watch`` proves afterwards that what was meant to learn has learned and nothing else. ``together`` puts several stacks on one
base, to be trained in one pass.
"""

from clinpeft.adapters.activity import Liveness, Proof, Witness, watch
from clinpeft.adapters.attach import attach
from clinpeft.adapters.checkpoint import load, load_all, save, save_all
from clinpeft.adapters.compatibility import COMBINATIONS, Combination, combinations
from clinpeft.adapters.generation import continued
from clinpeft.adapters.methods import METHODS, Method
from clinpeft.adapters.multi_adapter import Joint, Reading, Trial, together
from clinpeft.adapters.outputs import flat, hidden, logits, pooled
from clinpeft.adapters.recomputing import obstacle, recompute, rescue
from clinpeft.adapters.reference_output import check_kept_probe, keep_probe
from clinpeft.adapters.stack import Attached, Counts, Stack

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
