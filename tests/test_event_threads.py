"""The threads of event sessions: shared, ended, interrupted, forked, bound to CPUs."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdeploy.errors import UserError
from stdeploy.exporters.event.container import Sev
from stdeploy.exporters.event.lower import lower
from stdeploy.graph import Graph
from stdeploy.graph.weight import Array
from stdeploy.runtime.event import machine as machine_module
from stdeploy.runtime.event import program, threads
from stdeploy.runtime.event.session import EventSession
from tests.event import kernels, same, session
from tests.graphs import random_inputs, spikformer_graph


@pytest.fixture(scope="module")
def net() -> tuple[Graph, Array]:
    graph = spikformer_graph(steps=5, layout="TB", neurons="mixed")
    return graph, random_inputs(graph, 4)


def test_sessions_in_several_threads_and_one_session_in_several(net: tuple[Graph, Array]) -> None:
    graph, x = net
    with session(graph, "mixed", 2) as shared:
        wanted = shared.run(x)

        def work(k: int) -> None:
            with session(graph, "mixed", 2) as own:
                for engine in (own, shared):
                    same(engine.run(x), wanted)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(8)))


def test_closed_sessions_say_so_and_end_their_threads(net: tuple[Graph, Array]) -> None:
    graph, x = net
    before = threading.active_count()
    engine = session(graph, threads=3)
    engine.run(x)
    engine.step(x[0, 0])
    assert threading.active_count() > before
    engine.close()
    engine.close()
    assert threading.active_count() == before
    for call in (lambda: engine.run(x), lambda: engine.step(x[0, 0])):
        with pytest.raises(UserError, match="closed"):
            call()
    assert pickle.loads(pickle.dumps(engine))._closed
    session(graph, threads=3).run(x)  # never closed, but not kept either
    gc.collect()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.parametrize("batch", [1, 4])
def test_an_interrupt_leaves_a_session_that_runs(
    net: tuple[Graph, Array], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one between the start of two threads: those that wait at the barrier are let go."""
    graph, x = net
    with session(graph, threads=2) as engine:
        wanted = engine.run(x[:, :batch])
        real, calls = machine_module.run_stages, []

        def interrupted(memory: Any, *rest: Any) -> int:
            calls.append(1)
            if len(calls) > 3 and (batch > 1 or len(calls) % 2):
                raise KeyboardInterrupt
            return int(real(memory, *rest))

        monkeypatch.setattr(machine_module, "run_stages", interrupted)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                engine.run(x[:, :batch])
        monkeypatch.undo()
        same(engine.run(x[:, :batch]), wanted)


def test_a_thread_that_cannot_be_started_leaves_none_running(
    net: tuple[Graph, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would write where the next call computes."""
    graph, x = net
    with session(graph, threads=2) as engine:
        wanted = engine.run(x)
        real, submit, jobs = machine_module.run_stages, engine._shares.submit, []

        def slow(*arguments: Any) -> int:
            time.sleep(0.01)
            return int(real(*arguments))

        def only_one(*arguments: Any) -> Any:
            if jobs:
                raise RuntimeError("can't start new thread")
            jobs.append(submit(*arguments))
            return jobs[0]

        monkeypatch.setattr(machine_module, "run_stages", slow)
        monkeypatch.setattr(engine._shares, "submit", only_one)
        with pytest.raises(RuntimeError, match="new thread"):
            engine.run(x)
        assert jobs[0].done()
        monkeypatch.undo()
        same(engine.run(x), wanted)


def test_threads_that_are_let_go_begin_no_further_stage(net: tuple[Graph, Array]) -> None:
    """What it reads may not be there yet."""
    graph, x = net
    with session(graph, threads=2) as engine:
        machine = engine._machine(engine.steps, 2)
        machine.array(engine.header["input"]["buffer"])[:] = x[:, 0].reshape(-1)
        begun = machine._control[1:]
        machine._control[0] = program.OPEN
        program.run(machine._memory(0, 0, False), machine.table, 2, machine.stages, 2)
        assert begun[2] > 0 and np.count_nonzero(begun) == 1
        machine.run(0, machine.stages)
        assert np.all(begun > 0)
        machine.close()


def test_a_stream_that_was_interrupted_is_not_continued(
    net: tuple[Graph, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, x = net
    with session(graph) as engine:
        wanted = [engine.step(frame).outputs["output"] for frame in x[:, 0]]
        engine.reset()
        engine.step(x[0, 0])
        real = machine_module.run_stages

        def interrupted(*arguments: Any) -> int:
            real(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(machine_module, "run_stages", interrupted)
            engine.step(x[1, 0])
        for other in (engine, copy.copy(engine)):
            with pytest.raises(UserError, match="interrupted") as caught:
                other.step(x[1, 0])
            assert caught.value.hint == "call reset() first"
        engine.run(x)
        engine.reset()
        for frame, outputs in zip(x[:, 0], wanted, strict=True):
            np.testing.assert_array_equal(engine.step(frame).outputs["output"], outputs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own(net: tuple[Graph, Array]) -> None:
    graph, x = net
    with session(graph, threads=2) as engine:
        wanted = engine.run(x[:, :3])
        engine.step(x[0, 0])
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            status = 1
            try:
                same(engine.run(x[:, :3]), wanted)
                engine.step(x[1, 0])
                engine.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        same(engine.run(x[:, :3]), wanted)


def test_threads_that_cannot_be(net: tuple[Graph, Array], monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = net
    with pytest.raises(UserError, match="0 threads"):
        session(graph, threads=0)
    file = Sev(*lower(graph, kernels(graph, "rows")))
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert EventSession(file).threads == 5 and "5 threads" in EventSession(file).name
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(UserError, match="little-endian"):
        EventSession(file)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are bound to CPUs on Linux only")
@pytest.mark.parametrize("name", ["sched_getaffinity", "sched_setaffinity"])
def test_a_machine_that_forbids_binding_threads_runs_them_anywhere(
    net: tuple[Graph, Array], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, x = net
    wanted = session(graph).run(x[:, :1])

    def forbidden(*arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    with session(graph, threads=2) as engine:
        monkeypatch.setattr(os, name, forbidden)
        same(engine.run(x[:, :1]), wanted)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are bound to CPUs on Linux only")
def test_processes_beside_each_other_take_other_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one core's second hardware thread only after all cores' first."""
    siblings = {cpu: f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n" for cpu in range(8)}
    monkeypatch.setattr(Path, "read_text", lambda path: siblings[int(path.parts[-3].removeprefix("cpu"))])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(siblings))
    bound: list[int] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cpus: bound.extend(cpus))
    for process in range(1000, 1004):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        monkeypatch.setattr(threads, "_groups", itertools.count())
        pin = threads._pinner(2)
        assert pin is not None
        pin(), pin()
    assert sorted(bound) == list(siblings)
    pairs = [{cpu // 2 for cpu in bound[k : k + 2]} for k in range(0, 8, 2)]
    assert all(len(cores) == 2 for cores in pairs), "two threads of a session share a core"
    assert threads._pinner(9) is None
