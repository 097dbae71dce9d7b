"""The loop, the checkpoint directory and what surrounds them."""
