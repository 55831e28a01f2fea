"""Manifests tell whether the files of a checkpoint have been replaced; see SECURITY.md."""

from paraload.verification.manifest import compare_manifest, write_manifest
from paraload.verification.report import Finding, Part

__all__ = ["Finding", "Part", "compare_manifest", "write_manifest"]
