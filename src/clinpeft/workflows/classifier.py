"""Model step of ``classify``: heads on a stack of adapters, set up to be trained."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from clinpeft import adapters, evaluation, inference, models, tokenization, training
from clinpeft.adapters import AdapterMonitor, Stack
from clinpeft.models import Head, PoolingMode
from clinpeft.recipe import ClassifierTrainingSpec, ClassifyRecipe
from clinpeft.runs import Run
from clinpeft.training import ClassificationData, Trainable, TrainingCallbacks
from clinpeft.workflows.context import RunContext, get_code_version
from clinpeft.workflows.task_cohorts import EncodedCohort

CACHED_BATCH_DOCUMENTS = 1024  # whose cached vectors go through a head together
PROBE_DOCUMENT_COUNT = 4


@dataclass(frozen=True)
class ClassifierModel:
    """Heads on a stack of adapters.

    Attributes:
        recipe: of the run.
        stack: base and adapters.
        heads: task -> its head.
        pooling: where the vector of a window is read.
        encoded_cohorts: of all tasks, in the order of the recipe.
    """

    recipe: ClassifyRecipe
    stack: Stack
    heads: Mapping[str, Head]
    pooling: PoolingMode
    encoded_cohorts: Sequence[EncodedCohort]

    @property
    def head_parameters(self) -> dict[str, Any]:
        """Name -> parameter of the heads, ``head.mortality`` and so on."""
        return training.collect_module_parameters(
            {f"head.{name}": head.linear for name, head in self.heads.items()}
        )

    def set_training_mode(self, training_mode: bool) -> None:
        """Switch dropout of stack and heads on or off."""
        self.stack.train(training_mode)
        for head in self.heads.values():
            head.train(training_mode)

    def build_logit_function(self, encoded_cohort: EncodedCohort, device: Any) -> Any:
        """Build documents -> logits (documents, classes), through the whole model."""
        return inference.build_logit_function(
            self.stack, *self._get_document_arguments(encoded_cohort, device)
        )

    def build_packed_input_function(self, encoded_cohort: EncodedCohort, device: Any) -> Any:
        """Build documents -> their packed tokens, for several trials in one pass."""
        return inference.build_packed_input_function(
            *self._get_document_arguments(encoded_cohort, device)
        )

    def _get_document_arguments(self, encoded_cohort: EncodedCohort, device: Any) -> Any:
        name = encoded_cohort.cohort.label_space.name
        head, pool = self.heads[name], self.recipe.truncation.pool
        return encoded_cohort.documents, head, self.pooling, pool, device


@dataclass(frozen=True)
class ClassifierSetup:
    """A classifier, ready to be trained.

    Attributes:
        model: stack and heads.
        trainable: what the training loop is given.
        task_data: documents, labels and metric of each task, in the order of the recipe.
        monitor: state of every weight before training; shows afterwards that each trained adapter
            changed and reached the output, and that nothing frozen changed. In the published code
            of arXiv 2307.03042 the second adapter never reached it.
        compute_probe_logits: logits of a few training documents through the whole model, with
            their gradient.
        features_seconds: time to compute cached vectors of the notes; None where the model encodes
            them anew in every step.
    """

    model: ClassifierModel
    trainable: Trainable
    task_data: tuple[ClassificationData, ...]
    monitor: AdapterMonitor
    compute_probe_logits: Callable[[], Any]
    features_seconds: float | None


def build_classifier(
    recipe: ClassifyRecipe,
    stack: Stack,
    encoded_cohorts: Sequence[EncodedCohort],
    context: RunContext,
) -> ClassifierSetup:
    """Put a head for every task on a stack.

    Where nothing below the heads is trained, the model encodes each note once, and the heads are
    trained on the cached vectors.

    Args:
        recipe: head, loss and training.
        stack: base and adapters.
        encoded_cohorts: of all tasks.
        context: device and cache.
    """
    model = ClassifierModel(
        recipe,
        stack,
        {
            encoded.cohort.label_space.name: Head(
                stack.base.width,
                len(encoded.cohort.label_space.classes),
                recipe.head.dropout,
                seed=recipe.seed,
            ).to(context.accelerator.device)
            for encoded in encoded_cohorts
        },
        models.resolve_pooling_mode(stack.base, recipe.head.pooling),
        encoded_cohorts,
    )
    start = time.perf_counter()
    # A frozen stack gives the same vector of a note in every epoch.
    is_cached = not stack.trained_parameters
    vectors = _cache_all_features(model, context) if is_cached else [None] * len(encoded_cohorts)
    features_seconds = time.perf_counter() - start if is_cached else None
    task_data = _build_task_data(model, vectors, context)
    reduces_memory = recipe.training.activations == "auto"
    trainable = training.build_classification_trainable(
        task_data,
        {**stack.trained_parameters, **model.head_parameters},
        model.set_training_mode,
        recipe.loss,
        recipe.training,
        recipe.seed,
        context.accelerator,
        tuple(model.head_parameters),
        functools.partial(adapters.enable_checkpointing_on_oom, stack) if reduces_memory else None,
    )
    compute_probe_logits = functools.partial(_compute_probe_logits, model, context)
    monitor = adapters.monitor_adapters(stack, model.head_parameters)
    return ClassifierSetup(
        model, trainable, task_data, monitor, compute_probe_logits, features_seconds
    )


def _compute_probe_logits(model: ClassifierModel, context: RunContext) -> Any:
    """Logits of the shortest training documents of every task, flattened, never from the cache."""
    logits = []
    for encoded in model.encoded_cohorts:
        train = encoded.documents.select_split("train")
        order = np.argsort(encoded.documents.count_tokens(train), kind="stable")
        compute_logits = model.build_logit_function(encoded, context.accelerator.device)
        # (documents, classes) -> flat, so that tasks of several widths can be joined
        logits.append(compute_logits(train[order[:PROBE_DOCUMENT_COUNT]]).reshape(-1))
    return inference.concatenate_logits(logits)


def fit_linear_probes(setup: ClassifierSetup, run: Run, context: RunContext) -> None:
    """Train the heads alone on the vectors of the untrained stack, where the recipe requests it.

    Linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054): a random head would
    distort the adapters in the first steps.

    Args:
        setup: whose heads are trained in place.
        run: checkpoints are written to its folder.
        context: processes, cache, and whether to stop.
    """
    model, spec = setup.model, setup.model.recipe.training
    if not (spec.head_epochs and model.stack.trained_parameters):
        return
    probe_spec: ClassifierTrainingSpec = spec.model_copy(
        update={
            "learning_rate": spec.head_learning_rate or spec.learning_rate,
            "head_learning_rate": 0.0,
            "epochs": spec.head_epochs,
            "max_steps": 0,
            "checkpoints": 1,
        }
    )
    trainable = training.build_classification_trainable(
        _build_task_data(model, _cache_all_features(model, context), context),
        model.head_parameters,
        model.set_training_mode,
        model.recipe.loss,
        probe_spec,
        model.recipe.seed,
        context.accelerator,
    )
    training.run_training(
        trainable,
        probe_spec,
        context.accelerator,
        run.folder / "checkpoints" / "head",
        TrainingCallbacks(should_stop=context.should_stop),
    )


def _cache_all_features(
    model: ClassifierModel, context: RunContext
) -> list[inference.Float32Array]:
    """Vectors (windows, width) of every task's documents from the stack as it is, cached."""
    recipe, base, device = model.recipe, model.stack.base, context.accelerator.device
    # Fresh adapters may not be the identity, and they are drawn with the seed.
    seed = recipe.seed if model.stack.trained_parameters else 0
    vectors = []
    for encoded in model.encoded_cohorts:
        path = context.get_cache_path(
            "features",
            encoded.documents.folder.name,
            *(base.sha256, base.precision_reason, base.quantization, base.kernels),
            str(device.type),
            [spec.model_dump(mode="json") for spec in recipe.adapters],
            seed,
            model.pooling,
            get_code_version(),
            suffix=".npy",
        )
        with context.accelerator.main_process_first():
            # Of several processes the first computes the file; the others read it.
            vectors.append(
                inference.cache_window_features(
                    model.stack,
                    encoded.documents,
                    model.pooling,
                    recipe.training.micro_batch_tokens,
                    device,
                    path,
                )
            )
    return vectors


