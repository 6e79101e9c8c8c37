"""Results to tables: for the terminal, Markdown, CSV and LaTeX.

``formats`` says how a number is printed, ``tables`` what a table is and how it is rendered, ``facts`` what is read from a run; ``runs`` the tables
about runs, ``scores`` those of one set of results, ``adaptation`` and ``classification`` those of a whole grid.
"""

from clinpeft.reports.adaptation import adaptation_table
from clinpeft.reports.classification import classification_table
from clinpeft.reports.facts import Entry
from clinpeft.reports.runs import attrition_table, comparison, run_attrition, run_results, run_subgroups, run_summary, runs_list
from clinpeft.reports.scores import calibration_table, scores_table, scores_tables, subgroups_table
from clinpeft.reports.tables import Column, Estimate, Table, as_csv, as_latex, as_markdown, as_terminal, plain, write

__all__ = [
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
    "classification_table",
    "comparison",
    "plain",
    "run_attrition",
    "run_results",
    "run_subgroups",
    "run_summary",
    "runs_list",
    "scores_table",
    "scores_tables",
    "subgroups_table",
    "write",
]
