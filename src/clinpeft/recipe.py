"""A run, said in full: TOML in, frozen specs out, ``[grid]`` expanded to one recipe a run.

A recipe holds names and options only; the rooms give the names their meaning (``SOURCES``, ``METHODS``, ``OBJECTIVES`` ...). A key that no
spec knows stops at once with the nearest known one.
"""

from __future__ import annotations

import difflib
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from clinpeft.errors import RecipeError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Json = dict[str, Any]


class Spec(BaseModel):
    """A frozen part of a recipe; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SourceSpec(Spec):
    """Where the notes come from.

    Attributes:
        name: a key of ``sources.SOURCES``.
        path: file or folder; ``$VARIABLES`` are expanded, a relative path starts at the recipe's folder.
        columns: our column -> theirs, for sources without a fixed layout (``files``).
        parts: which parts to read, where a source has several (``discharge``, ``radiology``; note categories for MIMIC-III). Empty: all.
        max_bad_fraction: the share of rows that may be unreadable before reading stops.
        subjects, shape, seed: how many people the ``synthetic`` hospital invents, in the layout of which data set, from which seed.
    """

    name: str
    path: Path | None = None
    columns: dict[str, str] = {}
    parts: tuple[str, ...] = ()
    max_bad_fraction: Fraction = 0.01
    subjects: Annotated[int, Field(gt=0)] = 200
    shape: Literal["mimic-iii", "mimic-iv"] = "mimic-iv"
    seed: int = 1234


class CorpusSpec(Spec):
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


class SplitSpec(Spec):
    """Who is learned from and who is asked.

    Attributes:
        by: ``subject``; ``note`` only to reproduce the paper, whose people straddle its splits.
        train, tuning, held_out: fractions that sum to 1.
    """

    by: Literal["subject", "note"] = "subject"
    train: Fraction = 0.7
    tuning: Fraction = 0.1
    held_out: Fraction = 0.2

    @pydantic.model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(self.train + self.tuning + self.held_out - 1) > 1e-9:
            raise ValueError(f"train + tuning + held_out = {self.train + self.tuning + self.held_out:g}, and must be 1")
        return self


class TaskSpec(Spec):
    """The clinical question.

    Attributes:
        name: a key of ``cohorts.TASKS``.
        sections: what of the discharge summary is read: ``admission`` cuts out the eight sections known at admission, ``core-2021`` does so with the
            published cutter, ``all`` reads the whole note.
        ventilation: how "prolonged" is measured: ``clinical-xlnet`` (span of at least 7 days, 6 h grace, its exclusions) or ``summed``.
        code_system: of ``icd_coding``; empty: the one that the data uses most.
        min_label_count: classes with fewer training stays are left out of the label space; 0 keeps all.
        compat: ``core-2021`` reproduces the published builder with its bugs; empty: corrected.
        subject_lists: folder with ``train``, ``tuning`` (or ``val``) and ``held_out`` (or ``test``) lists of subject ids, instead of the hash split.
    """

    name: str
    sections: Literal["admission", "core-2021", "all"] = "admission"
    ventilation: Literal["clinical-xlnet", "summed"] = "clinical-xlnet"
    code_system: Literal["", "icd9", "icd10"] = ""
    min_label_count: Annotated[int, Field(ge=0)] = 0
    compat: Literal["", "core-2021"] = ""
    subject_lists: Path | None = None


class BaseSpec(Spec):
    """The frozen model.

    Attributes:
        path: a local folder with config, tokenizer and safetensors.
        max_tokens: the longest sequence given to the model, special tokens included.
        overflow: ``window`` cuts a long note into windows and uses all of it; ``truncate`` keeps the first (the paper: 128 tokens).
        precision: of the frozen weights and of the computation; ``auto`` takes bfloat16 where the processor has it, else float32.
    """

    path: Path
    max_tokens: Annotated[int, Field(ge=8)] = 512
    overflow: Literal["window", "truncate"] = "window"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class AdapterSpec(Spec):
    """One adapter of the stack, first to last.

    Attributes:
        from_run: the run (id or name) whose adapter is loaded; empty for a new one.
        trainable: false freezes it.
    """

    from_run: str = ""
    trainable: bool = True


Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]


class LoraSpec(AdapterSpec):
    """Low-rank update W + (alpha / rank) B A (Hu et al. 2021, equation 3); ``rslora`` scales by alpha / sqrt(rank); ``dora`` also learns the
    magnitude of W's columns. ``targets`` are suffixes of module names; empty: the family's own (query and value)."""

    method: Literal["lora", "rslora", "dora"] = "lora"
    rank: Count = 8
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Dropout = 0.0
    targets: tuple[str, ...] = ()


class Ia3Spec(AdapterSpec):
    """IA3 (Liu et al. 2022): learned rescaling of keys, values and the feed-forward activation. Identity when fresh."""

    method: Literal["ia3"] = "ia3"


class AdaptionPromptSpec(AdapterSpec):
    """LLaMA-Adapter (Zhang et al. 2023): ``tokens`` prompt vectors in each of the last ``layers`` layers behind a zero-initialised gate.
    More layers than the base has means all of them; the run says so."""

    method: Literal["adaption-prompt"] = "adaption-prompt"
    tokens: Count = 10
    layers: Count = 30


class PrefixSpec(AdapterSpec):
    """Prefix tuning (Li and Liang 2021): ``tokens`` learned keys and values before every layer; ``projection`` makes them with an MLP."""

    method: Literal["prefix"] = "prefix"
    tokens: Count = 20
    projection: bool = False


class PromptSpec(AdapterSpec):
    """Prompt tuning (Lester et al. 2021): ``tokens`` learned input vectors, started at random or from the embeddings of ``init_text``."""

    method: Literal["prompt"] = "prompt"
    tokens: Count = 15
    init: Literal["random", "text"] = "random"
    init_text: str = "Finish this clinical note: "


class PTuningSpec(AdapterSpec):
    """P-tuning (Liu et al. 2021): ``tokens`` input vectors re-parameterised by an encoder of ``hidden`` width and ``layers`` layers.
    ``layers`` and ``dropout`` are used by the LSTM; the MLP of the reference has two layers and none."""

    method: Literal["p-tuning"] = "p-tuning"
    tokens: Count = 20
    encoder: Literal["mlp", "lstm"] = "mlp"
    hidden: Count = 256
    layers: Count = 4
    dropout: Dropout = 0.0


AnyAdapterSpec = Annotated[LoraSpec | Ia3Spec | AdaptionPromptSpec | PrefixSpec | PromptSpec | PTuningSpec, Field(discriminator="method")]


class TrainingSpec(Spec):
    """How the adapters are trained.

    Attributes:
        objective: a key of ``training.OBJECTIVES``; ``auto`` takes the family's own (causal for decoders, masked for encoders).
        learning_rate: peak of the schedule.
        epochs: passes over the training split.
        max_steps: an upper bound on optimiser steps; 0 for none.
        batch_tokens: tokens per optimiser step, over all micro-batches and processes.
        micro_batch_tokens: tokens per forward pass; changes memory and speed, not the result.
        warmup_fraction: share of the steps over which the learning rate rises linearly.
        schedule: after the warm-up.
        weight_decay: AdamW's, on all trained parameters.
        clip_norm: largest gradient norm.
        evaluations: how often in the run the tuning perplexity is measured, evenly spaced.
        patience: stop after so many evaluations without improvement; 0 never stops early.
        checkpoints: how often in the run a checkpoint is written, evenly spaced.
    """

    objective: Literal["auto", "causal-lm", "masked-lm"] = "auto"
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Annotated[int, Field(ge=0)] = 0
    batch_tokens: Count = 8192
    micro_batch_tokens: Count = 4096
    warmup_fraction: Fraction = 0.06
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    evaluations: Annotated[int, Field(ge=1)] = 4
    patience: Annotated[int, Field(ge=0)] = 0
    checkpoints: Annotated[int, Field(ge=1)] = 10


class EvaluationSpec(Spec):
    """How results are measured.

    Attributes:
        resamples: bootstrap resamples of subjects.
        level: of the interval.
        max_notes: score at most so many notes a split, drawn by hash; 0 for all.
    """

    resamples: Annotated[int, Field(ge=100)] = 1000
    level: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    max_notes: Annotated[int, Field(ge=0)] = 0


class Recipe(Spec):
    """All that is needed to repeat a run; what every kind of run has."""

    kind: str
    name: str = ""
    seed: int = 1234
    source: SourceSpec


class AdaptRecipe(Recipe):
    """Domain-adaptive pretraining: a language model learns the language of notes."""

    kind: Literal["adapt"]
    corpus: CorpusSpec = CorpusSpec()
    split: SplitSpec = SplitSpec()
    base: BaseSpec
    adapters: Annotated[tuple[AnyAdapterSpec, ...], Field(min_length=1)]
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()


class CohortRecipe(Recipe):
    """Who is asked what, when, with which answer."""

    kind: Literal["cohort"]
    task: TaskSpec
    split: SplitSpec = SplitSpec()


RECIPES: dict[str, type[Recipe]] = {"adapt": AdaptRecipe, "cohort": CohortRecipe}


class Cell(Spec):
    """One run of a grid: its name, its recipe, and what was published for it (column -> value as printed)."""

    name: str
    recipe: pydantic.SerializeAsAny[Recipe]
    published: dict[str, str | int | float] = {}


Environment = Mapping[str, str]


def read(path: Path, overrides: Sequence[str] = (), environment: Environment | None = None) -> list[Cell]:
    """The runs that a recipe file asks for: one without ``[grid]``, one a cell with it.

    Args:
        path: the TOML file.
        overrides: ``key=value`` pairs as given to ``--set``, applied last, also over the grid; relative paths in them start at the working folder.
        environment: for ``$VARIABLES`` in paths.

    Raises:
        RecipeError: the file cannot be read, a key is unknown, a value does not fit.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"this recipe cannot be read: {error}", place=str(path), way_out="give the path of a TOML file") from error
    grid = document.pop("grid", {})
    cells = []
    for name, changes, published in _cells(grid, str(path)):
        filled = _with(document, changes, str(path))
        filled = _anchored(filled, path.parent.resolve())
        filled = _with(filled, _anchored_pairs(overrides), "--set")
        filled = _expanded(filled, environment or {}, str(path))
        cells.append(Cell(name=name, recipe=validated(filled, str(path)), published=published))
    return cells


