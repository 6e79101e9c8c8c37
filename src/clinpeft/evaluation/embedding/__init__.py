"""Vectors and scores of pairs -> numbers that mean something: separation in strata, retrieval, geometry, and the difference between models.

```
vectors.py        unit length, cosines, refusal of NaN          search.py           exact top k, ties as trec_eval breaks them
strata.py         negatives of graded difficulty, pair scores   ranking_metrics.py  nDCG, MRR, Recall, MAP of each query and of all
pair_metrics.py   related against unrelated, the study's rows   comparison.py       paired tests, Holm, what could have been found
shape.py          alignment, uniformity, rank, hubs, negation   rows.py             numbers and intervals as ``tables.RESULT``
```
"""

from clinpeft.evaluation.embedding.comparison import (
    adjust_holm,
    bootstrap_paired_difference,
    compare_models_pairwise,
    compare_retrieval,
    compute_minimum_detectable_difference,
    compute_permutation_p,
)
from clinpeft.evaluation.embedding.pair_metrics import (
    STUDY_SEPARATION_THRESHOLD,
    compare_separation,
    evaluate_separation,
    evaluate_study_protocol,
)
from clinpeft.evaluation.embedding.ranking_metrics import compute_query_metrics, evaluate_retrieval
from clinpeft.evaluation.embedding.search import rank_passages, select_top_k, to_retrieval_table
from clinpeft.evaluation.embedding.shape import evaluate_geometry, evaluate_negation_sensitivity
from clinpeft.evaluation.embedding.strata import (
    NEGATIVE_STRATA,
    AnchorPairs,
    draw_negatives,
    score_anchor_pairs,
    shuffle_partners,
)
from clinpeft.evaluation.embedding.vectors import (
    build_cosine_scorer,
    compute_cosines,
    normalize_vectors,
)

__all__ = [
    "NEGATIVE_STRATA",
    "STUDY_SEPARATION_THRESHOLD",
    "AnchorPairs",
    "select_top_k",
    "compare_models_pairwise",
    "build_cosine_scorer",
    "compute_cosines",
    "evaluate_geometry",
    "adjust_holm",
    "compute_minimum_detectable_difference",
    "evaluate_negation_sensitivity",
    "draw_negatives",
    "score_anchor_pairs",
    "bootstrap_paired_difference",
    "compute_permutation_p",
    "compute_query_metrics",
    "rank_passages",
    "evaluate_retrieval",
    "compare_retrieval",
    "to_retrieval_table",
    "evaluate_separation",
    "compare_separation",
    "shuffle_partners",
    "evaluate_study_protocol",
    "normalize_vectors",
]
