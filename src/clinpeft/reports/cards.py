"""The card of a model: a ``README.md`` with the metadata that the hub and sentence-transformers
read, filled from the record of a run; unknown facts are left out (Mitchell et al. 2019,
arXiv 1810.03993, for what a card should say)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clinpeft.core.errors import UsageError
from clinpeft.reports.adapter_card import (
    ADAPTER_CARD_GAPS,
    ADAPTER_LIMITATIONS,
    CARD_GAP_MARK,
    AdapterCard,
    collect_adapter_card,
)
from clinpeft.reports.facts import HELD_OUT_SPLIT
from clinpeft.reports.formats import format_count, format_number, format_percent
from clinpeft.reports.tables import (
    Estimate,
    ReportColumn,
    ReportTable,
    as_markdown_table,
    create_text_columns,
    format_cell,
)
from clinpeft.reports.templating import TEMPLATE_FOLDER
from clinpeft.runs import Run

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# License of a backbone -> its name on the hub; any other is ``other`` with its name
HUB_LICENSE_NAMES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Gemma Terms of Use": "gemma"}

ENCODER_LIMITATIONS = (
    "A vector says which texts are alike, not what is true: a finding and its negation can be "
    "close to each other. See the negation rows of the results.",
    "Not a medical device, and not validated for decisions about patients.",
    "If it was trained on text about patients, it may have memorized some of it: treat the "
    "weights as the data they were trained on.",
)


@dataclass(frozen=True)
class EncoderCard:
    """The facts of a card; empty and None: unknown, and left out.

    Attributes:
        name: of the model.
        base_model: of the backbone, as on the hub.
        license: of the backbone, as in its row.
        pooling, is_normalized, dimension, max_tokens: how a text becomes a vector.
        query_prompt, document_prompt: text before a query and before a passage.
        is_merged: whether the whole model is in the folder, or an adapter that needs its base.
        adapter: in words, such as ``LoRA, rank 16, alpha 32, on query and value``; empty: full
            fine-tuning.
        trained_parameters, base_parameters: how many were trained, of how many.
        training_data: in words: where it comes from, under which license, how it was split.
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
    """Whether a run has weights of its own to release: a classifier's head alone has not."""
    recipe = run.recipe
    return bool(recipe.trained_state) and (bool(recipe.adapters) or not recipe.tasks)


def render_model_card(run: Run) -> str:
    """The card of a run, filled from its record.

    Raises:
        UsageError: the run has no weights of its own.
    """
    if not has_model_card(run):
        raise UsageError(
            f"run {run.id} has no adapter", location="card", hint="take a run that trained one"
        )
    # Encoders, which are compared on pairs, are loaded by sentence-transformers and not by peft
    if run.recipe.compared_unit == "pairs":
        return render_encoder_card(collect_encoder_card(run))
    return render_adapter_card(run)


def collect_encoder_card(run: Run) -> EncoderCard:
    """Collect the facts from the record of a run of embed and from its ``encoder.json``."""
    record, settings = run.record, run.recipe.model_dump()
    training = settings["training"]
    # Pooling and prompts as saved with the weights; the key is part of the file format
    document = json.loads((run.folder / "encoder.json").read_text(encoding="utf-8"))
    embedding = document["manner"]
    rows = run.results.to_pylist()
    # The dimension is measured with the profile
    dimension = next((row["value"] for row in rows if row["name"] == "dimension"), None)
    adapters = []
    for spec in run.recipe.adapters:
        # The settings that differ from the defaults; those about the stack say nothing to a reader
        options = spec.model_dump(
            exclude_defaults=True,
            exclude={"method", "from_run", "trainable", "merged", "active", "targets"},
        )
        words = ", ".join(f"{name} {value}" for name, value in options.items())
        adapters.append(f"{spec.model_dump()['method']}{f' ({words})' if words else ''}")
    return EncoderCard(
        name=record.name or run.id,
        base_model=settings["base"]["backbone"] or settings["base"]["path"].name,
        license="see the base model",
        pooling=embedding["pooling"],
        is_normalized=embedding["normalise"],
        dimension=int(dimension or 0),
        max_tokens=embedding["max_tokens"],
        query_prompt=embedding["query_prompt"],
        document_prompt=embedding["document_prompt"],
        adapter=", ".join(adapters),
        trained_parameters=record.trained_parameters,
        base_parameters=record.base_parameters,
        training_data=f"pairs from the books of one source, split by {settings['split']['by']}",
        training=(
            ("objective", training["objective"]),
            ("temperature", f"{training['temperature']:g}"),
            ("pairs per step", str(training["batch_pairs"])),
            ("learning rate", f"{training['learning_rate']:g}"),
            ("epochs", f"{training['epochs']:g}"),
            ("seed", str(run.recipe.seed)),
        ),
        training_pairs=record.counts.get("pairs.train"),
        results=(_build_before_after_table(run),),
        run_id=run.id,
        version=record.versions.get("clinpeft", ""),
    )


