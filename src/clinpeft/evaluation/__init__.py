"""Tables to numbers, each with its interval; torch is never imported here.

``metrics`` holds what is measured on likelihoods. Answers to questions: ``classification`` puts together what ``discrimination``, ``calibration``,
``decisions`` and ``subgroups`` measure, ``paired`` compares two models, ``recalibration`` corrects probabilities beforehand. ``uncertainty`` holds
the one bootstrap they all share, ``ranks`` the areas under curves.
"""

from clinpeft.evaluation.bootstrap import Interval, cluster_bootstrap, cluster_sums
from clinpeft.evaluation.classification.calibration import (
    calibration_curve,
    smooth_calibration_curve,
)
from clinpeft.evaluation.classification.decisions import decision_curve, net_benefit, treat_all
from clinpeft.evaluation.classification.discrimination import (
    Answers,
    answers,
    labels_table,
    main_metric,
)
from clinpeft.evaluation.classification.meds_evaluation import as_meds
from clinpeft.evaluation.classification.paired import answers_difference, answers_mismatch, delong
from clinpeft.evaluation.classification.ranks import auroc, average_precision
from clinpeft.evaluation.classification.recalibration import recalibrated
from clinpeft.evaluation.classification.scoring import (
    curves,
    macro_average,
    question_of,
    scored,
    suppressed,
    with_question,
)
from clinpeft.evaluation.classification.subgroups import subgroup_rows
from clinpeft.evaluation.perplexity import difference, mismatch, perplexity
from clinpeft.evaluation.privacy_attacks import (
    Attack,
    exposure,
    exposures,
    few_counts_withheld,
    longest_shared_run,
    membership,
    releasable,
    verbatim,
)

__all__ = [
    "Answers",
    "Attack",
    "Interval",
    "answers",
    "answers_difference",
    "answers_mismatch",
    "as_meds",
    "auroc",
    "average_precision",
    "calibration_curve",
    "cluster_bootstrap",
    "cluster_sums",
    "curves",
    "decision_curve",
    "delong",
    "difference",
    "exposure",
    "exposures",
    "few_counts_withheld",
    "labels_table",
    "longest_shared_run",
    "macro_average",
    "main_metric",
    "membership",
    "mismatch",
    "net_benefit",
    "perplexity",
    "question_of",
    "recalibrated",
    "releasable",
    "scored",
    "smooth_calibration_curve",
    "subgroup_rows",
    "suppressed",
    "treat_all",
    "verbatim",
    "with_question",
]