def validated(document: Json, place: str) -> Recipe:
    """A recipe of the class that its ``kind`` names, from plain values.

    Raises:
        RecipeError: with the nearest known key when one is unknown.
    """
    kind = document.get("kind")
    if kind not in RECIPES:
        near = difflib.get_close_matches(str(kind), RECIPES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(RECIPES)}"
        raise RecipeError(f"kind = {kind!r} is no kind of run", place=place, way_out=hint)
    try:
        return RECIPES[kind].model_validate(document)
    except pydantic.ValidationError as error:
        raise _explained(error, place) from None


def as_toml(recipe: Recipe) -> str:
    """The resolved recipe, every default written out; reading it back gives an equal recipe."""
    plain = recipe.model_dump(mode="json", exclude_none=True)
    tops = {key: value for key, value in plain.items() if not isinstance(value, dict | list)}
    lines = [f"{key} = {_toml_value(value)}" for key, value in tops.items()]
    for key, value in plain.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *(f"{name} = {_toml_value(v)}" for name, v in value.items())]
        elif isinstance(value, list):
            for entry in value:
                lines += ["", f"[[{key}]]", *(f"{name} = {_toml_value(v)}" for name, v in entry.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(entry) for entry in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(key)} = {_toml_value(v)}" for key, v in value.items()) + "}"
    return _quoted(str(value))


