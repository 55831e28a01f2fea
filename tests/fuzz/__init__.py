"""Mutated checkpoints: the source's bytes or a typed error, soon, in little memory, without code."""
