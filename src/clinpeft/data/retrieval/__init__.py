"""Evaluation sets of sentence embeddings: retrieval (BEIR, MedQuAD) and text pairs."""
