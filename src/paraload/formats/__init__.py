"""Record formats, one file each; see ``_base``."""
