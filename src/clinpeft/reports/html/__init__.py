"""A report: one page that needs nothing but itself, and every table and figure of it as files beside.

```
parts.py    runs -> the sections of a report            elements.py   tables and figures as HTML
page.py     sections -> one page; page.css, page.js     drawing.py    a figure as SVG, in a file or in a page
written.py  the page, the tables, the figures, the cards, the checklist as files
```
"""

from clinpeft.reports.html.elements import Drawing
from clinpeft.reports.html.page import Section, page
from clinpeft.reports.html.report_files import write_report
from clinpeft.reports.html.sections import Contents, contents, with_study

__all__ = ["Contents", "Drawing", "Section", "contents", "page", "with_study", "write_report"]
