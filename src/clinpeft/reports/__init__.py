"""Results to tables: for the terminal, Markdown, CSV and LaTeX.

``formats`` says how a number is printed, ``tables`` what a table is and how it is rendered, ``runs`` the tables about runs.
"""

from clinpeft.reports.runs import Entry, adaptation_table, attrition_table, comparison, run_attrition, run_results, run_summary, runs_list
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
    "comparison",
    "plain",
    "run_attrition",
    "run_results",
    "run_summary",
    "runs_list",
    "write",
]
