"""Data: notes, hospital tables, cohorts, textbooks, retrieval sets, and the synthetic hospital."""
