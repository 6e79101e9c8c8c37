"""What is trained: small adapters on a frozen base.

``attach`` makes new ones, ``save`` and ``load`` write and read their folders, ``logits`` asks base and adapter together.
"""

from clinpeft.adapters.methods import METHODS, Method
from clinpeft.adapters.stack import Counts, Stack, attach, logits
from clinpeft.adapters.store import load, save

__all__ = ["METHODS", "Counts", "Method", "Stack", "attach", "load", "logits", "save"]
