"""What ``run.json`` holds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from clinpeft.recipe import RecipeSpec

RunState = Literal["running", "finished", "failed", "interrupted"]

NonNegativeCount = Annotated[int, Field(ge=0)]
DurationSeconds = Annotated[float, Field(ge=0)]


class InputHashes(RecipeSpec):
    """What the run stands on; None where it is not known (yet).

    Attributes:
        source: SHA-256 over what was read.
        base: SHA-256 over the base model's files.
        tokenizer: SHA-256 over the tokenizer's files; two runs with the same one cut the same text into the same tokens.
        adapters: run an adapter came from -> SHA-256 of its weights.
        corpus_policy: version of the cleaning and deduplication, raised when they change their output.
    """

    source: str | None = None
    base: str | None = None
    tokenizer: str | None = None
    adapters: dict[str, str] = Field(default_factory=dict)
    corpus_policy: str | None = None


class Hardware(RecipeSpec):
    """What the run ran on.

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
    """All that is known of a run besides its recipe and its tables; None means not known (yet) and never 0.

    Attributes:
        format: of this file; a reader refuses one that it does not know.
        id: the run's, and its folder's name.
        name: of the recipe or the grid's cell; several runs may share one.
        kind: of the recipe.
        state: as last written; a run that was killed stays ``running`` here (see ``Run.state``).
        created, started, finished: first opened; last opened; ended in whatever way. With their time zone.
        command: as it was given.
        git_commit: of the code, where it runs from a checkout.
        versions: package -> version.
        hashes, hardware: see there.
        precision, precision_reason: of the frozen weights, and why that one.
        quantization: of a base in float8, how near it stayed to itself on the run's own texts; empty for one that is not quantized.
        kernels: whose norms and gates the base had.
        activations: whether the backward pass read what was kept or what was computed again, and why.
        compilation: whether norms and gates of the base were compiled, and why.
        counts: what was counted -> how many, such as ``notes.train``.
        base_parameters, trained_parameters: numbers of parameters.
        share: trained / base.
        tokens_seen: tokens that training has gone through, padding apart.
        training_seconds: in the training loop, over all attempts.
        energy_joules, energy_of: what the machine's meters counted meanwhile, of all that ran there, and of which parts; None where there are none.
        total_seconds: from the first room to the last, over all attempts.
        peak_memory_bytes: the most that the process had held when the run was recorded: of a GPU what was allocated on it, else the resident set.
        liveness: the proof that each adapter did what was intended (``adapters.Liveness``).
        private: of a run with differential privacy, what was asked and what was spent (``training.accounted``); this file is none of what may leave.
        baselines_seconds, features_seconds: spent on trivial baselines, and on reading what is remembered of the notes, where that was done here.
        files: file of the run's folder -> SHA-256 when the run finished; empty for a run of an older version.
        notices: what the user should know: an option that was cut to what the base has, a split that is empty.
        error: why the run stopped, for one that failed or was interrupted.
    """

    format: Literal[1] = 1
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
    share: Annotated[float, Field(ge=0)] | None = None  # above 1 where a toy base is smaller than its adapter
    tokens_seen: NonNegativeCount | None = None
    training_seconds: DurationSeconds | None = None
    energy_joules: Annotated[float, Field(ge=0)] | None = None
    energy_of: str = ""
    total_seconds: DurationSeconds | None = None
    peak_memory_bytes: NonNegativeCount | None = None
    liveness: dict[str, Any] | None = None
    private: dict[str, Any] | None = None
    baselines_seconds: DurationSeconds | None = None
    features_seconds: DurationSeconds | None = None
    files: dict[str, str] = Field(default_factory=dict)
    notices: tuple[str, ...] = ()
    error: RunFailure | None = None
