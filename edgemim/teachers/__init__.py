"""Frozen models that give targets."""
