"""One verb a job. Rooms are imported inside the verbs, so that ``--help`` is instant and nothing is loaded that is not used."""

from __future__ import annotations

import os

# before any library that reads them is imported: nothing here reaches for a network
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "true",
}

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clinpeft.cli import audit, bundle, cohort, runs, study, trust
from clinpeft.cli.audit import record_audit_entry
from clinpeft.cli.console import to_relative_path, print_table, write_embedding_study
from clinpeft.cli.doctor import apply_tuned_threads, doctor
from clinpeft.cli.grid import check_recipe_kind, run_recipe_cells
from clinpeft.cli.options import DEFAULT_HOME, HomeOption, OverridesOption
from clinpeft.cli.plan import plan
from clinpeft.cli.report import report
from clinpeft.cli.search import search
from clinpeft.core.errors import UsageError

if TYPE_CHECKING:
    from clinpeft.reports import ReportTable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__,
    rich_markup_mode=None,
)
models_app = typer.Typer(
    no_args_is_help=True, help="Base models: the one door to the network, and what is in a folder."
)
app.command()(report)
app.add_typer(runs.runs_app, name="runs")
app.add_typer(cohort.cohort_app, name="cohort")
app.add_typer(models_app, name="models")
app.add_typer(study.study_app, name="study")
app.command()(search)
app.command()(plan)
app.command()(doctor)
app.add_typer(audit.audit_app, name="audit")
app.add_typer(bundle.bundle_app, name="bundle")
for verb in (trust.verify, trust.privacy, trust.release, trust.purge):
    app.command()(verb)


@app.command()
def adapt(
    recipe: Annotated[Path, typer.Argument(help="A recipe of kind adapt.")],
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Adapt a language model to notes: domain-adaptive pretraining with a small adapter, one run a cell of the recipe's grid."""
    apply_tuned_threads(home)
    from clinpeft import recipe as recipes
    from clinpeft import reports, workflows

    cells = recipes.load_recipe_cells(recipe, set_ or [], os.environ)
    check_recipe_kind("adapt", cells, recipe)
    run_recipe_cells(
        cells, home, recipe.stem, workflows.adapt_language_model, reports.build_adaptation_table
    )


@app.command()
def classify(
    recipe: Annotated[Path, typer.Argument(help="A recipe of kind classify.")],
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Answer a clinical question from notes: a base, a stack of adapters and a head, one run a cell of the recipe's grid."""
    apply_tuned_threads(home)
    from clinpeft import recipe as recipes
    from clinpeft import reports, workflows

    cells = recipes.load_recipe_cells(recipe, set_ or [], os.environ)
    check_recipe_kind("classify", cells, recipe)
    run_recipe_cells(
        cells, home, recipe.stem, workflows.train_classifier, reports.build_classification_table
    )


@app.command()
def embed(
    recipe: Annotated[Path, typer.Argument(help="A recipe of kind embed.")],
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Adapt an encoder to books: pairs of texts that belong together, contrastive training, vectors measured before and after."""
    apply_tuned_threads(home)
    from clinpeft import recipe as recipes
    from clinpeft import reports, workflows

    cells = recipes.load_recipe_cells(recipe, set_ or [], os.environ)
    check_recipe_kind("embed", cells, recipe)
    folder = home.resolve() / f"embed-{recipe.stem}"
    run_recipe_cells(
        cells,
        home,
        recipe.stem,
        workflows.train_embedding_model,
        reports.build_embedding_table,
        lambda entries: write_embedding_study(entries, folder),
    )


@app.command()
def encode(
    run: Annotated[
        str, typer.Argument(help="A finished run of embed: id, the beginning of one, or name.")
    ],
    texts: Annotated[
        Path, typer.Option("--texts", help="CSV, TSV, JSON lines or Parquet with a column text.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="A .npy or .parquet file, which must not exist.")
    ],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Texts to vectors with the encoder of a run."""
    from clinpeft import workflows
    from clinpeft.cli.progress import show_encoding_progress

    with show_encoding_progress("encode") as tell:
        done = workflows.encode_text_file(home.resolve(), run, texts, out, tell)
    record_audit_entry(home, "encode", output_path=out, counts={"texts": done.texts})
    print(
        f"{to_relative_path(out)}: {done.texts:,} vectors of {done.width}, {done.seconds:.1f} s, {done.precision_reason}"
    )


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(help="A finished run of embed: id, the beginning of one, or name.")
    ],
    out: Annotated[Path, typer.Option("--out", "--to", help="A new folder.")],
    format_: Annotated[
        Literal["sentence-transformers", "onnx"],
        typer.Option("--format", help="Who is to open it."),
    ] = "sentence-transformers",
    adapter: Annotated[
        bool,
        typer.Option(
            "--adapter",
            help="The adapter alone, beside the name of its base, and not the whole model.",
        ),
    ] = False,
    base: Annotated[
        str, typer.Option("--base", help="With --adapter: where its reader finds the base.")
    ] = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """The encoder of a run as a folder that stock sentence-transformers opens, with its card; or as an ONNX graph, compared with the run."""
    from clinpeft import reports, workflows

    if format_ == "sentence-transformers":
        print(
            to_relative_path(
                workflows.export_run_encoder(
                    home.resolve(),
                    run,
                    out,
                    reports.render_model_card,
                    merge_adapters=not adapter,
                    base_name=base,
                )
            )
        )
        record_audit_entry(home, "export", output_path=out)
        return
    if adapter or base:
        raise UsageError(
            "a graph holds base and adapter in one",
            location="export --adapter, --base",
            hint="leave both options away",
        )
    parity = workflows.export_run_to_onnx(home.resolve(), run, out)
    record_audit_entry(home, "export", output_path=out)
    furthest = f"largest difference {parity.largest_difference:.1e} (at most {parity.tolerance:.0e}), least cosine {parity.least_cosine:.6f}"
    print(
        f"{to_relative_path(out)}: the same vectors on {parity.texts} texts, {parity.engine}: {furthest}"
    )


@app.command()
def predict(
    run: Annotated[
        str, typer.Argument(help="A finished run of classify: id, the beginning of one, or name.")
    ],
    notes: Annotated[
        Path, typer.Option("--notes", help="CSV, TSV, JSON lines or Parquet, one note a row.")
    ],
    out: Annotated[Path, typer.Option("--out", help="A Parquet file, which must not exist.")],
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="Where a column has another name."),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Answer a run's question for new notes: a row a note with a probability for every class."""
    from clinpeft import workflows

    pairs = [pair.split("=", 1) for pair in columns or []]
    if odd := next((pair for pair in pairs if len(pair) < 2), None):
        raise UsageError(
            f"{odd[0]!r} is not OURS=THEIRS", location="--column", hint="write --column text=note"
        )
    written = workflows.predict_new_notes(home.resolve(), run, notes, dict(pairs), out)
    for path in written:
        record_audit_entry(home, "predict", output_path=path)
        print(to_relative_path(path))


@app.command()
def evaluate(
    what: Annotated[
        str,
        typer.Argument(
            help="A finished run of classify, a Parquet file of predictions, or a run of embed with --search."
        ),
    ],
    home: HomeOption = DEFAULT_HOME,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of subjects.")] = 1000,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", help="Also write the tables here, numbers of fewer than 10 subjects withheld."
        ),
    ] = None,
    retrieval_set: Annotated[
        Path | None,
        typer.Option(
            "--search",
            help="A set in BEIR layout, to be searched by a run of embed and by its base.",
        ),
    ] = None,
) -> None:
    """Score predictions again: every metric with its interval, by subgroup, with calibration. With --search: an encoder on a set it was not asked."""
    from clinpeft import evaluation, reports, workflows
    from clinpeft.runs import RELEASE_SMALLEST_CELL

    if retrieval_set is not None:
        found = reports.build_scores_table(
            workflows.evaluate_run_retrieval(home.resolve(), what, retrieval_set, resamples),
            f"{what}: {retrieval_set.resolve().name}",
        )
        print_table(found)
        if to is not None:
            _write_tables(home, to, [found])
        return
    results, curves = workflows.rescore_predictions(home.resolve(), what, resamples)
    for table in reports.build_scores_tables(results, curves, what):
        print_table(table)
    if to is not None:
        _write_tables(
            home,
            to,
            reports.build_scores_tables(
                evaluation.suppress_small_cells(results, RELEASE_SMALLEST_CELL),
                curves,
                Path(what).stem,
            ),
        )


