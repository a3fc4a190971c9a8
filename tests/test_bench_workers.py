"""Worker processes: they take turns, die, hang and are interrupted, and none is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdeploy.runtime.bench import machine
from stdeploy.runtime.bench.engine import Batches, measure, schedule
from stdeploy.runtime.bench.process import Spec, WorkerProcess
from stdeploy.runtime.bench.report import Plan, Point
from stdeploy.runtime.bench.turns import PlayerError

ROOT = Path(__file__).resolve().parent.parent
QUICK = Plan(batches=(2,), rounds=6, seconds=0.06, timeout=60.0, check=4)
INPUTS = Batches(np.random.default_rng(0).standard_normal((5, 3, 2)).astype(np.float32))


def spec(name: str, factory: str = "doubler", group: str = "model", **arguments: Any) -> Spec:
    return Spec(name, f"tests.bench_factories:{factory}", arguments, group)


def run(*specs: Spec, plan: Plan = QUICK) -> Point:
    (point,) = measure(specs, INPUTS, plan)
    return point


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def gone(*pids: int, within: float = 10.0) -> bool:
    until = time.monotonic() + within
    while any(alive(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_turns_of_processes_really_interleave(tmp_path: Path) -> None:
    """What the candidates themselves wrote down, not what the engine says of them."""
    log = tmp_path / "calls"
    point = run(*(spec(name, factor=2.0 + i / 100, log=str(log)) for i, name in enumerate("abc")))
    assert [row.status for row in point.rows] == ["ok"] * 3
    assert point.overlaps == 0 and sorted(point.order[:3]) == list("abc") and len(point.order) == 18
    lines = [line.rsplit(" ", 1) for line in log.read_text().splitlines()]
    stamps = [float(stamp) for _, stamp in lines]
    assert stamps == sorted(stamps)
    calls = {row.name: row.calls_per_turn or 0 for row in point.rows}
    names = {"doubler x2, 1 threads": "a", "doubler x2.01, 1 threads": "b", "doubler x2.02, 1 threads": "c"}
    expected = [name for name in point.order for _ in range(calls[name] + 1)]
    assert [names[name] for name, _ in lines][-len(expected) :] == expected
    row = point.row("b")
    assert row.summary is not None and row.summary.n == 6 * calls["b"]
    assert row.samples_per_s == pytest.approx(2 / row.summary.mean)
    assert row.peak_bytes is not None and 5e6 < row.peak_bytes < 2e9
    assert point.row("a").ratio is not None and point.row("a").ratio.value == 1.0  # type: ignore[union-attr]


def test_memory_is_the_workers_own() -> None:
    """Linux keeps ru_maxrss across exec: a big parent would be counted as the candidate's."""
    ballast = np.ones(60_000_000)
    row = run(spec("a")).row("a")
    assert ballast.nbytes == 480_000_000
    assert row.peak_bytes is not None and row.peak_bytes < 300e6


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("die", "its process died during .*: exit code 3; the last words"),
        ("killed", r"killed by SIGKILL \(out of memory\?\)"),
        ("raise", "MemoryError: too much$"),
    ],
)
@pytest.mark.parametrize("when", [1, 6, 40])
def test_a_candidate_that_fails_is_reported_and_the_rest_goes_on(
    trouble: str, reason: str, when: int
) -> None:
    """At the first call, while warming up, and in the midst of its turns."""
    plan = Plan(batches=(2,), rounds=40, seconds=0.4, timeout=60.0, check=4)
    point = run(spec("good"), spec("bad", trouble=trouble, when=when), plan=plan)
    assert point.row("good").status == "ok" and len(point.row("good").rounds) == 40
    bad = point.row("bad")
    assert bad.status == "failed" and bad.summary is None
    assert re.search(reason, bad.reason or "")


def test_a_candidate_that_hangs_is_ended() -> None:
    plan = Plan(batches=(2,), rounds=5, seconds=0.05, timeout=3.0, check=4)
    point = run(spec("slow", trouble="hang"), spec("good"), plan=plan)
    assert "no answer to bind within 3 s" in (point.row("slow").reason or "")
    assert point.row("good").status == "ok"


