"""A report: one page that needs nothing but itself, and every table and figure of it as files
beside.

```
parts.py    runs -> the sections of a report            elements.py   tables and figures as HTML
page.py     sections -> one page; page.css, page.js     drawing.py    a figure as SVG, in a file or
in a page
written.py  the page, the tables, the figures, the cards, the checklist as files
```
"""

from clinpeft.reports.html.elements import ReportFigure
from clinpeft.reports.html.page import ReportSection, render_report_page
from clinpeft.reports.html.report_files import write_html_report
from clinpeft.reports.html.sections import ReportContents, add_study_section, build_report_contents

__all__ = [
    "ReportContents",
    "ReportFigure",
    "ReportSection",
    "add_study_section",
    "build_report_contents",
    "render_report_page",
    "write_html_report",
]
