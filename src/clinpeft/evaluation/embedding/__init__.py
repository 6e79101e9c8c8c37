"""Evaluation of embeddings: separation in strata, retrieval, geometry, comparison of models.

```
vectors.py          length 1, cosines, NaN      search.py           exact top k, ties as trec_eval
strata.py           graded negatives            ranking_metrics.py  nDCG, MRR, recall, MAP
pair_metrics.py     related against unrelated   comparison.py       paired tests, Holm
shape.py            alignment, rank, hubness    rows.py             results with intervals
```
"""

from clinpeft.evaluation.embedding.comparison import (
    adjust_holm,
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
from clinpeft.evaluation.embedding.shape import evaluate_geometry
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
    "adjust_holm",
    "build_cosine_scorer",
    "compare_models_pairwise",
    "compare_retrieval",
    "compare_separation",
    "compute_cosines",
    "compute_minimum_detectable_difference",
    "compute_permutation_p",
    "compute_query_metrics",
    "draw_negatives",
    "evaluate_geometry",
    "evaluate_retrieval",
    "evaluate_separation",
    "evaluate_study_protocol",
    "normalize_vectors",
    "rank_passages",
    "score_anchor_pairs",
    "select_top_k",
    "shuffle_partners",
    "to_retrieval_table",
]
