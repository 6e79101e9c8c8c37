"""Tables to numbers, each with its interval; torch is never imported here.

``metrics`` holds one function a metric, ``uncertainty`` the one bootstrap they share.
"""

from clinpeft.evaluation.metrics import difference, mismatch, perplexity
from clinpeft.evaluation.uncertainty import Interval, cluster_bootstrap, cluster_sums

__all__ = ["Interval", "cluster_bootstrap", "cluster_sums", "difference", "mismatch", "perplexity"]
