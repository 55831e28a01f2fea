"""Storages, one file each; see ``_base``."""
