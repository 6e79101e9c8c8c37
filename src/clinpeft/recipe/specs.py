"""What a recipe can say: frozen specs, one a section, and one class a kind of run.

A spec holds names and options only; the rooms give the names their meaning (``SOURCES``, ``METHODS``, ``OBJECTIVES`` ...).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import pydantic
from pydantic import Field

from clinpeft.recipe.privacy import DifferentialPrivacySpec, PrivacySpec
from clinpeft.recipe.spec import RecipeSpec, UnitFraction


class SourceSpec(RecipeSpec):
    """Where the notes come from.

    Attributes:
        name: a key of ``sources.SOURCES``.
        path: file or folder; ``$VARIABLES`` are expanded, a relative path starts at the recipe's folder.
        columns: our column -> theirs, for sources without a fixed layout (``files``).
        parts: which parts to read, where a source has several (``discharge``, ``radiology``; note categories for MIMIC-III). Empty: all.
        max_bad_fraction: the share of rows that may be unreadable before reading stops.
        subjects: how many people the ``synthetic`` hospital invents.
        shape: the data set in whose layout it does so.
        seed: of its invention; the same seed gives the same people.
    """

    name: str
    path: Path | None = None
    columns: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    parts: tuple[str, ...] = ()
    max_bad_fraction: UnitFraction = 0.01
    subjects: Annotated[int, Field(gt=0)] = 200
    shape: Literal["mimic-iii", "mimic-iv"] = "mimic-iv"
    seed: int = 1234


class CorpusSpec(RecipeSpec):
    """How notes become text to learn from.

    Attributes:
        deidentification: what becomes of de-identification marks: ``keep``; ``strip-brackets`` (the paper's code: the two brackets become
            spaces, line ends too, runs of spaces one); ``typed-tokens`` (``[**First Name 12**]`` becomes ``[NAME]``, and so on).
        deduplicate: ``none``, ``exact`` or ``near`` (exact, then MinHash).
        near_threshold: estimated Jaccard similarity of word 5-grams from which two notes are near duplicates.
        min_characters: shorter notes are dropped, and counted.
        categories: keep only these note categories. Empty: all.
    """

    deidentification: Literal["keep", "strip-brackets", "typed-tokens"] = "typed-tokens"
    deduplicate: Literal["none", "exact", "near"] = "near"
    near_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    min_characters: Annotated[int, Field(ge=1)] = 1
    categories: tuple[str, ...] = ()


class SplitFractionsSpec(RecipeSpec):
    """Shares of the splits, which sum to 1, and the seed of the draw: its own, so that runs with other seeds learn from and ask the same people."""

    train: UnitFraction = 0.7
    tuning: UnitFraction = 0.1
    held_out: UnitFraction = 0.2
    seed: int = 1234

    @pydantic.model_validator(mode="after")
    def _check_fraction_sum(self) -> Self:
        if abs(self.train + self.tuning + self.held_out - 1) > 1e-9:
            raise ValueError(
                f"train + tuning + held_out = {self.train + self.tuning + self.held_out:g}, and must be 1"
            )
        return self


class SplitSpec(SplitFractionsSpec):
    """Who is learned from and who is asked.

    Attributes:
        by: ``subject``; ``note`` only to reproduce the paper, whose people straddle its splits.
        train, tuning, held_out: fractions that sum to 1.
        seed: of the draw.
    """

    by: Literal["subject", "note"] = "subject"


class CohortSplitSpec(SplitFractionsSpec):
    """Who is learned from and who is asked, always whole subjects.

    Attributes:
        by: ``subject``, by a hash of the subject and the seed; ``year_group`` (the data set's axis of real time) or ``site``: the groups named
            below are tuning and held out, the rest is training.
        train, tuning, held_out: fractions that sum to 1; of those by group, ``tuning / (train + tuning)`` of the rest where no group is tuning.
        tuning_groups, held_out_groups: groups of stays; no held-out group named: the last in alphabetical order, which for years is the latest.
        seed: of the draw; with that of an adapter's corpus, nobody the adapter has read is held out.
    """

    by: Literal["subject", "year_group", "site"] = "subject"
    tuning_groups: tuple[str, ...] = ()
    held_out_groups: tuple[str, ...] = ()


class TaskSpec(RecipeSpec):
    """The clinical question.

    Attributes:
        name: a key of ``cohorts.TASKS``.
        sections: what of the discharge summary is read: ``admission`` cuts out the eight sections known at admission, ``core-2021`` does so with the
            published cutter, ``all`` the whole note, which a question at admission refuses and one at discharge always reads.
        ventilation: how "prolonged" is measured: ``clinical-xlnet`` (span of at least 7 days, 6 h grace, its exclusions) or ``summed``.
        code_system: of ``icd_coding``; empty: the one that the data uses most.
        min_label_count: classes with fewer training stays are left out of the label space; 0 keeps all.
        compat: ``core-2021`` reproduces the published builder with its bugs; empty: corrected.
        several: of ``note_category``, what of a text filed under several: its ``rarest`` one is asked, or it is left out (``drop``).
        labels: of ``given``, the question that a file asks: a MEDS label file with ``boolean_value``, or a folder of them, as ACES writes them.
        subject_lists: folder with ``train``, ``tuning`` (or ``val``) and ``held_out`` (or ``test``) lists of subject ids, instead of the hash split.
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
        precision: of the frozen weights and of the computation; ``auto`` takes bfloat16 where the processor has it, else float32.
        quantization: of the frozen linear layers inside the blocks; ``float8`` keeps a weight in one byte, with a scale a row, and computes in
            ``precision``. The run begins only if the base still says what it said, on at most 32 of its tuning texts.
        quantization_limit: by how much float8 may raise their perplexity, as a share (``adapt``), or lower the mean cosine of their vectors to those
            before from 1 (``classify``, ``embed``).
        kernels: of norms and gates: PyTorch's, or those of liger, for LLaMA, Mistral, Qwen2, Qwen3 and Gemma 2 on a CUDA device; needs
            the extra ``gpu``.
    """

    path: Path
    max_tokens: Annotated[int, Field(ge=8)] = 512
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["none", "float8"] = "none"
    quantization_limit: Annotated[float, Field(ge=0)] = 0.01
    kernels: Literal["torch", "liger"] = "torch"


class LanguageModelSpec(PretrainedModelSpec):
    """The frozen model that learns the language of notes.

    Attributes:
        path, max_tokens, precision, quantization, quantization_limit, kernels: as for every model.
        overflow: ``window`` cuts a long note into windows and uses all of it; ``truncate`` keeps the first (the paper: 128 tokens).
    """

    overflow: Literal["window", "truncate"] = "window"


class EncoderModelSpec(PretrainedModelSpec):
    """The model that reads a question's notes.

    Attributes:
        path, max_tokens, precision, quantization, quantization_limit, kernels: as for every model.
        trainable: full fine-tuning of the whole model, in float32; without it every weight of the base stays as it is.
    """

    trainable: bool = False


class TruncationSpec(RecipeSpec):
    """What of a note longer than ``base.max_tokens`` is read.

    Attributes:
        keep: ``head`` (the paper: the first 128 tokens), ``tail``, ``head-and-tail`` (half each), ``sections`` (whole sections by priority, as many
            as fit, in the order of the note) or ``windows`` (all of it, window by window, the logits of the windows pooled).
        sections: heading names, the most important first; sections that are not named come last, in the order of the note.
        overlap_tokens: between neighbouring windows.
        max_windows: of one note; what lies behind them is cut, and counted.
        pool: how the windows' logits become the note's.
    """

    keep: Literal["head", "tail", "head-and-tail", "sections", "windows"] = "head"
    sections: tuple[str, ...] = ()
    overlap_tokens: Annotated[int, Field(ge=0)] = 32
    max_windows: Annotated[int, Field(ge=1)] = 8
    pool: Literal["mean", "max"] = "mean"


class HeadSpec(RecipeSpec):
    """What answers: one linear layer on a pooled vector, in float32.

    Attributes:
        pooling: where a sequence's vector is read: ``last`` token, ``cls`` token, ``mean`` of all tokens or, number by number, their
            ``max``, which keeps a sign of a few words that a long note's mean thins out; ``auto`` takes the family's own.
        dropout: on the pooled vector, while training.
    """

    pooling: Literal["auto", "last", "cls", "mean", "max"] = "auto"
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class LossSpec(RecipeSpec):
    """What is minimised: cross-entropy over the classes, or binary cross-entropy, averaged over labels, where all that apply are asked.

    Attributes:
        class_weights: ``balanced`` weighs class k by n / (K n_k), as the paper's code does on one-of-several questions; it wrecks calibration.
        shuffled_labels: deals the answers of the training and the tuning split out anew; a control, which must end at chance on the held-out split.
    """

    class_weights: Literal["none", "balanced"] = "none"
    shuffled_labels: bool = False


class AdapterSpec(RecipeSpec):
    """One adapter of the stack, first to last.

    Attributes:
        method: which of the methods below.
        from_run: the run (id or name) whose adapter is loaded, ``RUN/NAME`` where it has several; empty for a new one.
        trainable: false freezes it.
        merged: fold a frozen adapter into the base before anything else is attached.
        active: false leaves it out of the forward pass, as the published code did with its second adapter; for comparison only.
    """

    from_run: str = ""
    trainable: bool = True
    merged: bool = False
    active: bool = True


DropoutProbability = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveCount = Annotated[int, Field(ge=1)]


class LoraSpec(AdapterSpec):
    """Low-rank update W + (alpha / rank) B A (Hu et al. 2021, equation 3); ``rslora`` scales by alpha / sqrt(rank); ``dora`` also learns the
    magnitude of W's columns.

    Attributes:
        rank: rows of A and columns of B.
        alpha: numerator of the scale of the update.
        dropout: on the input of A, while training.
        targets: suffixes of module names; empty: the family's own (query and value).
    """

    method: Literal["lora", "rslora", "dora"] = "lora"
    rank: PositiveCount = 8
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: DropoutProbability = 0.0
    targets: tuple[str, ...] = ()


class Ia3Spec(AdapterSpec):
    """IA3 (Liu et al. 2022): learned rescaling of keys, values and the feed-forward activation. Identity when fresh."""

    method: Literal["ia3"] = "ia3"


class AdaptionPromptSpec(AdapterSpec):
    """LLaMA-Adapter (Zhang et al. 2023): prompt vectors in each of the last layers, behind a zero-initialised gate.

    Attributes:
        tokens: prompt vectors a layer.
        layers: how many of the last layers; more than the base has means all of them, and the run says so.
    """

    method: Literal["adaption-prompt"] = "adaption-prompt"
    tokens: PositiveCount = 10
    layers: PositiveCount = 30


class PrefixSpec(AdapterSpec):
    """Prefix tuning (Li and Liang 2021): learned keys and values before those of the text, in every layer.

    Attributes:
        tokens: learned keys and values a layer.
        projection: whether an MLP makes them.
    """

    method: Literal["prefix"] = "prefix"
    tokens: PositiveCount = 20
    projection: bool = False


class PromptSpec(AdapterSpec):
    """Prompt tuning (Lester et al. 2021): learned input vectors before the text.

    Attributes:
        tokens: learned vectors.
        init: what they start from: random numbers, or the embeddings of a text.
        init_text: that text, repeated or cut to the number of tokens.
    """

    method: Literal["prompt"] = "prompt"
    tokens: PositiveCount = 15
    init: Literal["random", "text"] = "random"
    init_text: str = "Finish this clinical note: "


class PTuningSpec(AdapterSpec):
    """P-tuning (Liu et al. 2021): input vectors before the text, re-parameterised by an encoder.

    Attributes:
        tokens: learned vectors.
        encoder: a two-layer MLP, as in the reference, or an LSTM.
        hidden: width of the encoder.
        layers: of the LSTM.
        dropout: of the LSTM.
    """

    method: Literal["p-tuning"] = "p-tuning"
    tokens: PositiveCount = 20
    encoder: Literal["mlp", "lstm"] = "mlp"
    hidden: PositiveCount = 256
    layers: PositiveCount = 4
    dropout: DropoutProbability = 0.0


AnyAdapterSpec = Annotated[
    LoraSpec | Ia3Spec | AdaptionPromptSpec | PrefixSpec | PromptSpec | PTuningSpec,
    Field(discriminator="method"),
]


class OptimizationSpec(RecipeSpec):
    """How anything is trained.

    Attributes:
        learning_rate: peak of the schedule.
        epochs: passes over the training split.
        max_steps: an upper bound on optimiser steps; 0 for none.
        micro_batch_tokens: tokens per forward pass; changes memory and speed, not the result.
        activations: what the backward pass of a layer reads is kept, or computed again (``recompute``), which takes a third more time and the memory
            of one layer instead of all; ``auto`` keeps it unless a micro-batch would not fit the device. Not the result either.
        compilation: ``auto`` compiles norms and gates of a decoder in long runs, where a trial before the first step says that it pays.
        warmup_fraction: share of the steps over which the learning rate rises linearly.
        schedule: after the warm-up.
        weight_decay: AdamW's, on all trained parameters.
        clip_norm: largest gradient norm.
        evaluations: how often in the run the tuning split is measured, evenly spaced.
        patience: stop after so many evaluations without improvement; 0 never stops early.
        checkpoints: how often in the run a checkpoint is written, evenly spaced.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Annotated[int, Field(ge=0)] = 0
    micro_batch_tokens: PositiveCount = 4096
    activations: Literal["auto", "keep", "recompute"] = "auto"
    compilation: Literal["auto", "never"] = "auto"
    warmup_fraction: UnitFraction = 0.06
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    evaluations: Annotated[int, Field(ge=1)] = 4
    patience: Annotated[int, Field(ge=0)] = 0
    checkpoints: Annotated[int, Field(ge=1)] = 10


class TrainingSpec(OptimizationSpec):
    """How an adapter learns language.

    Attributes:
        objective: a key of ``training.OBJECTIVES``; ``auto`` takes the family's own (causal for decoders, masked for encoders).
        batch_tokens: tokens per optimiser step, over all micro-batches and processes.
        differential_privacy: differential privacy by subject, see below; none: without.
    """

    objective: Literal["auto", "causal-lm", "masked-lm"] = "auto"
    batch_tokens: PositiveCount = 8192
    differential_privacy: DifferentialPrivacySpec | None = None


class ClassifierTrainingSpec(OptimizationSpec):
    """How head and adapters learn to answer.

    Attributes:
        learning_rate: peak of the schedule, of the adapters, or of the model where it is trainable.
        head_learning_rate: of the head; 0: the same.
        head_epochs: passes in which the head alone learns first, on vectors read once: linear probing, then fine-tuning (Kumar et al. 2022, arXiv
            2202.10054), which spares the adapters the steps in which a random head tells them nothing; 0: none.
        epochs: passes over the training split.
        batch_notes: notes per optimiser step, over all micro-batches and processes.
        select_by: the weights kept are the best on the tuning split by its ``loss`` or the question's ``metric``; ``last`` keeps the last.
        differential_privacy: differential privacy by subject, see below; none: without.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    head_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    head_epochs: Annotated[float, Field(ge=0)] = 0.0
    epochs: Annotated[float, Field(gt=0)] = 3.0
    batch_notes: PositiveCount = 16
    select_by: Literal["loss", "metric", "last"] = "loss"
    differential_privacy: DifferentialPrivacySpec | None = None


class EvaluationSpec(RecipeSpec):
    """How results are measured.

    Attributes:
        resamples: bootstrap resamples of subjects.
        level: of the interval.
        max_notes: score at most so many notes a split, the same ones every time; 0 for all.
    """

    resamples: Annotated[int, Field(ge=100)] = 1000
    level: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    max_notes: Annotated[int, Field(ge=0)] = 0


class ClassificationEvaluationSpec(RecipeSpec):
    """How answers are scored.

    Attributes:
        resamples: bootstrap resamples of subjects.
        level: of the interval.
        compat: ``clinical-peft`` also gives the AUROC of the paper's code (arXiv 2307.03042: softmax over all labels, labels of one class only
            skipped, one-vs-one where there are several classes).
        recalibration: fitted on the tuning split and applied to the probabilities of all.
        min_positives: labels with fewer held-out positives are left out of macro averages, and counted.
        smallest_cell: groups of fewer subjects are not told apart.
        subgroups: whether results are also given by age, sex, race and so on.
        baselines: whether the trivial baselines are trained and scored beside.
    """

    resamples: Annotated[int, Field(ge=100)] = 1000
    level: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    compat: Literal["", "clinical-peft"] = ""
    recalibration: Literal["none", "temperature", "isotonic"] = "none"
    min_positives: PositiveCount = 1
    smallest_cell: Annotated[int, Field(ge=1)] = 10
    subgroups: bool = True
    baselines: bool = True


class Recipe(RecipeSpec):
    """All that is needed to repeat a run; what every kind of run has.

    Attributes:
        kind: which verb the recipe is for, and so which tables it has.
        name: a name to find the run by; empty: only its id.
        seed: of every random draw that no other key seeds.
    """

    trained_state: ClassVar[str] = "adapted"
    compared_unit: ClassVar[str] = "tokens"

    kind: str
    name: str = ""
    seed: int = 1234
    source: SourceSpec

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """Tasks of the run; empty for a kind that has none."""
        return ()

    @property
    def trains_base(self) -> bool:
        """Whether the weights of the base itself are trained."""
        return bool(getattr(getattr(self, "base", None), "trainable", False))

    @property
    def differential_privacy(self) -> DifferentialPrivacySpec | None:
        """Differential privacy of the training; None without."""
        return getattr(getattr(self, "training", None), "differential_privacy", None)


class AdaptRecipe(Recipe):
    """Domain-adaptive pretraining: a language model learns the language of notes."""

    kind: Literal["adapt"]
    corpus: CorpusSpec = CorpusSpec()
    split: SplitSpec = SplitSpec()
    base: LanguageModelSpec
    adapters: Annotated[tuple[AnyAdapterSpec, ...], Field(min_length=1)]
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    privacy: PrivacySpec = PrivacySpec()


class CohortRecipe(Recipe):
    """Who is asked what, when, with which answer."""

    kind: Literal["cohort"]
    task: TaskSpec
    split: CohortSplitSpec = CohortSplitSpec()


class ClassifyRecipe(Recipe):
    """A clinical question answered from notes: a base, a stack of adapters, a head.

    No adapter trains the head alone. ``more_tasks`` are asked of the same adapters at the same time, each with a head of its own.
    """

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
    trained_state: ClassVar[str] = "model"
    compared_unit: ClassVar[str] = "stays"

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """Tasks of the run, the first one first."""
        return (self.task, *self.more_tasks)
