"""Scanned pages, converted by docling, an optional dependency, with models in a local folder."""

from __future__ import annotations

from pathlib import Path

from clinpeft.core.errors import SourceError, UsageError


def convert_scan_to_markdown(path: Path, models_folder: Path) -> str:
    """Converts a scanned book to Markdown.

    Args:
        path: of the PDF.
        models_folder: docling's models, as ``docling-tools models download`` writes them; nothing
            is downloaded here.

    Returns:
        The text as Markdown.

    Raises:
        UsageError: docling is not installed, or there is no such folder.
        SourceError: docling cannot read the file.
    """
    if not models_folder.is_dir():
        raise UsageError(
            "this folder of models does not exist",
            location=str(models_folder),
            hint="fill it with: docling-tools models download -o FOLDER",
        )
    try:
        from docling.datamodel.base_models import InputFormat
        from docling.datamodel.pipeline_options import PdfPipelineOptions
        from docling.document_converter import DocumentConverter, PdfFormatOption
    except ImportError:
        hint = 'install it: pip install "clinpeft[scans]"'
        raise UsageError(
            "docling, which converts scanned books, is not installed", location=str(path), hint=hint
        ) from None
    # A local folder: docling would otherwise download its models.
    options = PdfPipelineOptions(artifacts_path=str(models_folder), do_ocr=True)
    converter = DocumentConverter(
        format_options={InputFormat.PDF: PdfFormatOption(pipeline_options=options)}
    )
    try:
        return str(converter.convert(path).document.export_to_markdown())
    except Exception as error:
        # docling raises errors of many packages, and their messages may quote the book.
        message = f"docling could not read this scan ({type(error).__name__})"
        raise SourceError(
            message, location=str(path), hint="give a copy with recognized text"
        ) from None
