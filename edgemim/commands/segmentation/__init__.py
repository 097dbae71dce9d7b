"""Segmentation's part of the verbs finetune, evaluate and predict."""