def test_a_candidate_that_cannot_be_made_says_why() -> None:
    point = run(spec("bad", "refusing"), spec("gone", "nobody"), spec("good"))
    assert "cannot be made here" in (point.row("bad").reason or "")
    assert "AttributeError" in (point.row("gone").reason or "")
    assert point.row("good").status == "ok" and point.row("good").ratio is not None


def test_wrong_results_are_never_timed() -> None:
    point = run(
        spec("right"),
        spec("wrong", factor=-2.0),
        spec("nan", trouble="nan", when=10**9),
        spec("other", factor=5.0, group="baseline"),
        spec("close", factor=2.001),
    )
    assert point.row("wrong").status == "mismatch" and point.row("wrong").summary is None
    assert "relative distance" in (point.row("wrong").reason or "")
    assert point.row("nan").status == "mismatch" and "not finite" in (point.row("nan").reason or "")
    assert "wrong" not in point.order and "nan" not in point.order
    assert point.row("other").status == "ok", "another network is compared within its own group"
    close = point.row("close").agreement
    assert close is not None and close.rows == close.argmax_agree == 4
    assert close.distance == pytest.approx(0.0005, rel=1.0) and close.max_difference > 0


def test_what_libraries_print_does_not_disturb() -> None:
    assert run(spec("noisy", "noisy")).row("noisy").status == "ok"


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    assert run(spec("forking", "forking", pids=str(pids))).row("forking").status == "ok"
    assert gone(*(int(p) for p in pids.read_text().split()))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_benchmark_leaves_no_process(how: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C, a polite end, and one that nothing can be done about: the kernel ends the worker then."""
    pids = tmp_path / "pids"
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "from tests.test_bench_workers import *\n"
        f"run(spec('a', 'forking', pids={str(pids)!r}), spec('slow', trouble='hang'))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    )
    until = time.monotonic() + 60
    while not pids.exists() or len(pids.read_text().split()) < 2:
        assert time.monotonic() < until and child.poll() is None
        time.sleep(0.05)
    worker, grandchild = (int(p) for p in pids.read_text().split())
    child.send_signal(how)
    child.communicate(timeout=30)
    assert child.returncode != 0
    assert gone(worker)
    if how is signal.SIGKILL:
        os.kill(grandchild, signal.SIGKILL)  # a candidate's own processes are its own to look after then
    else:
        assert gone(grandchild)


def test_a_worker_without_its_benchmark_ends_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stdeploy.runtime.bench.worker", "1"],
        input=b"",
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 1


def test_requests_out_of_order_are_refused() -> None:
    worker = WorkerProcess(spec("a"), 1, 60.0)
    try:
        with pytest.raises(PlayerError, match="no batch is bound"):
            worker.turn(1)
        with pytest.raises(PlayerError, match="bind before load"):
            worker.ask(do="bind", inputs="x.npy")
    finally:
        worker.close()
    assert gone(worker.pid)


def test_the_schedule_spends_the_seconds_and_never_less_than_five_rounds() -> None:
    plan = Plan(rounds=20, seconds=4.0)
    assert schedule({"fast": 0.001, "slow": 0.1}, plan) == (20, {"fast": 50, "slow": 1})
    assert schedule({"fast": 0.01, "slow": 0.05}, plan) == (20, {"fast": 19, "slow": 3})
    assert schedule({"slow": 0.25}, plan) == (8, {"slow": 1})
    assert schedule({"slow": 30.0, "fast": 0.1}, plan) == (5, {"slow": 1, "fast": 7})
    assert schedule({"one": 0.1}, Plan(rounds=2, seconds=4.0)) == (2, {"one": 19})


def test_too_few_samples_go_round() -> None:
    batches = Batches(np.arange(6.0).reshape(2, 3), axis=1)
    assert batches.take(4, 2).tolist() == [[2.0, 0.0, 1.0, 2.0], [5.0, 3.0, 4.0, 5.0]]


def test_two_candidates_of_one_name_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="same name"):
        measure([spec("a"), spec("a")], INPUTS, QUICK)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [(None, 8), ("max 100000", 8), ("150000 100000", 2), ("5000 100000", 1), ("9900000 100000", 8), ("", 8)],
)
def test_a_container_has_no_more_cores_than_its_quota(
    quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert machine.available_cores() == cores
