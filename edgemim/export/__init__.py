"""The bridge: checkpoint to artifact to checked artifact."""
