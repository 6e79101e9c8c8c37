"""Vectors and scores of pairs -> numbers that mean something: separation in strata, retrieval, geometry, and the difference between models.

```
vectors.py        unit length, cosines, refusal of NaN          search.py           exact top k, ties as trec_eval breaks them
strata.py         negatives of graded difficulty, pair scores   ranking_metrics.py  nDCG, MRR, Recall, MAP of each query and of all
pair_metrics.py   related against unrelated, the study's rows   comparison.py       paired tests, Holm, what could have been found
shape.py          alignment, uniformity, rank, hubs, negation   rows.py             numbers and intervals as ``tables.RESULT``
```
"""

from clinpeft.evaluation.embedding.comparison import (
    compared,
    holm,
    minimum_detectable_difference,
    paired_bootstrap,
    paired_permutation,
    retrieval_difference,
)
from clinpeft.evaluation.embedding.pair_metrics import (
    STUDY_THRESHOLD,
    separation,
    separation_difference,
    study,
)
from clinpeft.evaluation.embedding.ranking_metrics import per_query, retrieval
from clinpeft.evaluation.embedding.search import best, ranked, retrieved
from clinpeft.evaluation.embedding.shape import geometry, negation_sensitivity
from clinpeft.evaluation.embedding.strata import STRATA, Pairs, negatives, pair_scores, shuffled
from clinpeft.evaluation.embedding.vectors import cosine_score, cosines, unit

__all__ = [
    "STRATA",
    "STUDY_THRESHOLD",
    "Pairs",
    "best",
    "compared",
    "cosine_score",
    "cosines",
    "geometry",
    "holm",
    "minimum_detectable_difference",
    "negation_sensitivity",
    "negatives",
    "pair_scores",
    "paired_bootstrap",
    "paired_permutation",
    "per_query",
    "ranked",
    "retrieval",
    "retrieval_difference",
    "retrieved",
    "separation",
    "separation_difference",
    "shuffled",
    "study",
    "unit",
]
