"""Mutated checkpoints: the truth or a typed error, soon, in little memory, no code."""
