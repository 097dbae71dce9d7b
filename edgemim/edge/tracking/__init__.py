"""Tracking at the edge: sequences, metrics, the tracker and its loop; no torch."""
