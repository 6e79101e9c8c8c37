"""Retrieval sets: BEIR layout, MedQuAD, and sets of sentence pairs."""
