"""Tables to numbers, each with its interval; torch is never imported here.

``metrics`` holds what is measured on likelihoods. Answers to questions: ``classification`` puts together what ``discrimination``, ``calibration``,
``decisions`` and ``subgroups`` measure, ``paired`` compares two models, ``recalibration`` corrects probabilities beforehand. ``uncertainty`` holds
the one bootstrap they all share, ``ranks`` the areas under curves.
"""

from clinpeft.evaluation.bootstrap import ConfidenceInterval, bootstrap_clusters, sum_by_cluster
from clinpeft.evaluation.classification.calibration import (
    compute_calibration_curve,
    compute_smooth_calibration_curve,
)
from clinpeft.evaluation.classification.decisions import (
    compute_decision_curve,
    compute_treat_all_net_benefit,
    net_benefit,
)
from clinpeft.evaluation.classification.discrimination import (
    ScoredPredictions,
    compute_label_metrics,
    compute_main_metric,
    extract_scored_predictions,
)
from clinpeft.evaluation.classification.meds_evaluation import as_meds_predictions
from clinpeft.evaluation.classification.paired import (
    compare_paired_predictions,
    delong_test,
    find_prediction_mismatch,
)
from clinpeft.evaluation.classification.ranks import auroc, average_precision
from clinpeft.evaluation.classification.recalibration import recalibrate_predictions
from clinpeft.evaluation.classification.scoring import (
    attach_label_space,
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
    "ScoredPredictions",
    "AttackScoring",
    "ConfidenceInterval",
    "extract_scored_predictions",
    "compare_paired_predictions",
    "find_prediction_mismatch",
    "as_meds_predictions",
    "auroc",
    "average_precision",
    "compute_calibration_curve",
    "bootstrap_clusters",
    "sum_by_cluster",
    "compute_classification_curves",
    "compute_decision_curve",
    "delong_test",
    "compare_perplexity",
    "compute_exposure",
    "summarize_exposures",
    "suppress_small_counts",
    "compute_label_metrics",
    "measure_longest_shared_run",
    "average_main_metric",
    "compute_main_metric",
    "score_membership_inference",
    "find_likelihood_mismatch",
    "net_benefit",
    "evaluate_perplexity",
    "read_prediction_label_space",
    "recalibrate_predictions",
    "suppress_for_release",
    "score_prediction_table",
    "compute_smooth_calibration_curve",
    "evaluate_subgroups",
    "suppress_small_cells",
    "compute_treat_all_net_benefit",
    "score_verbatim_memorization",
    "attach_label_space",
]
