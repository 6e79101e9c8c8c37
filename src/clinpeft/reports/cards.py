"""The card of a model: a ``README.md`` with the metadata that hub and sentence-transformers read,
filled from what is known, silent on the rest."""

from __future__ import annotations

import json
from dataclasses import dataclass

from clinpeft.core.errors import UsageError
from clinpeft.recipe import AdapterSpec, AdaptRecipe, ClassifyRecipe, EmbedRecipe
from clinpeft.reports.adapters import render_adapter_card
from clinpeft.reports.formats import format_count, format_percent
from clinpeft.reports.tables import Estimate, ReportColumn, ReportTable, as_markdown_table
from clinpeft.runs import Run

HUB_LICENSE_NAMES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Gemma Terms of Use": "gemma"}
"""Licence of a backbone -> the hub's word for it; any other is ``other`` with its name."""

SENTENCE_TRANSFORMERS_USAGE = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({name})
questions = model.encode_query(["What narrows the aortic valve?"])
passages = model.encode_document(["Aortic stenosis is a narrowing of the aortic valve."])
print(model.similarity(questions, passages))
```"""

ENCODER_LIMITATIONS = (
    (
        "A vector says what texts are alike, not what is true: a finding and its negation can "
        "lie close together. See the negation rows of the results."
    ),
    "Not a medical device, and not validated for decisions about patients.",
    (
        "If it was trained on text about patients, it may have kept some of it: treat the "
        "weights as the data they were trained on."
    ),
)


@dataclass(frozen=True)
class EncoderCard:
    """What a card says; empty and None: it says nothing about it.

    Attributes:
        name: of the model.
        base_model: of the backbone, as on the hub.
        license: of the backbone, as in its row.
        pooling, is_normalized, dimension, max_tokens: how a text becomes a vector.
        query_prompt, document_prompt: what stands before a question and before what is searched.
        is_merged: whether the whole model is in the folder, or an adapter that needs its base.
        adapter: in words, such as ``LoRA, rank 16, alpha 32, on query and value``; empty: full
            fine-tuning.
        trained_parameters, base_parameters: how much was trained, of how much.
        training_data: in words: where it comes from, under which licence, how it was split.
        training: key -> value, such as loss, temperature, batch, learning rate, epochs, seed.
        training_pairs: of the training split.
        results: tables, with intervals.
        run_id: id of the run it was exported from.
        version: of this program.
        language: two letters.
    """

    name: str
    base_model: str
    license: str
    pooling: str
    is_normalized: bool
    dimension: int
    max_tokens: int
    query_prompt: str = ""
    document_prompt: str = ""
    is_merged: bool = True
    adapter: str = ""
    trained_parameters: int | None = None
    base_parameters: int | None = None
    training_data: str = ""
    training: tuple[tuple[str, str], ...] = ()
    training_pairs: int | None = None
    results: tuple[ReportTable, ...] = ()
    run_id: str = ""
    version: str = ""
    language: str = "en"


def has_model_card(run: Run) -> bool:
    """Whether a run has weights of its own to give away."""
    return isinstance(run.recipe, EmbedRecipe | AdaptRecipe) or (
        isinstance(run.recipe, ClassifyRecipe) and bool(run.recipe.adapters)
    )


def render_model_card(run: Run) -> str:
    """The card of a run, filled from its record.

    Raises:
        UsageError: the run has no weights of its own.
    """
    if not has_model_card(run):
        raise UsageError(
            f"run {run.id} has no adapter", location="card", hint="take a run that trained one"
        )
    return (
        _render_run_encoder_card(run, run.recipe)
        if isinstance(run.recipe, EmbedRecipe)
        else render_adapter_card(run)
    )


def _render_run_encoder_card(run: Run, recipe: EmbedRecipe) -> str:
    record = run.record
    embedding_config = json.loads((run.folder / "encoder.json").read_text(encoding="utf-8"))[
        "manner"
    ]
    dimension = next(
        (row["value"] for row in run.results.to_pylist() if row["name"] == "dimension"), None
    )
    training = recipe.training
    said = (
        ("objective", training.objective),
        ("temperature", f"{training.temperature:g}"),
        ("pairs a step", str(training.batch_pairs)),
        ("learning rate", f"{training.learning_rate:g}"),
        ("epochs", f"{training.epochs:g}"),
        ("seed", str(recipe.seed)),
    )
    return render_encoder_card(
        EncoderCard(
            name=record.name or run.id,
            base_model=recipe.base.backbone or recipe.base.path.name,
            license="see the base model",
            pooling=embedding_config["pooling"],
            is_normalized=embedding_config["normalise"],
            dimension=int(dimension or 0),
            max_tokens=embedding_config["max_tokens"],
            query_prompt=embedding_config["query_prompt"],
            document_prompt=embedding_config["document_prompt"],
            adapter=", ".join(_describe_adapter_spec(spec) for spec in recipe.adapters),
            trained_parameters=record.trained_parameters,
            base_parameters=record.base_parameters,
            training_data=f"pairs made of the books of one source, split by {recipe.split.by}",
            training=said,
            training_pairs=record.counts.get("pairs.train"),
            results=(_build_before_after_table(run),),
            run_id=run.id,
            version=record.versions.get("clinpeft", ""),
        )
    )


def _describe_adapter_spec(spec: AdapterSpec) -> str:
    options = spec.model_dump(
        exclude_defaults=True,
        exclude={"method", "from_run", "trainable", "merged", "active", "targets"},
    )
    said = ", ".join(f"{name} {value}" for name, value in options.items())
    return f"{spec.model_dump()['method']}{f' ({said})' if said else ''}"


def _build_before_after_table(run: Run) -> ReportTable:
    """Before and after, where a reader looks first."""
    shown = ("auroc", "ndcg_at_10", "recall_at_10", "separation")
    rows = [
        (row["task"], row["group"], row["name"], Estimate(row["value"], row["low"], row["high"]))
        for row in run.results.to_pylist()
        if row["name"] in shown
        and str(row["group"]).startswith(("zero-shot", "adapted"))
        and " - " not in str(row["group"])
    ]
    words = [ReportColumn(title, is_text=True) for title in ("task", "state", "metric")]
    columns = (*words, ReportColumn("value", is_estimate=True))
    return ReportTable(
        "Zero-shot and adapted",
        columns,
        tuple(rows),
        ("In brackets the interval, chapters resampled.",),
    )


def render_encoder_card(card: EncoderCard) -> str:
    """Markdown with YAML metadata (``base_model``, ``library_name``, ``pipeline_tag``, ``tags``,
    ``license``), by the conventions of the hub (Mitchell et al. 2019 for what a card should say).
    No text of a note or a book stands in it."""
    parts = [
        _render_metadata(card),
        f"# {card.name}",
        _render_lead(card),
        "## Use",
        SENTENCE_TRANSFORMERS_USAGE.format(name=json.dumps(card.name)),
        _describe_prompts(card),
        "## How a text becomes a vector",
        _render_embedding_facts(card),
        *_render_training(card),
        *_render_results(card),
        "## Limits",
        "\n".join(f"- {limit}" for limit in ENCODER_LIMITATIONS),
        _describe_origin(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _render_metadata(card: EncoderCard) -> str:
    """YAML, whose strings are written as JSON, which is YAML too: a name with a colon in it cannot
    break it."""
    known = HUB_LICENSE_NAMES.get(card.license)
    licence = (
        [f"license: {known}"]
        if known
        else [
            "license: other",
            f"license_name: {json.dumps(card.license.lower().replace(' ', '-'))}",
        ]
    )
    tags = [
        "sentence-transformers",
        "sentence-similarity",
        "feature-extraction",
        "medical",
        *(["lora", "peft"] if card.adapter else []),
    ]
    relation = [f"base_model_relation: {'adapter' if not card.is_merged else 'finetune'}"]
    lines = [
        f"language: {card.language}",
        *licence,
        f"base_model: {json.dumps(card.base_model)}",
        *relation,
        f"library_name: {'sentence-transformers' if card.is_merged else 'peft'}",
        "pipeline_tag: sentence-similarity",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join(["---", *lines, "---"])


def _render_lead(card: EncoderCard) -> str:
    how = f"adapted with {card.adapter}" if card.adapter else "fine-tuned as a whole"
    what = (
        "The weights here are whole."
        if card.is_merged
        else f"Here is the adapter alone; it needs {card.base_model} at hand."
    )
    return (
        f"A sentence encoder: [{card.base_model}](https://huggingface.co/{card.base_model}), "
        f"{how}. {what}"
    )


def _describe_prompts(card: EncoderCard) -> str:
    said = {"a question": card.query_prompt, "what is searched": card.document_prompt}
    given = [
        f"before {where} stands `{json.dumps(text, ensure_ascii=False)}`"
        for where, text in said.items()
        if text
    ]
    return (
        (
            f"Prompts are part of the model: {' and '.join(given)}; `encode_query` and "
            "`encode_document` write them."
        )
        if given
        else ""
    )


def _render_embedding_facts(card: EncoderCard) -> str:
    rows = [
        ("pooling", card.pooling),
        ("normalised to length 1", "yes" if card.is_normalized else "no"),
        ("dimension", format_count(card.dimension)),
        ("longest text", f"{format_count(card.max_tokens)} tokens; the rest is cut"),
        ("similarity", "cosine"),
    ]
    return _render_list(rows)


def _render_training(card: EncoderCard) -> list[str]:
    rows = [("pairs", format_count(card.training_pairs))] if card.training_pairs is not None else []
    if card.trained_parameters is not None:
        of = (
            f", {format_percent(card.trained_parameters / card.base_parameters)} of the base"
            if card.base_parameters
            else ""
        )
        rows.append(("trained parameters", format_count(card.trained_parameters) + of))
    rows += card.training
    return (
        ["## Training", card.training_data, _render_list(rows)]
        if rows or card.training_data
        else []
    )


def _render_results(card: EncoderCard) -> list[str]:
    """Tables keep their titles, one level down."""
    return (
        [
            "## Results",
            *(as_markdown_table(table).strip().replace("## ", "### ", 1) for table in card.results),
        ]
        if card.results
        else []
    )


def _describe_origin(card: EncoderCard) -> str:
    program = f"clinpeft {card.version}".strip()
    return f"Made with {program}{f', run `{card.run_id}`' if card.run_id else ''}."


def _render_list(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in rows)
