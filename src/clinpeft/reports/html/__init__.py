"""A report: one self-contained page, and every table and figure of it as files.

```
sections.py      runs -> the sections of a report
elements.py      tables and figures in the form in which templates write them
svg.py           a figure as SVG, in a file or in a page
page.py          sections -> one page
report_files.py  the page, tables, figures, cards and checklist as files
```
"""

from clinpeft.reports.html.elements import ReportFigure
from clinpeft.reports.html.page import ReportSection, render_report_page
from clinpeft.reports.html.report_files import write_html_report
from clinpeft.reports.html.sections import (
    REPORT_SECTIONS,
    ReportContents,
    ReportSections,
    add_study_section,
    build_report_contents,
)

__all__ = [
    "REPORT_SECTIONS",
    "ReportContents",
    "ReportFigure",
    "ReportSection",
    "ReportSections",
    "add_study_section",
    "build_report_contents",
    "render_report_page",
    "write_html_report",
]
