"""Busy ports are named with the part and the setting before anything starts."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli import main
from infra.ports import Port, check_ports
from optimizer.errors import PartFailed


def listen(host: str = "127.0.0.1") -> socket.socket:
    busy = socket.socket()
    busy.bind((host, 0))
    busy.listen()
    return busy


def test_free_ports_are_fine() -> None:
    with listen() as busy:
        number = busy.getsockname()[1]
    check_ports("127.0.0.1", [Port(number, "MLflow", "mlflow")])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_busy_port_names_number_part_holder_and_setting(host: str) -> None:
    with listen(host) as busy:
        number = busy.getsockname()[1]
        with pytest.raises(PartFailed) as caught:
            check_ports("127.0.0.1", [Port(number, "MLflow", "mlflow")])
    message = str(caught.value)
    assert f"port {number}, needed by MLflow, is in use by" in message
    assert f"(pid {os.getpid()})" in message
    assert "LLMOPT_PORTS__MLFLOW=" in message
    assert "ports.mlflow" in message


def test_suggested_port_is_free_and_not_wanted_by_another_part() -> None:
    with listen() as busy:
        number = busy.getsockname()[1]
        wanted = [Port(number, "MLflow", "mlflow"), Port(number + 1, "Prefect", "prefect")]
        with pytest.raises(PartFailed) as caught:
            check_ports("127.0.0.1", wanted)
    suggested = int(str(caught.value).partition("LLMOPT_PORTS__MLFLOW=")[2].split()[0])
    assert suggested > number + 1
    check_ports("127.0.0.1", [Port(suggested, "MLflow", "mlflow")])


def test_every_busy_port_is_named_at_once() -> None:
    with listen() as one, listen() as two:
        ports = [Port(sock.getsockname()[1], "part", "mlflow") for sock in (one, two)]
        with pytest.raises(PartFailed) as caught:
            check_ports("127.0.0.1", ports)
    assert all(str(port.number) in str(caught.value) for port in ports)


def test_foreign_address_is_refused_with_the_reason() -> None:
    with pytest.raises(PartFailed, match=r"cannot be used on 192\.0\.2\.1"):
        check_ports("192.0.2.1", [Port(18080, "MLflow", "mlflow")])


@pytest.mark.parametrize("detach", [[], ["--detach"]])
def test_up_refuses_a_busy_port_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detach: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMOPT_SETTINGS", raising=False)
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))
    with listen() as busy:
        number = busy.getsockname()[1]
        monkeypatch.setenv("LLMOPT_PORTS__PREFECT", str(number))
        result = CliRunner().invoke(main, ["up", *detach, "--json"])

    assert result.exit_code == 1
    message = json.loads(result.stdout)["error"]["message"]
    assert f"port {number}, needed by Prefect" in message
    assert not (tmp_path / "home" / "postgres").exists()
    assert not (tmp_path / "home" / "stack.json").exists()
