"""The jobs of `edgemim track`, and the training of trackers."""
