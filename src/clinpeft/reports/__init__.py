"""Results as tables (terminal, Markdown, CSV, LaTeX), figures, HTML pages, cards and checklists.

```
formats.py, tables.py    a number to its text; a table and its renderings
facts.py                 what is read from a run
runs.py, scores.py, searches.py                 tables of runs, of results, of searches and studies
adaptation.py            Table 2 of arXiv 2307.03042
classification.py, classification_measures.py   its Tables 3 and 4; every metric, subgroups, cost
encoders.py              the rows of a grid of embeddings
embedding.py, embedding_study.py                its main table; Tables 1 to 5 of arXiv 2511.19739
cards.py, adapter_card.py                       model cards
checklist.py, checklist_facts.py                TRIPOD+AI and TRIPOD-LLM, from checklists/*.toml
figures/, html/          figures; a self-contained page, from templates/ by templating.py
```
"""

from clinpeft.reports.adaptation import build_adaptation_table
from clinpeft.reports.cards import EncoderCard, render_encoder_card, render_model_card
from clinpeft.reports.classification import build_classification_table
from clinpeft.reports.embedding import build_embedding_table
from clinpeft.reports.embedding_study import build_embedding_study_tables
from clinpeft.reports.facts import CellResult
from clinpeft.reports.figures import write_embedding_figures
from clinpeft.reports.runs import (
    build_attrition_table,
    build_comparison_tables,
    build_run_attrition_table,
    build_run_results_table,
    build_run_subgroups_table,
    build_run_summary,
    build_runs_table,
)
from clinpeft.reports.scores import (
    build_calibration_table,
    build_scores_table,
    build_scores_tables,
    build_subgroups_table,
)
from clinpeft.reports.tables import (
    Estimate,
    ReportColumn,
    ReportTable,
    as_csv_table,
    as_latex_table,
    as_markdown_table,
    as_rich_table,
    table_from_arrow,
    write_table,
)

__all__ = [
    "CellResult",
    "EncoderCard",
    "Estimate",
    "ReportColumn",
    "ReportTable",
    "as_csv_table",
    "as_latex_table",
    "as_markdown_table",
    "as_rich_table",
    "build_adaptation_table",
    "build_attrition_table",
    "build_calibration_table",
    "build_classification_table",
    "build_comparison_tables",
    "build_embedding_study_tables",
    "build_embedding_table",
    "build_run_attrition_table",
    "build_run_results_table",
    "build_run_subgroups_table",
    "build_run_summary",
    "build_runs_table",
    "build_scores_table",
    "build_scores_tables",
    "build_subgroups_table",
    "render_encoder_card",
    "render_model_card",
    "table_from_arrow",
    "write_embedding_figures",
    "write_table",
]
