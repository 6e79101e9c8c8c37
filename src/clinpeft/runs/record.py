"""The schema of ``run.json``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from clinpeft.recipe import RecipeSpec

RunState = Literal["running", "finished", "failed", "interrupted"]

NonNegativeCount = Annotated[int, Field(ge=0)]
DurationSeconds = Annotated[float, Field(ge=0)]

RUN_RECORD_FORMAT: Literal[2] = 2
"""Version of the schema; 1 was written by clinpeft 0.6 and older."""

RENAMED_FIELDS = {
    "private": "differential_privacy",
    "share": "trained_fraction",
    "quantisation": "quantization",
    "error.problem": "error.message",
    "error.place": "error.location",
    "error.way_out": "error.hint",
}
"""Field of format 1 -> its name in format 2; all other fields are the same in both."""


class InputHashes(RecipeSpec):
    """Hashes of the inputs of a run; None where one is not known (yet).

    Attributes:
        source: SHA-256 over what was read.
        base: SHA-256 over the base model's files.
        tokenizer: SHA-256 over the tokenizer's files; two runs with the same one cut the same text
            into the same tokens.
        adapters: run that an adapter came from -> SHA-256 of its weights.
        corpus_policy: version of cleaning and deduplication, raised when their output changes.
    """

    source: str | None = None
    base: str | None = None
    tokenizer: str | None = None
    adapters: dict[str, str] = Field(default_factory=dict)
    corpus_policy: str | None = None


class Hardware(RecipeSpec):
    """The hardware of a run.

    Attributes:
        device: such as ``cpu`` or ``NVIDIA H200``.
        devices: how many of them were used.
        memory_bytes: of one device; None when not known.
        system: operating system and processor type.
    """

    device: str
    devices: NonNegativeCount = 1
    memory_bytes: NonNegativeCount | None = None
    system: str = ""


class RunFailure(RecipeSpec):
    """Why a run stopped: the class of the error, and its three parts."""

    kind: str
    message: str = ""
    location: str = ""
    hint: str = ""


class RunRecord(RecipeSpec):
    """All facts about a run besides its recipe and its tables.

    None means not known (yet) and never 0.

    Attributes:
        format: version of the schema.
        id: the run's, and its folder's name.
        name: of the recipe or the grid's cell; several runs may share one.
        kind: of the recipe.
        state: as last written; a run that was killed stays ``running`` here (see ``Run.state``).
        created, started, finished: first opened; last opened; ended in any way. With time zone.
        command: the command line.
        git_commit: of the code, where it runs from a checkout.
        versions: package -> version.
        hashes, hardware: see there.
        precision, precision_reason: of the frozen weights, and why that one.
        quantization: of a base in float8, how near its outputs are to those without quantization on
            the run's own texts; empty for a base that is not quantized.
        kernels: implementation of the norms and gates of the base.
        activations: whether the backward pass used stored or recomputed activations, and why.
        compilation: whether norms and gates of the base were compiled, and why.
        counts: quantity -> number, such as ``notes.train``.
        base_parameters, trained_parameters: numbers of parameters.
        trained_fraction: trained / base; above 1 where a toy base is smaller than its adapter.
        tokens_seen: tokens of training batches, without padding.
        training_seconds: in the training loop, over all attempts.
        energy_joules, energy_of: energy that the machine's meters counted meanwhile, of all
            processes, and of which components; None where there are no meters.
        total_seconds: of the whole workflow, over all attempts.
        peak_memory_bytes: peak memory of the process when the run was recorded: allocated memory of
            a GPU, else the resident set.
        liveness: evidence that each adapter changed and took part (``adapters.AdapterActivity``).
        differential_privacy: of a run with differential privacy, the requested and the spent
            budget; this file is never released.
        baselines_seconds, features_seconds: spent on trivial baselines, and on features of the
            notes that are cached, where they were computed in this run.
        files: file of the run's folder -> SHA-256 when the run finished; empty for a run of a
            version without checksums.
        notices: what the user should know: an option that was limited by the base, a split that is
            empty.
        error: why the run stopped, for one that failed or was interrupted.
    """

    # First field: a reader decides by it.
    format: Literal[2] = RUN_RECORD_FORMAT
    id: str
    name: str = ""
    kind: str
    state: RunState = "running"
    created: AwareDatetime
    started: AwareDatetime
    finished: AwareDatetime | None = None
    command: str = ""
    git_commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    hashes: InputHashes = InputHashes()
    hardware: Hardware | None = None
    precision: str | None = None
    precision_reason: str = ""
    quantization: str = ""
    kernels: str = ""
    activations: str = ""
    compilation: str = ""
    counts: dict[str, int] = Field(default_factory=dict)
    base_parameters: NonNegativeCount | None = None
    trained_parameters: NonNegativeCount | None = None
    trained_fraction: Annotated[float, Field(ge=0)] | None = None
    tokens_seen: NonNegativeCount | None = None
    training_seconds: DurationSeconds | None = None
    energy_joules: Annotated[float, Field(ge=0)] | None = None
    energy_of: str = ""
    total_seconds: DurationSeconds | None = None
    peak_memory_bytes: NonNegativeCount | None = None
    # A free dictionary: the schema belongs to the adapters package, which this one does not import.
    liveness: dict[str, Any] | None = None
    differential_privacy: dict[str, Any] | None = None
    baselines_seconds: DurationSeconds | None = None
    features_seconds: DurationSeconds | None = None
    files: dict[str, str] = Field(default_factory=dict)
    notices: tuple[str, ...] = ()
    error: RunFailure | None = None
