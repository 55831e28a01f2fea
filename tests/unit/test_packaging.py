"""What an installation brings: the requirement on torch, the extras, and one version everywhere."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import paraload

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED = importlib.metadata.metadata("paraload")


def test_one_version_everywhere():
    citation = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation is not None
    assert citation[1] == paraload.__version__ == INSTALLED["Version"]
    assert f"## {paraload.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_torch_has_a_lower_bound_alone_so_that_pip_keeps_the_installed_one():
    (torch,) = (line for line in PROJECT["dependencies"] if re.match(r"torch\b", line))
    assert re.fullmatch(r"torch>=[\d.]+", torch)


def test_documents_give_install_commands_of_extras_that_exist():
    texts = [path.read_text() for path in ROOT.glob("*.md")]
    texts += [path.read_text() for path in (ROOT / "src").rglob("*.py")]
    named = {
        extra.strip()
        for text in texts
        for found in re.findall(r"(?:paraload|'\.)\[([\w, -]+)\]", text)
        for extra in found.split(",")
    }
    assert (
        {"object-store", "fsspec", "zstd", "cli"} <= named <= set(PROJECT["optional-dependencies"])
    )
    listed = re.findall(r"^\| `([\w-]+)` \| \w", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {*listed} == {"object-store", "fsspec", "zstd", "cli"}


def test_the_address_of_the_repository_stands_in_one_place():
    owners = [
        path.name
        for path in [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.cff")]
        if "github.com/OWNER" in path.read_text()
    ]
    assert owners == ["pyproject.toml"]
