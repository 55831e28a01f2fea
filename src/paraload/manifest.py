"""Manifests tell whether the files of a checkpoint have been replaced; see SECURITY.md."""

from paraload.verification.manifest import compare_manifest, write_manifest

__all__ = ["compare_manifest", "write_manifest"]