def _build_before_after_table(run: Run) -> ReportTable:
    """The metrics that matter most, zero-shot and adapted."""
    # A card is read by people who choose a model: four metrics, not forty
    metrics = ("auroc", "ndcg_at_10", "recall_at_10", "separation")
    rows = tuple(
        (row["task"], row["group"], row["name"], Estimate(row["value"], row["low"], row["high"]))
        for row in run.results.to_pylist()
        if row["name"] in metrics
        and str(row["group"]).startswith(("zero-shot", "adapted"))
        and " - " not in str(row["group"])  # the difference of two states
    )
    columns = (
        *create_text_columns("task", "state", "metric"),
        ReportColumn("value", is_estimate=True),
    )
    note = "In brackets the interval, chapters resampled."
    return ReportTable("Zero-shot and adapted", columns, rows, (note,))


def render_encoder_card(card: EncoderCard) -> str:
    """Markdown with the metadata of sentence-transformers (``base_model``, ``library_name``,
    ``pipeline_tag``, ``tags``, ``license``); no text of a note or a book is in it."""
    # The hub has a fixed list of licenses; ``other`` needs a name
    license_name = HUB_LICENSE_NAMES.get(card.license)
    metadata = {
        "language": card.language,
        "license": license_name or "other",
        "license_name": None if license_name else card.license.lower().replace(" ", "-"),
        "base_model": card.base_model,
        "base_model_relation": "finetune" if card.is_merged else "adapter",
        "library_name": "sentence-transformers" if card.is_merged else "peft",
        "pipeline_tag": "sentence-similarity",
        "tags": [
            "sentence-transformers",
            "sentence-similarity",
            "feature-extraction",
            "medical",
            *(["lora", "peft"] if card.adapter else []),
        ],
    }
    # Unknown numbers have no line
    training: list[tuple[str, str]] = []
    if card.training_pairs is not None:
        training.append(("pairs", format_count(card.training_pairs)))
    if card.trained_parameters is not None:
        text = format_count(card.trained_parameters)
        if card.base_parameters:
            fraction = card.trained_parameters / card.base_parameters
            text += f", {format_percent(fraction)} of the base"
        training.append(("trained parameters", text))
    prompts = (("a query", card.query_prompt), ("a passage", card.document_prompt))
    return _render_card(
        "encoder_card.md.j2",
        metadata,
        card=card,
        prompts=[(name, prompt) for name, prompt in prompts if prompt],
        training=[*training, *card.training],
        results=[_render_card_table(table) for table in card.results],
        limitations=ENCODER_LIMITATIONS,
        # A JSON string is also one of Python and of YAML
        quote=lambda text: json.dumps(text, ensure_ascii=False),
        format_count=format_count,
    )


def render_adapter_card(run: Run) -> str:
    """The card of a run of adapt or classify: Markdown with the metadata of peft and a
    ``model-index``. To be released, the run must be one whose small counts are suppressed."""
    card = collect_adapter_card(run)
    metadata = {
        "language": "en",
        "license": "other",
        "license_name": "see-the-agreement-on-the-data",
        "base_model": card.base_model,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-classification" if card.is_classifier else "text-generation",
        "tags": list(dict.fromkeys(["peft", *card.methods, "medical", "clinical-notes"])),
        "model_name": card.name,
        "eval_results": _list_eval_results(card) or None,
    }
    rows = tuple(
        (metric.task or "language", metric.name, metric.estimate)
        for metric in (*card.metrics, *card.baseline_metrics)
    )
    table = ReportTable(
        "Held-out people",
        (*create_text_columns("task", "metric"), ReportColumn("value", is_estimate=True)),
        rows,
        ("In brackets the 95 % interval, people resampled.",),
    )
    withheld = "No number can be reported: each is about fewer than ten people."
    return _render_card(
        "adapter_card.md.j2",
        metadata,
        card=card,
        results=_render_card_table(table) if rows else withheld,
        not_beaten=[(task, format_cell(e, format_number)) for task, e in card.not_beaten],
        limitations=ADAPTER_LIMITATIONS,
        gaps=ADAPTER_CARD_GAPS,
        gap_mark=CARD_GAP_MARK,
    )


def _list_eval_results(card: AdapterCard) -> list[EvalResult]:
    """The metrics of an adapter as the ``model-index`` of the hub holds them."""
    from huggingface_hub import EvalResult

    results = []
    for metric in card.metrics:
        low, high = metric.estimate.low, metric.estimate.high
        interval = ""
        if low is not None and high is not None:
            interval = f", 95 % interval {format_number(low)} to {format_number(high)}"
        # The hub groups the metrics of equal tasks and data sets by itself
        results.append(
            EvalResult(
                task_type="text-classification" if card.is_classifier else "text-generation",
                task_name=metric.task or "language of notes",
                dataset_type="clinical-notes",
                dataset_name=card.source,
                dataset_split=HELD_OUT_SPLIT,
                metric_type=metric.name,
                metric_value=metric.estimate.value,
                metric_name=f"{metric.name}{interval}",
            )
        )
    return results


def _render_card_table(table: ReportTable) -> str:
    """Its title is a heading one level below those of the card."""
    return as_markdown_table(table).strip().replace("## ", "### ", 1)


def _render_card(template: str, metadata: dict[str, Any], **values: object) -> str:
    """A card of a template, with its metadata as YAML at the head."""
    # Imported here and for its card template alone: nothing of it opens a connection
    from huggingface_hub import ModelCard, ModelCardData

    # None is left out of the YAML by ModelCardData
    data = ModelCardData(**metadata)
    path = str(TEMPLATE_FOLDER / template)
    card = ModelCard.from_template(data, template_path=path, **values)
    return f"{card}".rstrip("\n") + "\n"
