"""Checks a checkpoint without a model: the engine reads everything and keeps nothing."""
