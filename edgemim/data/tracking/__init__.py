"""Pairs of a template and a search region: sources with boxes or without, their sampling, crops and batches."""
