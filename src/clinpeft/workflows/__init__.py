"""Workflows: each kind of run as one function that reads like its paper's method.

``adapt`` is the first half of arXiv 2307.03042: a frozen language model is adapted to clinical
notes by a small adapter. ``classify`` is the second: a stack of adapters, the first of them from a
run of ``adapt``, and a head are trained on a clinical outcome. ``embed`` is arXiv 2511.19739: pairs
are built from textbooks, and an encoder is trained on them. Each is a value of ``Workflow`` in
``WORKFLOWS``.

```
adapt.py classify.py embed.py    the workflows
workflow.py registry.py          what a kind of run is, and all kinds
context.py                       home, processes, clock, callbacks; the run folder around training

one step each:
language_model.py                corpus, windows, likelihoods, record of adapt
task_cohorts.py                  cohorts of all tasks, their notes as tokens
textbooks.py                     passages and pairs of books, retrieval sets
base_loading.py                  the base, and whether it survives quantization
adapter_sources.py               adapters of earlier runs
classifier.py encoder.py         heads or vectors on a stack, set up to be trained
memory_estimates.py              memory by formula, and the policy for runtime.optimize
fitting.py                       the training, with differential_privacy.py
classification_results.py        evaluation and record of classify
embedding_benchmark.py embedding_evaluation.py embedding_results.py     the same of embed
joint_trials.py                  several runs of classify in one pass

of finished runs:
comparison.py run_results.py     two runs compared, predictions scored again
prediction.py encoding.py new_texts.py   new notes and texts
verification.py release.py       inputs against the record; what may leave
privacy_attacks.py privacy_audit.py      what a run reveals
plan.py doctor.py                what a run will take; what this machine can do
```
"""

from __future__ import annotations

from clinpeft.workflows.adapt import ADAPT, adapt_language_model
from clinpeft.workflows.classify import CLASSIFY, train_classifier
from clinpeft.workflows.context import RunContext, create_context, get_code_version
from clinpeft.workflows.embed import EMBED, train_embedding_model
from clinpeft.workflows.encoding import (
    encode_text_file,
    evaluate_run_retrieval,
    export_run_encoder,
    export_run_to_onnx,
)
from clinpeft.workflows.joint_trials import can_train_jointly, train_classifiers_jointly
from clinpeft.workflows.prediction import predict_new_notes
from clinpeft.workflows.privacy_attacks import PrivacyAuditConfig
from clinpeft.workflows.privacy_audit import audit_run_privacy, read_privacy_results
from clinpeft.workflows.registry import WORKFLOWS, get_workflow
from clinpeft.workflows.release import release_run_folder
from clinpeft.workflows.run_results import compare_run_results, rescore_predictions
from clinpeft.workflows.verification import verify_run_provenance
from clinpeft.workflows.workflow import Workflow

__all__ = [
    "ADAPT",
    "CLASSIFY",
    "EMBED",
    "WORKFLOWS",
    "PrivacyAuditConfig",
    "RunContext",
    "Workflow",
    "adapt_language_model",
    "audit_run_privacy",
    "can_train_jointly",
    "compare_run_results",
    "create_context",
    "encode_text_file",
    "evaluate_run_retrieval",
    "export_run_encoder",
    "export_run_to_onnx",
    "get_code_version",
    "get_workflow",
    "predict_new_notes",
    "read_privacy_results",
    "release_run_folder",
    "rescore_predictions",
    "train_classifier",
    "train_classifiers_jointly",
    "train_embedding_model",
    "verify_run_provenance",
]
