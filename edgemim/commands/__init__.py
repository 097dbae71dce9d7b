"""The verbs, one a file: its config class and its function."""
