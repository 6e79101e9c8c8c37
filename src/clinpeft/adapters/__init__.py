"""What is trained: small adapters on a frozen base, one or a stack of them.

``attach`` puts new and earlier ones on a base, ``save`` and ``load`` write and read their folders, ``logits`` and ``hidden`` ask base and adapters
together, ``watch`` proves afterwards that what was meant to learn has learned and nothing else.
"""

from clinpeft.adapters.attach import attach
from clinpeft.adapters.combine import COMBINATIONS, Combination, combinations
from clinpeft.adapters.hidden import hidden, logits
from clinpeft.adapters.liveness import Liveness, Proof, Witness, watch
from clinpeft.adapters.methods import METHODS, Method
from clinpeft.adapters.stack import Attached, Counts, Stack
from clinpeft.adapters.store import load, load_all, save, save_all

__all__ = [
    "COMBINATIONS",
    "METHODS",
    "Attached",
    "Combination",
    "Counts",
    "Liveness",
    "Method",
    "Proof",
    "Stack",
    "Witness",
    "attach",
    "combinations",
    "hidden",
    "load",
    "load_all",
    "logits",
    "save",
    "save_all",
    "watch",
]
