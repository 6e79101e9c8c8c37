"""Results to tables: for the terminal, Markdown, CSV and LaTeX.

``formats`` says how a number is printed, ``tables`` what a table is and how it is rendered, ``facts`` what is read from a run; ``runs`` the tables
about runs, ``scores`` those of one set of results, ``adaptation``, ``classification`` and ``embedding`` those of a whole grid; ``encoders`` holds
what a grid of embeddings measured, and ``figures`` draws it.
"""

from clinpeft.reports.adaptation import adaptation_table
from clinpeft.reports.cards import Card, card_of, model_card
from clinpeft.reports.classification import classification_table
from clinpeft.reports.embedding import embedding_table, study_tables
from clinpeft.reports.facts import Entry
from clinpeft.reports.figures import write_figures
from clinpeft.reports.runs import (
    attrition_table,
    comparison,
    run_attrition,
    run_results,
    run_subgroups,
    run_summary,
    runs_list,
)
from clinpeft.reports.scores import calibration_table, scores_table, scores_tables, subgroups_table
from clinpeft.reports.tables import (
    Column,
    Estimate,
    Table,
    as_csv,
    as_latex,
    as_markdown,
    as_terminal,
    plain,
    write,
)

__all__ = [
    "Card",
    "Column",
    "Entry",
    "Estimate",
    "Table",
    "adaptation_table",
    "as_csv",
    "as_latex",
    "as_markdown",
    "as_terminal",
    "attrition_table",
    "calibration_table",
    "card_of",
    "classification_table",
    "comparison",
    "embedding_table",
    "model_card",
    "plain",
    "run_attrition",
    "run_results",
    "run_subgroups",
    "run_summary",
    "runs_list",
    "scores_table",
    "scores_tables",
    "study_tables",
    "subgroups_table",
    "write",
    "write_figures",
]
