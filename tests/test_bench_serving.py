"""`make bench-serving`: its own generator, what it reads of wrk's, and what it makes of figures.

`benchmarks/` is no installed package, so it is imported where a test needs it. No load tool is
needed.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from benchmarks.serving.faults import Killed, Swaps
    from benchmarks.serving.load import Load
    from benchmarks.serving.steps import Row

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture(autouse=True)
def _repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


class Server:
    """Answers every request; stalls once, or closes a connection once, if it is told to."""

    def __init__(self) -> None:
        self.stall_s = 0.0
        self.close_at: int | None = None
        self.status = b"200 OK"
        self.answered = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while connection.recv(65536):
                self.answered += 1
                if self.answered == self.close_at:
                    return
                if self.answered == 20:
                    time.sleep(self.stall_s)
                connection.sendall(ANSWER.replace(b"200 OK", self.status))


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


def loaded(server: Server, seconds: float = 0.4, connections: int = 1) -> dict[str, Any]:
    from benchmarks.serving.open_loop import OpenLoop, requests_of

    requests = requests_of("127.0.0.1", "/", [b"{}"])
    address = ("127.0.0.1", server.port)
    return OpenLoop(address, requests, 500.0, seconds, connections).run()


def test_percentiles_are_values_that_were_measured() -> None:
    from benchmarks.serving.percentiles import percentiles_ms

    told = percentiles_ms([number / 1000 for number in range(1, 1001)])
    assert told == {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}
    assert percentiles_ms([]) == {}


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_answer_may_come_in_any_pieces(size: int) -> None:
    from benchmarks.serving.open_loop import Answer

    chunked = b"HTTP/1.1 503 x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    answer = Answer()
    for whole, status in ((ANSWER, 200), (chunked, 503), (ANSWER, 200)):
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert [answer.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert answer.status == status


def test_every_request_that_is_due_is_answered(server: Server) -> None:
    told = loaded(server, connections=4)
    assert told["succeeded"] == told["requests"] == sum(told["bins"]) == 200
    assert told["errors"] == 0
    assert told["elapsed_s"] >= 0.39


def test_a_stall_falls_on_all_requests_that_were_due_meanwhile(server: Server) -> None:
    """A closed loop would see one slow request in 200; here 100 were due in 0.2 s."""
    server.stall_s = 0.2
    told = loaded(server)
    assert told["succeeded"] == 200
    assert told["latency_ms"]["p90"] > 100
    assert told["latency_ms"]["max"] >= 200


def test_a_connection_that_is_closed_is_an_error_and_opened_anew(server: Server) -> None:
    server.close_at = 50
    told = loaded(server, connections=2)
    assert told["errors"] == 1
    assert told["succeeded"] == 199
    assert told["reopened"] == 1
    ((_, port, kind),) = told["error_list"]
    assert port > 0
    assert kind == "closed"


def test_another_status_is_an_error(server: Server) -> None:
    server.status = b"503 Service Unavailable"
    told = loaded(server, seconds=0.1)
    assert told["kinds"] == {"status 503": 50}
    assert told["latency_ms"] == {}


def test_the_generator_as_it_is_run(server: Server, tmp_path: Path) -> None:
    from benchmarks.serving.load import open_loop
    from benchmarks.serving.targets import Door

    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text('{"a": 1}\n{"a": 2}\n')
    seen: list[int] = []
    door = Door("server", server.port, {"single": "/"}, dict)
    load = open_loop(door, "single", bodies, 2, 200.0, 0.2, seen.append)
    assert load.requests == 40
    assert not load.errors
    assert load.latency_ms["p50"] > 0
    assert seen


def test_wrk_is_read_among_its_own_words() -> None:
    from benchmarks.serving.load import read_wrk

    line = {"requests": 1000, "seconds": 2.0, "p50": 1.5, "p90": 2.0, "p99": 3.0, "p99.9": 4.0}
    line |= {"max": 5.0, "connect": 0, "read": 2, "write": 0, "status": 10, "timeout": 0}
    load = read_wrk(f"Running 2s test\n  1 threads\n{json.dumps(line)}\n")
    assert load.rate == 495.0
    assert load.errors == {"read": 2, "status": 10}
    assert load.latency_ms["p99.9"] == 4.0
    with pytest.raises(ValueError, match="unable to connect"):
        read_wrk("unable to connect to 127.0.0.1:1")


def test_cpu_and_memory_of_a_child() -> None:
    from benchmarks.serving.resources import Sampler

    busy = "import time\nx = bytearray(50_000_000)\nwhile True: time.time()"
    children = [subprocess.Popen([sys.executable, "-c", code]) for code in (busy, _IDLE)]
    try:
        with Sampler({"idle": [psutil.Process(children[1].pid)]}) as sampler:
            sampler.add("busy", children[0].pid)
            time.sleep(0.8)
            children[1].kill()
            children[1].wait()
            time.sleep(0.3)
        usage = sampler.usage()
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert usage["busy"].cores > 0.1
    assert usage["busy"].memory_mib > 45
    assert usage["idle"].cores < usage["busy"].cores
    assert usage["idle"].memory_mib > 1


_IDLE = "import time; time.sleep(60)"


def load(rate: float, p99: float = 1.0, **errors: int) -> Load:
    from benchmarks.serving.load import Load

    latency = {"p50": p99 / 2, "p90": p99 * 0.9, "p99": p99, "p99.9": p99 * 2, "max": p99 * 3}
    return Load(int(rate), rate, latency, errors)


def rows(**changed: Row) -> dict[str, Row]:
    """Figures that hold in everything."""
    from benchmarks.serving.peers import BARE, LITELLM, RAY_PROXY, VW
    from benchmarks.serving.steps import beside_bare

    made = [
        row("fast lane", "single", load(13_000)),
        row("fast lane", "single", load(8_000), rate=8_000.0),
        row("fast lane", "prompt", load(5_000)),
        row("fast lane", "batch", load(1_000)),
        row("Ray ingress", "single", load(3_000)),
        row(BARE, "single", load(20_000)),
        row(RAY_PROXY, "single", load(300)),
        row(LITELLM, "chat", load(1_000)),
        row(VW, "single", load(12_000)),
    ]
    return beside_bare({each.step.name: each for each in [*made, *changed.values()]}, BARE)


def row(door: str, kind: str, *loads: Load, rate: float | None = None) -> Row:
    from benchmarks.serving.resources import Usage
    from benchmarks.serving.steps import Lap, Step, summarise

    usage = {"server": Usage(0.9, 100.0), "generator": Usage(0.2, 10.0)}
    return summarise(Step(door, kind, 16, rate), [Lap(one, usage) for one in loads])


def swaps(cost: float = 0.05, **errors: int) -> Swaps:
    from benchmarks.serving.faults import Swaps

    return Swaps([100.0], [100.0 * (1 - cost)], 40, 39, errors, cost)


def killed(elsewhere: int = 0, recovered_s: float | None = 1.0) -> Killed:
    from benchmarks.serving.faults import Killed

    seconds = [(3000, 0), (2990, 10)]
    kinds = {"closed": 10}
    return Killed(3000, 5.0, 64, 30, 10, elsewhere, kinds, recovered_s, 4.0, 5.0, seconds)


def failed(
    found: dict[str, Row],
    swapped: Swaps | None = None,
    dead: Killed | None = None,
    dropped: float | None = 0.0,
) -> list[str]:
    from benchmarks.serving.checks import checks

    lines = checks(found, swapped or swaps(), dead or killed(), dropped)
    return [line.name for line in lines if line.ok is False]


def test_what_holds_passes() -> None:
    from benchmarks.serving.checks import checks

    assert failed(rows()) == []
    assert all(line.ok for line in checks(rows(), swaps(), killed(), 0.0))


def test_each_figure_can_fail() -> None:
    slow = rows(fast=row("fast lane", "single", load(9_000)))
    assert failed(slow) == [
        "fast lane, closed loop",
        "its share of bare uvicorn's rate",
        "fast lane over LiteLLM's proxy",
        "fast lane over Vowpal Wabbit behind uvicorn",
    ]
    late = rows(steady=row("fast lane", "single", load(8_000, 10.0, closed=1), rate=8_000.0))
    assert [name.rpartition(": ")[2] for name in failed(late)] == ["p50", "p99", "errors"]
    assert failed(rows(prompt=row("fast lane", "prompt", load(4_999)))) == [
        "fast lane, 200-token prompts"
    ]
    assert failed(rows(batch=row("fast lane", "batch", load(999, 10.0)))) == [
        "fast lane, batches of 100",
        "p99 of a batch",
    ]
    assert failed(rows(ingress=row("Ray ingress", "single", load(2_999)))) == [
        "Ray ingress over Ray Serve's default proxy"
    ]
    assert len(failed(rows(), swaps(0.1, status=1))) == 2
    assert len(failed(rows(), dead=killed(1, 10.0))) == 2
    assert len(failed(rows(), dead=killed(0, None))) == 1
    assert failed(rows(), dropped=1.0) == ["the decision log meanwhile"]


def test_what_was_not_run_neither_passes_nor_fails() -> None:
    from benchmarks.serving.checks import checks

    assert {line.ok for line in checks({}, None, None, None)} == {None}
    other_rate = rows(steady=row("fast lane", "single", load(4_000, 50.0), rate=4_000.0))
    lines = checks(other_rate, swaps(), killed(), 0.0)
    assert [line.ok for line in lines if "open loop" in line.name] == [None] * 3


def test_medians_over_rounds_and_the_sum_of_errors() -> None:
    made = row("fast lane", "batch", load(10, 1.0), load(30, 9.0, closed=2), load(20, 2.0))
    assert made.rate == 20
    assert made.decisions == 2000
    assert made.latency_ms["p99"] == 2.0
    assert made.errors == {"closed": 2}
    assert made.memory_mib == {"server": 100.0, "beside": 0.0, "generator": 10.0}


def test_the_share_of_the_limit_is_taken_round_by_round() -> None:
    from benchmarks.serving.peers import BARE
    from benchmarks.serving.steps import beside_bare

    made = [
        row("fast lane", "single", load(10), load(10), load(30)),
        row(BARE, "single", load(20), load(40), load(40)),
    ]
    told = beside_bare({each.step.name: each for each in made}, BARE)
    assert told[made[0].step.name].share_of_bare == 0.5


def test_recovery_is_when_the_last_slow_second_is_over() -> None:
    from benchmarks.serving.faults import recovery_s

    steady = [100] * 100
    assert recovery_s(steady, 0.1, 1000, 2.0, 10.0) == 0.0
    outage = [100] * 20 + [0] * 30 + [100] * 50
    assert recovery_s(outage, 0.1, 1000, 2.0, 10.0) == pytest.approx(3.9, abs=0.11)
    assert recovery_s([100] * 20, 0.1, 1000, 2.0, 10.0) is None


def test_the_report_says_what_holds_and_what_was_not_run(tmp_path: Path) -> None:
    from benchmarks.serving.machine import hardware
    from benchmarks.serving.report import Results, write_report

    head = {
        "command": "make bench-serving",
        "rounds": 1,
        "seconds": 2.0,
        "hardware": hardware(),
        "versions": {"python": "3.11", "litellm": None},
        "arms": 8,
        "taught": "4,000 rewards",
        "features": {"features": 56, "of the embedding": 32},
        "payloads": {"single": "one decision"},
    }
    found = rows(fast=row("fast lane", "single", load(9_000, 2.0, closed=3)))
    results = Results(head, found, swaps(), killed(), 0.0, {"LiteLLM proxy": "not installed"})
    write_report(tmp_path / "deep" / "serving", results)
    content = json.loads((tmp_path / "deep" / "serving.json").read_text())
    text = (tmp_path / "deep" / "serving.md").read_text()
    assert "| fast lane, closed loop | at least 12,000 decisions/s | 9,000 | **FAIL** |" in text
    assert "| p99 of a batch | below 10 ms | 1.00 ms | pass |" in text
    assert "3 closed" in text
    assert "- LiteLLM proxy: not installed" in text
    assert "56 features: 24 of the context" in text
    assert content["steps"]["fast lane, single, closed"]["errors"] == {"closed": 3}
    assert {line["ok"] for line in content["checks"]} == {True, False}


def test_payloads_are_the_same_every_time(tmp_path: Path) -> None:
    from benchmarks.serving.payloads import BATCH, prompt_of, write_bodies

    texts = ["one two three", "four five"]
    tokens = {word: 3 for text in texts for word in text.split()}
    prompt = prompt_of(texts, 1, tokens)
    assert prompt.split()[:4] == ["four", "five", "one", "two"]
    assert len(prompt.split()) == 67
    told = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files = write_bodies(tmp_path / name, [prompt] * BATCH)
        told.append({kind: file.read_text() for kind, file in files.items()})
    assert told[0] == told[1]
    line = json.loads(told[0]["batch, prompt"].splitlines()[0])
    assert len(line["items"]) == BATCH
    assert line["items"][0]["context"]["prompt"] == prompt


def test_free_ports_are_free_and_different() -> None:
    from benchmarks.serving.targets import free_ports, has_answered

    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert not any(has_answered(port) for port in ports)
