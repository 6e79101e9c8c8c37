"""What a recipe can contain: frozen specs, one for each table, and one class for each kind of run.

A spec holds names and options only; the packages give the names a meaning (``SOURCES``,
``ADAPTER_METHODS``, ``OBJECTIVES`` and so on).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import pydantic
from pydantic import Field

from clinpeft.recipe.adapter_specs import AnyAdapterSpec
from clinpeft.recipe.privacy import DifferentialPrivacySpec, PrivacySpec
from clinpeft.recipe.spec import DropoutProbability, RecipeSpec, UnitFraction
from clinpeft.recipe.training_specs import (
    ClassificationEvaluationSpec,
    ClassifierTrainingSpec,
    EvaluationSpec,
    TrainingSpec,
)


class SourceSpec(RecipeSpec):
    """Where the notes come from.

    Attributes:
        name: a key of ``SOURCES``.
        path: file or folder; ``$VARIABLES`` are expanded, a relative path starts at the recipe's
            folder.
        columns: our column -> theirs, for sources without a fixed layout (``files``).
        parts: which parts to read, where a source has several (``discharge``, ``radiology``; note
            categories for MIMIC-III). Empty: all.
        max_bad_fraction: the fraction of rows that may be unreadable before reading stops.
        subjects: number of people of the ``synthetic`` hospital.
        shape: the data set in whose layout it is written.
        seed: of the synthetic hospital; the same seed gives the same people.
    """

    name: str
    path: Path | None = None  # none: the synthetic hospital is written into the cache
    columns: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    parts: tuple[str, ...] = ()
    max_bad_fraction: UnitFraction = 0.01
    subjects: Annotated[int, Field(gt=0)] = 200
    shape: Literal["mimic-iii", "mimic-iv"] = "mimic-iv"
    seed: int = 1234


class CorpusSpec(RecipeSpec):
    """How notes become training text.

    Attributes:
        deidentification: what becomes of de-identification marks: ``keep``; ``strip-brackets``
            (the paper's code: the two brackets become spaces, line ends too, runs of spaces one);
            ``typed-tokens`` (``[**First Name 12**]`` becomes ``[NAME]``, and so on).
        deduplicate: ``none``, ``exact`` or ``near`` (exact, then MinHash).
        near_threshold: estimated Jaccard similarity of word 5-grams from which two notes are near
            duplicates.
        min_characters: shorter notes are dropped, and counted.
        categories: use only these note categories. Empty: all.
    """

    deidentification: Literal["keep", "strip-brackets", "typed-tokens"] = "typed-tokens"
    deduplicate: Literal["none", "exact", "near"] = "near"
    near_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    min_characters: Annotated[int, Field(ge=1)] = 1
    categories: tuple[str, ...] = ()


class SplitFractionsSpec(RecipeSpec):
    """Fractions of the splits, which sum to 1, and the seed of the draw.

    The seed is a key of its own, so that runs with other seeds have the same splits.
    """

    # The names of the MEDS standard
    train: UnitFraction = 0.7
    tuning: UnitFraction = 0.1
    held_out: UnitFraction = 0.2
    seed: int = 1234

    @pydantic.model_validator(mode="after")
    def _check_fraction_sum(self) -> Self:
        total = self.train + self.tuning + self.held_out
        if abs(total - 1) > 1e-9:  # 0.7 + 0.1 + 0.2 is not exactly 1
            raise ValueError(f"train + tuning + held_out = {total:g}, and must be 1")
        return self


class SplitSpec(SplitFractionsSpec):
    """Which notes are for training and which for evaluation.

    Attributes:
        by: ``subject``; ``note`` only to reproduce the paper, where the notes of one person are in
            several splits.
        train, tuning, held_out: fractions that sum to 1.
        seed: of the draw.
    """

    by: Literal["subject", "note"] = "subject"


class CohortSplitSpec(SplitFractionsSpec):
    """Which stays are for training and which for evaluation, always whole subjects.

    Attributes:
        by: ``subject``, by a hash of the subject and the seed; ``year_group`` (the data set's axis
            of real time) or ``site``: the groups named below are tuning and held out, the rest is
            training.
        train, tuning, held_out: fractions that sum to 1; of those by group,
            ``tuning / (train + tuning)`` of the rest where no group is tuning.
        tuning_groups, held_out_groups: groups of stays; no held-out group named: the last in
            alphabetical order, which for years is the latest.
        seed: of the draw; with that of an adapter's corpus, no subject of its training split is
            held out.
    """

    by: Literal["subject", "year_group", "site"] = "subject"
    tuning_groups: tuple[str, ...] = ()
    held_out_groups: tuple[str, ...] = ()


class TaskSpec(RecipeSpec):
    """The clinical task.

    Attributes:
        name: a key of ``TASKS``.
        sections: which part of the discharge summary is used: ``admission`` extracts the eight
            sections known at admission, ``core-2021`` does so with the published code, ``all``
            uses the whole note, which a task at admission refuses and one at discharge always
            does.
        ventilation: how "prolonged" is measured: ``clinical-xlnet`` (span of at least 7 days, 6 h
            grace, its exclusions) or ``summed``.
        code_system: of ``icd_coding``; empty: the one that the data uses most.
        min_label_count: classes with fewer training stays are left out of the label space; 0: none.
        compat: ``core-2021`` reproduces the published builder with its errors; empty: corrected.
        several: of ``note_category``, which category of a text with several: its ``rarest`` one,
            or the text is left out (``drop``).
        labels: of ``given``, a MEDS label file with ``boolean_value``, or a folder of them, as
            ACES writes them.
        subject_lists: folder with ``train``, ``tuning`` (or ``val``) and ``held_out`` (or
            ``test``) lists of subject ids, instead of the split by hash.
    """

    name: str
    sections: Literal["admission", "core-2021", "all"] = "admission"
    ventilation: Literal["clinical-xlnet", "summed"] = "clinical-xlnet"
    code_system: Literal["", "icd9", "icd10"] = ""
    min_label_count: Annotated[int, Field(ge=0)] = 0
    compat: Literal["", "core-2021"] = ""
    several: Literal["rarest", "drop"] = "rarest"
    labels: Path | None = None
    subject_lists: Path | None = None


class PretrainedModelSpec(RecipeSpec):
    """A pretrained model.

    Attributes:
        path: a local folder with config, tokenizer and safetensors.
        max_tokens: the longest sequence given to the model, special tokens included.
        precision: of the frozen weights and of the computation; ``auto`` takes bfloat16 where the
            processor has it, else float32.
        quantization: of the frozen linear layers inside the blocks; ``float8`` stores a weight in
            one byte, with a scale for each row, and computes in ``precision``. The run starts only
            if the outputs of the base on at most 32 of its tuning texts stay within
            ``quantization_limit``.
        quantization_limit: how much float8 may raise their perplexity, as a fraction (``adapt``),
            or lower the mean cosine similarity of their vectors to those without it (``classify``,
            ``embed``).
        kernels: of norms and gates: PyTorch's, or those of liger, for LLaMA, Mistral, Qwen2, Qwen3
            and Gemma 2 on a CUDA device; needs the extra ``gpu``.
    """

    path: Path
    max_tokens: Annotated[int, Field(ge=8)] = 512  # room for special tokens and some text
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["none", "float8"] = "none"
    quantization_limit: Annotated[float, Field(ge=0)] = 0.01
    kernels: Literal["torch", "liger"] = "torch"


class LanguageModelSpec(PretrainedModelSpec):
    """The frozen model that is adapted to the language of notes.

    Attributes:
        path, max_tokens, precision, quantization, quantization_limit, kernels: as for every model.
        overflow: ``window`` cuts a long note into windows and uses all of it; ``truncate`` uses
            the first (the paper: 128 tokens).
    """

    overflow: Literal["window", "truncate"] = "window"


class EncoderModelSpec(PretrainedModelSpec):
    """The model that reads the notes of a task.

    Attributes:
        path, max_tokens, precision, quantization, quantization_limit, kernels: as for every model.
        trainable: full fine-tuning of the whole model, in float32; without it every weight of the
            base stays as it is.
    """

    trainable: bool = False


class TruncationSpec(RecipeSpec):
    """Which part of a note longer than ``base.max_tokens`` is used.

    Attributes:
        keep: ``head`` (the paper: the first 128 tokens), ``tail``, ``head-and-tail`` (half each),
            ``sections`` (whole sections by priority, as many as fit, in the order of the note) or
            ``windows`` (all of it, window by window, the logits of the windows pooled).
        sections: heading names, the most important first; sections that are not named come last,
            in the order of the note.
        overlap_tokens: of neighboring windows.
        max_windows: of one note; the text after them is cut, and counted.
        pool: how the logits of the windows become those of the note.
    """

    keep: Literal["head", "tail", "head-and-tail", "sections", "windows"] = "head"
    sections: tuple[str, ...] = ()
    overlap_tokens: Annotated[int, Field(ge=0)] = 32  # so that no sentence is only cut in two
    max_windows: Annotated[int, Field(ge=1)] = 8
    pool: Literal["mean", "max"] = "mean"


class HeadSpec(RecipeSpec):
    """The classification head: one linear layer on a pooled vector, in float32.

    Attributes:
        pooling: how the vectors of a sequence become one: that of the ``last`` token, of the
            ``cls`` token, the ``mean`` of all tokens, or their elementwise ``max``, which preserves
            a signal of a few words that the mean of a long note dilutes; ``auto`` takes that of
            the model family.
        dropout: on the pooled vector, while training.
    """

    pooling: Literal["auto", "last", "cls", "mean", "max"] = "auto"
    dropout: DropoutProbability = 0.0


class LossSpec(RecipeSpec):
    """The loss: cross-entropy over the classes; binary cross-entropy, averaged over the labels of
    a multilabel task.

    Attributes:
        class_weights: ``balanced`` weighs class k by n / (K n_k), as the paper's code does on
            multiclass tasks; it destroys calibration.
        shuffled_labels: permutes the labels of the training and the tuning split; a control, which
            must end at chance on the held-out split.
    """

    # n: training stays, K: classes, n_k: training stays of class k
    class_weights: Literal["none", "balanced"] = "none"
    shuffled_labels: bool = False


class Recipe(RecipeSpec):
    """Everything that is needed to repeat a run; what every kind of run has.

    Attributes:
        kind: the verb that the recipe is for, which determines its tables.
        name: by which the run can be found; empty: only by its id.
        seed: of every random draw that no other key seeds.
    """

    # Group of the metrics of the trained model: "adapted" where the base is evaluated too, "model"
    # where it is not; empty where nothing is trained
    trained_state: ClassVar[str] = ""
    # What two runs of this kind are compared by: "tokens", "stays" or "pairs"; empty: by nothing
    compared_unit: ClassVar[str] = ""

    kind: str
    name: str = ""
    seed: int = 1234
    source: SourceSpec

    # ``adapters`` and ``base`` are fields of most kinds, and pydantic would let a property of the
    # base class win over a field. So these two are declared for type checkers only, and a kind
    # without such a field defines the property.
    if TYPE_CHECKING:

        @property
        def adapters(self) -> tuple[AnyAdapterSpec, ...]:
            """The stack of adapters; empty where there is none."""
            raise NotImplementedError

        @property
        def base(self) -> PretrainedModelSpec | None:
            """The pretrained model; None where there is none."""
            raise NotImplementedError

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """All tasks, the main one first; empty where there is none."""
        return ()

    @property
    def trains_base(self) -> bool:
        """Whether the weights of the base are trained too (full fine-tuning)."""
        return False

    @property
    def differential_privacy(self) -> DifferentialPrivacySpec | None:
        """Differential privacy of the training; None without."""
        return None


class AdaptRecipe(Recipe):
    """Domain-adaptive pretraining: a language model is trained on notes."""

    trained_state: ClassVar[str] = "adapted"
    compared_unit: ClassVar[str] = "tokens"

    kind: Literal["adapt"]
    corpus: CorpusSpec = CorpusSpec()
    split: SplitSpec = SplitSpec()
    base: LanguageModelSpec
    adapters: Annotated[tuple[AnyAdapterSpec, ...], Field(min_length=1)]
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    privacy: PrivacySpec = PrivacySpec()

    @property
    def differential_privacy(self) -> DifferentialPrivacySpec | None:
        """Differential privacy of the training; None without."""
        return self.training.differential_privacy


class CohortRecipe(Recipe):
    """A cohort alone: stays, what may be read of each at which time, and the label."""

    kind: Literal["cohort"]
    task: TaskSpec
    split: CohortSplitSpec = CohortSplitSpec()

    @property
    def adapters(self) -> tuple[AnyAdapterSpec, ...]:
        """No adapters."""
        return ()

    @property
    def base(self) -> None:
        """No model."""
        return


class ClassifyRecipe(Recipe):
    """A clinical task predicted from notes: a base, a stack of adapters, a head.

    Without adapters the head alone is trained. ``more_tasks`` are trained with the same adapters
    at the same time, each with a head of its own.
    """

    trained_state: ClassVar[str] = "model"
    compared_unit: ClassVar[str] = "stays"

    kind: Literal["classify"]
    task: TaskSpec
    more_tasks: tuple[TaskSpec, ...] = ()
    split: CohortSplitSpec = CohortSplitSpec()
    base: EncoderModelSpec
    truncation: TruncationSpec = TruncationSpec()
    adapters: tuple[AnyAdapterSpec, ...] = ()
    head: HeadSpec = HeadSpec()
    loss: LossSpec = LossSpec()
    training: ClassifierTrainingSpec = ClassifierTrainingSpec()
    evaluation: ClassificationEvaluationSpec = ClassificationEvaluationSpec()

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """The main task and ``more_tasks``."""
        return (self.task, *self.more_tasks)

    @property
    def trains_base(self) -> bool:
        """Whether the weights of the base are trained too (full fine-tuning)."""
        return self.base.trainable

    @property
    def differential_privacy(self) -> DifferentialPrivacySpec | None:
        """Differential privacy of the training; None without."""
        return self.training.differential_privacy