def _quoted(text: str) -> str:
    escaped = "".join({'"': '\\"', "\\": "\\\\"}.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
    return f'"{escaped}"'


def _cells(grid: Json, place: str) -> list[tuple[str, Json, Json]]:
    """(name, changes, published) for each point of the product of the axes; an axis of plain values sets the key it is named after, an axis of
    tables sets all keys of the chosen table, but for ``name`` and ``published``."""
    axes: list[list[tuple[str, Json, Json]]] = []
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise RecipeError(f"grid axis {key!r} is not a list of choices", place=f"{place}: [grid]", way_out='write "key" = [first, second]')
        axes.append([_choice(key, choice) for choice in choices])
    points = itertools.product(*axes)
    return [_joined(point) for point in points]


def _choice(key: str, choice: Any) -> tuple[str, Json, Json]:
    if not isinstance(choice, dict):
        return f"{key}={choice}", {key: choice}, {}
    changes = {name: value for name, value in choice.items() if name not in ("name", "published")}
    return choice.get("name", key), changes, choice.get("published", {})


def _joined(point: Sequence[tuple[str, Json, Json]]) -> tuple[str, Json, Json]:
    changes = {key: value for _, part, _ in point for key, value in part.items()}
    published = {key: value for _, _, part in point for key, value in part.items()}
    return " · ".join(name for name, _, _ in point), changes, published


def _with(document: Json, changes: Json, place: str) -> Json:
    """A copy with each dotted key set; ``adapters.0.rank`` counts from 0."""
    filled: Json = _copied(document)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        at: Any = filled
        for part in path:
            at = at[_index(at, part, dotted, place)] if isinstance(at, list) else at.setdefault(part, {})
        if isinstance(at, list):
            at[_index(at, last, dotted, place)] = _copied(value)
        elif isinstance(at, dict):
            at[last] = _copied(value)
        else:
            raise RecipeError(f"{dotted!r} goes through a plain value", place=place, way_out="name a key of a table")
    return filled


def _index(entries: list[Any], part: str, dotted: str, place: str) -> int:
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    raise RecipeError(f"{dotted!r}: there is no entry {part!r}", place=place, way_out=f"count from 0; the list has {len(entries)} entries")


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    return [_copied(entry) for entry in value] if isinstance(value, list) else value


def _anchored_pairs(overrides: Sequence[str]) -> Json:
    """``key=value`` pairs: a TOML value, or else the text itself; paths start at the working folder."""
    changes: Json = {}
    for pair in overrides:
        key, separator, text = pair.partition("=")
        if not separator or not key.strip():
            raise RecipeError(f"{pair!r} is not key=value", place="--set", way_out="write --set training.learning_rate=1e-4")
        try:
            value: Any = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        is_path = key.strip().split(".")[-1] == "path" and isinstance(value, str) and not value.startswith("$")
        changes[key.strip()] = str(Path(value).resolve()) if is_path else value
    return changes


def _anchored(document: Json, folder: Path) -> Json:
    """Relative ``path`` values made absolute at the recipe's folder."""
    return {key: _anchored_value(key, value, folder) for key, value in document.items()}


def _anchored_value(key: str, value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return _anchored(value, folder)
    if key == "path" and isinstance(value, str) and not value.startswith(("$", "~", "/")):
        return str((folder / value).resolve())
    return value


def _expanded(document: Json, environment: Environment, place: str) -> Json:
    return {key: _expanded_value(key, value, environment, place) for key, value in document.items()}


def _expanded_value(key: str, value: Any, environment: Environment, place: str) -> Any:
    if isinstance(value, dict):
        return _expanded(value, environment, place)
    if key != "path" or not isinstance(value, str):
        return value

    def known(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in environment:
            way_out = f"export {name}=/a/folder, or give --set"
            raise RecipeError(f"the variable ${name} is not set", place=f"{place}: {key} = {value!r}", way_out=way_out)
        return environment[name]

    return str(Path(re.sub(r"\$\{?(\w+)\}?", known, value)).expanduser())


def _explained(error: pydantic.ValidationError, place: str) -> RecipeError:
    """The first complaint of pydantic in the house's words."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part not in _METHOD_TAGS) or "recipe"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), sorted(_known_keys()), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see docs/recipes.md for the keys"
        return RecipeError(f"unknown key {where!r}", place=place, way_out=hint)
    shown = "" if isinstance(first.get("input"), dict) else f" = {first.get('input')!r}"
    return RecipeError(f"{where}{shown}: {first['msg']}", place=place, way_out="see docs/recipes.md for the values that fit")


def _known_keys() -> set[str]:
    keys = set()
    todo: list[type[Spec]] = [Spec]
    while todo:
        spec = todo.pop()
        keys |= set(spec.model_fields)
        todo += spec.__subclasses__()
    return keys


def _method_tags() -> frozenset[str]:
    specs = get_args(get_args(AnyAdapterSpec)[0])
    return frozenset(tag for spec in specs for tag in get_args(spec.model_fields["method"].annotation))


_METHOD_TAGS = _method_tags()