def _build_task_data(
    model: ClassifierModel,
    vectors: Sequence[inference.Float32Array | None],
    context: RunContext,
) -> tuple[ClassificationData, ...]:
    return tuple(
        _build_classification_data(model, encoded, vectors[position], context)
        for position, encoded in enumerate(model.encoded_cohorts)
    )


def _build_classification_data(
    model: ClassifierModel,
    encoded_cohort: EncodedCohort,
    vectors: inference.Float32Array | None,
    context: RunContext,
) -> ClassificationData:
    """Documents, labels and metric of a task; its logits come from ``vectors`` where they are
    given."""
    recipe, documents, accelerator = model.recipe, encoded_cohort.documents, context.accelerator
    label_space = encoded_cohort.cohort.label_space
    make_micro_batches: Callable[[tokenization.IndexArray], list[tokenization.IndexArray]]
    if vectors is None:
        compute_logits = model.build_logit_function(encoded_cohort, accelerator.device)
        make_micro_batches = functools.partial(
            tokenization.group_documents,
            documents,
            micro_batch_tokens=recipe.training.micro_batch_tokens,
        )
    else:
        compute_logits = inference.build_cached_logit_function(
            vectors,
            documents,
            model.heads[label_space.name],
            recipe.truncation.pool,
            accelerator.device,
        )
        make_micro_batches = _split_by_count
    # (documents,) class index, or (documents, classes) of a multilabel task
    labels = training.encode_labels(
        documents.read_table(["stay_id", "label", "labels"]), label_space
    )
    if recipe.loss.shuffled_labels:
        for split in ("train", "tuning"):
            labels = training.shuffle_labels(labels, documents.select_split(split), recipe.seed)

    def compute_metric(logits: Any, rows: tokenization.IndexArray) -> float:
        true_classes: Any = labels[rows].numpy()
        if label_space.kind == "multilabel":  # (rows, classes) -> indices of all that apply
            true_classes = [np.flatnonzero(row) for row in true_classes]
        probabilities = inference.compute_probabilities(logits, label_space)
        return evaluation.compute_main_metric(probabilities, true_classes, label_space)

    return ClassificationData(
        label_space=label_space,
        compute_logits=compute_logits,
        labels=labels,
        token_counts=documents.count_tokens(np.arange(len(documents.tokens_total))),
        train_documents=documents.select_split("train"),
        tuning_documents=documents.select_split("tuning"),
        make_micro_batches=make_micro_batches,
        gather_logits=inference.build_gathered_logit_function(
            compute_logits, len(label_space.classes), make_micro_batches, accelerator
        ),
        compute_metric=compute_metric,
        prepare_input=model.build_packed_input_function(encoded_cohort, accelerator.device)
        if vectors is None
        else None,
    )


def _split_by_count(document_indices: tokenization.IndexArray) -> list[tokenization.IndexArray]:
    starts = range(0, len(document_indices), CACHED_BATCH_DOCUMENTS)
    return [document_indices[start : start + CACHED_BATCH_DOCUMENTS] for start in starts]


def check_classifier_output(run: Run, device: Any) -> bool:
    """Load the classifier of a run, which compares its output with the stored one.

    Raises:
        ClinpeftError: the output differs, or the model cannot be loaded.
    """
    inference.load_classifier(run.folder, cast(ClassifyRecipe, run.recipe).base, device)
    return True
