"""Rows of delimited text and JSON lines, each with its location."""
