"""Alerts to a real receiver that takes, refuses, fails, redirects or hangs."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from infra.cli import main
from optimizer.alert_settings import AlertSettings
from serving.alerts import message, send

SECRET = "/services/T000/very-secret"


class Receiver(ThreadingHTTPServer):
    """Answers with the statuses it is given, then with 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.received: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status == 200:
            assert self.path == SECRET
            self.server.received.append(json.loads(body))
        self.send_response(status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Retry-After", "2")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_alert_arrives_in_the_json_of_slack(receiver: Receiver) -> None:
    sent = send(AlertSettings(webhook_url=receiver.url), message("chat", "fell", {"after": 0.8}))
    assert (sent.delivered, sent.attempts, sent.error) == (True, 1, "")
    [body] = receiver.received
    assert body["text"] == "chat: fell"
    assert [block["type"] for block in body["blocks"]] == ["header", "section", "section"]
    assert body["blocks"][2]["fields"][0]["text"] == "after: 0.8"


def test_a_failing_receiver_is_tried_again_and_waits_are_bounded(receiver: Receiver) -> None:
    receiver.statuses = [503, 429]
    waits: list[float] = []
    sent = send(AlertSettings(webhook_url=receiver.url), message("a", "b"), sleep=waits.append)
    assert sent.delivered and sent.attempts == 3 and waits == [2.0, 2.0]
    receiver.statuses = [500] * 3
    sent = send(AlertSettings(webhook_url=receiver.url), message("a", "b"), sleep=waits.append)
    assert not sent.delivered and sent.attempts == 3 and "500" in sent.error
    assert len(receiver.received) == 1 and max(waits) <= 5


@pytest.mark.parametrize("status", [302, 404])
def test_who_refuses_or_redirects_is_not_asked_again(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status]
    sent = send(AlertSettings(webhook_url=receiver.url), message("a", "b"))
    assert not sent.delivered and sent.attempts == 1 and str(status) in sent.error
    assert receiver.received == []


def test_the_url_is_told_nowhere(
    find_free_port: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"http://127.0.0.1:{find_free_port()}{SECRET}"
    settings = AlertSettings(webhook_url=url)
    sent = send(settings, message("a", "b"), sleep=lambda seconds: None)
    assert not sent.delivered and sent.attempts == 3
    for text in (sent.error, caplog.text, repr(settings), settings.model_dump_json()):
        assert "secret" not in text.replace("secret_", "")
    with pytest.raises(ValidationError) as refused:
        AlertSettings(webhook_url="ftp://" + SECRET)
    assert SECRET not in str(refused.value)


def test_without_a_webhook_nothing_is_sent() -> None:
    assert send(AlertSettings(), message("a", "b")).attempts == 0


def test_the_command_sends_a_test(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "llmopt.yaml"
    points = [{"name": "chat", "arms": [{"model": "a"}]}]
    file.write_text(yaml.safe_dump({"home": str(tmp_path), "decision_points": points}))
    monkeypatch.setenv("LLMOPT_SETTINGS", str(file))
    monkeypatch.setenv("LLMOPT_ALERTS__WEBHOOK_URL", receiver.url)
    made = CliRunner().invoke(main, ["alerts", "test", "--json"])
    assert made.exit_code == 0 and json.loads(made.stdout)["delivered"]
    assert "test" in receiver.received[0]["text"]
    receiver.statuses = [403]
    made = CliRunner().invoke(main, ["alerts", "test", "--json"])
    assert made.exit_code == 1 and SECRET not in made.output
