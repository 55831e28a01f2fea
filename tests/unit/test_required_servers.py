"""A server that is missing is told: tests are skipped with a command, and fail in CI."""

from __future__ import annotations

import pytest

from tests import azure, servers


@pytest.fixture(params=["nginx", "azurite", "node"])
def start(request, monkeypatch, tmp_path):
    """Starts a server that is not installed."""
    if request.param == "nginx":
        monkeypatch.setattr(servers, "program", lambda: None)
        return lambda: servers.nginx_server(tmp_path), "needs nginx: apt-get install nginx-light"
    if request.param == "azurite":
        monkeypatch.setattr(azure.shutil, "which", lambda name: name)
        monkeypatch.setattr(azure, "_PROGRAM", tmp_path / "main.js")
        return azure.azure_server, "needs azurite: make azurite"
    monkeypatch.setattr(azure.shutil, "which", lambda _: None)
    return azure.azure_server, "needs node: apt-get install nodejs npm && make azurite"


@pytest.mark.parametrize("value", [None, "", "false", "0"])
def test_a_user_is_told_how_to_install_it(start, monkeypatch, value):
    if value is None:
        monkeypatch.delenv("CI", raising=False)
    else:
        monkeypatch.setenv("CI", value)
    server, reason = start
    with pytest.raises(pytest.skip.Exception) as told, server():
        pass
    assert str(told.value) == reason


@pytest.mark.parametrize("value", ["true", "1"])
def test_ci_fails(start, monkeypatch, value):
    monkeypatch.setenv("CI", value)
    server, reason = start
    with pytest.raises(pytest.fail.Exception) as told, server():
        pass
    assert str(told.value) == reason
