"""Published checkpoints under their original names become our encoders: one module a family, every key accounted for."""
