"""Rendering of the jinja2 templates in ``templates``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

TEMPLATE_FOLDER = Path(__file__).with_name("templates")


@functools.cache
def create_template_environment() -> jinja2.Environment:
    """The environment of all HTML templates: values are escaped unless they are markup, and an
    undefined name is an error."""
    # Imported on the first page: most commands write none
    import jinja2

    # Blocks leave no empty lines behind (trim_blocks, lstrip_blocks)
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_html_template(name: str, **values: object) -> str:
    """Render an HTML template of ``templates``."""
    return create_template_environment().get_template(name).render(**values)


def read_template_file(name: str) -> str:
    """A file of ``templates`` that is included as it is, such as a style sheet."""
    return (TEMPLATE_FOLDER / name).read_text(encoding="utf-8")