def _write_tables(home: Path, to: Path, tables: Iterable[ReportTable]) -> None:
    from clinpeft import reports

    for table in tables:
        for path in reports.write_table(to, table.title, table):
            record_audit_entry(home, "evaluate", output_path=path)
            print(to_relative_path(path))


@models_app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name on the model hub.")],
    to: Annotated[Path, typer.Option("--to", help="A new folder.")],
) -> None:
    """Fetch a base model: the only verb that opens a connection. Run it outside, and carry the folder in."""
    from clinpeft import models

    models.download_model(name, to)
    print(f"{to}: {models.fingerprint_base_model(to)}")


@app.command()
def synthetic(
    to: Annotated[Path, typer.Option("--to", help="A folder.")],
    subjects: Annotated[int, typer.Option(help="How many people.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 1234,
    shape: Annotated[
        Literal["mimic-iii", "mimic-iv"], typer.Option(help="Whose files and columns.")
    ] = "mimic-iv",
) -> None:
    """Write the notes of an invented hospital, in the files and columns of MIMIC-III or MIMIC-IV-Note."""
    from clinpeft.data import synthetic as hospital

    hospital.write_synthetic_hospital(to, subjects, seed, shape)
    print(to)
    for task, best in hospital.compute_best_auroc(to).items():
        print(
            f"{task}: AUROC {best:.3f} is the best that a reader of the admission note can expect"
        )


def main() -> None:
    """The command ``clinpeft``: verbs, and errors as three lines and an exit code. What it writes is for this user alone."""
    mask = os.umask(0o077)
    try:
        app(standalone_mode=True)
    except Exception as error:
        from clinpeft.cli.exit import print_error

        sys.exit(print_error(error))
    finally:
        os.umask(mask)
