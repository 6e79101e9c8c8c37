"""Metrics with intervals, from tables of predictions, likelihoods and vectors; no torch here.

```
bootstrap.py        cluster bootstrap that all metrics share     perplexity.py       perplexity
classification/     discrimination, calibration, decisions       privacy_attacks.py  attacks
embedding/          separation, retrieval, geometry              arrays.py           array types
```
"""

from clinpeft.evaluation.bootstrap import ConfidenceInterval, bootstrap_clusters, sum_by_cluster
from clinpeft.evaluation.classification.calibration import (
    compute_calibration_curve,
    compute_smooth_calibration_curve,
)
from clinpeft.evaluation.classification.decisions import (
    compute_decision_curve,
    net_benefit,
)
from clinpeft.evaluation.classification.discrimination import (
    compute_label_metrics,
    compute_main_metric,
)
from clinpeft.evaluation.classification.meds_evaluation import as_meds_predictions
from clinpeft.evaluation.classification.paired import (
    compare_paired_predictions,
    delong_test,
    find_prediction_mismatch,
)
from clinpeft.evaluation.classification.ranks import auroc, average_precision
from clinpeft.evaluation.classification.recalibration import recalibrate_predictions
from clinpeft.evaluation.classification.scored_predictions import (
    ScoredPredictions,
    extract_scored_predictions,
)
from clinpeft.evaluation.classification.scoring import (
    average_main_metric,
    compute_classification_curves,
    read_prediction_label_space,
    score_prediction_table,
    suppress_small_cells,
)
from clinpeft.evaluation.classification.subgroups import evaluate_subgroups
from clinpeft.evaluation.perplexity import (
    compare_perplexity,
    evaluate_perplexity,
    find_likelihood_mismatch,
)
from clinpeft.evaluation.privacy_attacks import (
    AttackScoring,
    compute_exposure,
    measure_longest_shared_run,
    score_membership_inference,
    score_verbatim_memorization,
    summarize_exposures,
    suppress_for_release,
    suppress_small_counts,
)

__all__ = [
    "AttackScoring",
    "ConfidenceInterval",
    "ScoredPredictions",
    "as_meds_predictions",
    "auroc",
    "average_main_metric",
    "average_precision",
    "bootstrap_clusters",
    "compare_paired_predictions",
    "compare_perplexity",
    "compute_calibration_curve",
    "compute_classification_curves",
    "compute_decision_curve",
    "compute_exposure",
    "compute_label_metrics",
    "compute_main_metric",
    "compute_smooth_calibration_curve",
    "delong_test",
    "evaluate_perplexity",
    "evaluate_subgroups",
    "extract_scored_predictions",
    "find_likelihood_mismatch",
    "find_prediction_mismatch",
    "measure_longest_shared_run",
    "net_benefit",
    "read_prediction_label_space",
    "recalibrate_predictions",
    "score_membership_inference",
    "score_prediction_table",
    "score_verbatim_memorization",
    "sum_by_cluster",
    "summarize_exposures",
    "suppress_for_release",
    "suppress_small_cells",
    "suppress_small_counts",
]
