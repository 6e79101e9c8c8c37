"""Pages that are pictures, read by docling, which is no part of clinpeft: imported here when it is asked for, with models from a local folder."""

from __future__ import annotations

from pathlib import Path

from clinpeft.core.errors import SourceError, UsageError


def convert_scan_to_markdown(path: Path, models_folder: Path) -> str:
    """The text of a scanned book as Markdown.

    Args:
        path: of the PDF.
        models_folder: folder with docling's models, as ``docling-tools models download`` fills it; nothing is fetched here.

    Raises:
        UsageError: docling is not installed, or there is no such folder.
        SourceError: it cannot read the file.
    """
    if not models_folder.is_dir():
        raise UsageError(
            "there is no such folder of models",
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
            "docling, which reads scanned books, is not installed", location=str(path), hint=hint
        ) from None
    options = PdfPipelineOptions(artifacts_path=str(models_folder), do_ocr=True)
    converter = DocumentConverter(
        format_options={InputFormat.PDF: PdfFormatOption(pipeline_options=options)}
    )
    try:
        return str(converter.convert(path).document.export_to_markdown())
    except (
        Exception
    ) as error:  # docling raises errors of many packages; their messages may quote the book
        message = f"docling could not read this scan ({type(error).__name__})"
        raise SourceError(
            message, location=str(path), hint="give a copy that was run through text recognition"
        ) from None
