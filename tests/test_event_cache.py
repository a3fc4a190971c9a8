"""What is compiled is kept; where it cannot be it runs all the same, with one warning that says so."""

from __future__ import annotations

import ast
import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stdeploy.cli.app import run
from stdeploy.errors import StdeployWarning
from tests.commands import saved
from tests.graphs import spikformer_graph

numba = pytest.importorskip("numba")
cache = importlib.import_module("stdeploy.runtime.event.cache")
program = importlib.import_module("stdeploy.runtime.event.program")
session = importlib.import_module("stdeploy.runtime.event.session")

ROOT = Path(__file__).resolve().parent.parent
SOURCE = """
def add(a, b):
    return a + b

def made(digest):
    def add(a, b):
        return a + b + len(digest)
    return add
"""
FULL = """
import resource, warnings
from tests.test_event_cache import loaded
resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    add = loaded()
    assert add(2, 3) == 5 and add(2.5, 3.0) == 5.5, "a second signature too"
print(*(f"{w.category.__name__}: {w.message}" for w in caught), sep="\\n")
"""


def loaded(digest: str | None = None) -> Any:
    """The function of add.py in this folder, or one made with `digest`, as a process that has just begun has it."""
    spec = importlib.util.spec_from_file_location("add", "add.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cache.compiled(module.add if digest is None else module.made(digest), nogil=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the cache's files lie; a warning that a test does not ask for fails it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "add.py").write_text(SOURCE)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", StdeployWarning)
        yield Path(loaded()._cache.cache_path)


def hits(program: Any) -> int:
    return sum(program.stats.cache_hits.values())


def test_another_process_finds_what_the_first_compiled(folder: Path) -> None:
    first = loaded()
    assert first(2, 3) == 5 and hits(first) == 0
    again = loaded()
    assert again(2, 3) == 5 and hits(again) == 1


def test_programs_of_other_sources_are_told_apart(folder: Path) -> None:
    """By what the function closes over, as program.run does over the digest of its sources."""
    assert program.run.py_func.__closure__[0].cell_contents == program._digest()
    for digest in ("one", "two"):
        first, again = loaded(digest), loaded(digest)
        assert (first(2, 3), again(2, 3)) == (8, 8) and (hits(first), hits(again)) == (0, 1)


def test_an_edit_of_any_source_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{k}.py" for k, _ in enumerate(program.sources())]
    for copied, path in zip(files, program.sources(), strict=True):
        copied.write_bytes(path.read_bytes())
    wanted = program._digest()
    monkeypatch.setattr(program, "sources", lambda: files)
    assert program._digest() == wanted and len(files) > 10
    for path in files:
        text = path.read_bytes()
        path.write_bytes(text + b"\n")
        assert program._digest() != wanted
        path.write_bytes(text)


def test_whatever_sources_import_is_a_source() -> None:
    """Else its edit would leave the old program in the cache."""
    inert = {"stdeploy.runtime.event.cache", "stdeploy.graph.weight", "stdeploy.exporters.event"}
    paths = program.sources()
    names = {f"stdeploy.{path.parent.parent.name}.event.{path.stem}" for path in paths}
    assert {"stdeploy.runtime.event.rows", "stdeploy.exporters.event.bit_stages"} < names
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("stdeploy"):
                assert node.module in names | inert, f"{path.name} imports {node.module}"
            assert not isinstance(node, ast.Import) or not node.names[0].name.startswith("stdeploy")


def test_what_is_plain_is_there_and_compiles_nothing() -> None:
    for name in program.PLAIN:
        text = (Path(program.__file__).parent / name).read_text()
        assert "@jit" not in text and "@intrinsic" not in text, name


def test_a_full_disk(folder: Path) -> None:
    """Real writes that fail: the file system takes 16 bytes of a file."""
    found = subprocess.run(
        [sys.executable, "-c", FULL],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": numba.config.CACHE_DIR},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    (line,) = found.stdout.splitlines()
    assert line.startswith("StdeployWarning: ") and "File too large" in line
    assert str(folder) in line and "NUMBA_CACHE_DIR" in line
    assert not list(folder.iterdir()), "nothing half-written"


def vanished(folder: Path) -> None:
    shutil.rmtree(folder.parent)
    folder.parent.write_text("a file where the folder was")


def unreadable(folder: Path) -> None:
    (index,) = folder.glob("*.nbi")
    index.unlink()
    index.mkdir()


def cut(pattern: str, size: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (file,) = folder.glob(pattern)
        file.write_bytes(file.read_bytes()[:size])

    return damage


def overwritten(folder: Path) -> None:
    (file,) = folder.glob("*.nbc")
    file.write_bytes(b"no pickle at all")


@pytest.mark.parametrize("damage", [vanished, unreadable])
def test_files_that_cannot_be_used(folder: Path, damage: Callable[[Path], None]) -> None:
    assert loaded()(2, 3) == 5
    program = loaded()
    damage(folder)
    with pytest.warns(StdeployWarning) as caught:
        assert program(2, 3) == 5 and program(2.5, 3.0) == 5.5
    (warning,) = caught
    text = str(warning.message)
    assert f"{folder} cannot be used (" in text and "NUMBA_CACHE_DIR" in text


@pytest.mark.parametrize(
    "damage", [cut("*.nbi", 0), cut("*.nbi", 30), cut("*.nbc", 0), cut("*.nbc", 500), overwritten]
)
def test_damaged_files_are_written_anew(folder: Path, damage: Callable[[Path], None]) -> None:
    assert loaded()(2, 3) == 5
    damage(folder)
    program, again = loaded(), loaded()
    assert program(2, 3) == 5 and hits(program) == 0
    assert again(2, 3) == 5 and hits(again) == 1


def test_damaged_files_that_cannot_be_written_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded()(2, 3) == 5
    overwritten(folder)
    program = loaded()

    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._save_index", full)
    with pytest.warns(StdeployWarning, match="No space left on device") as caught:
        assert program(2, 3) == 5
    assert len(caught) == 1


def test_no_folder_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    with pytest.warns(StdeployWarning, match="NUMBA_CACHE_DIR") as caught:
        program = loaded()
    assert len(caught) == 1 and program(2, 3) == 5


def test_errors_of_the_function_stay_its_own(folder: Path) -> None:
    with pytest.raises(numba.core.errors.TypingError):
        loaded()("a", 1)


@pytest.mark.parametrize("quiet", [False, True])
def test_a_command_goes_on_and_says_it_once(
    folder: Path, quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(spikformer_graph(steps=1, image=(2, 8, 8), seed=5), 3)
    program, real = loaded(), session.EventSession.compile

    def compile_too(engine: Any) -> None:
        program(2, 3), program(2.5, 3.0)
        real(engine)

    monkeypatch.setattr(session.EventSession, "compile", compile_too)
    vanished(folder)
    command = ["export", "net.stg", "--target", "event", "--data", "data.npz", *["-q"] * quiet]
    assert run(command) == 0
    shown = capsys.readouterr()
    assert shown.err.count("warning: ") == (not quiet) and "Traceback" not in shown.err
    assert quiet or (str(folder) in shown.err and "cache.py" not in shown.err)
    assert "warning" not in shown.out


def test_the_engine_runs_where_numba_may_write_nowhere(tmp_path: Path) -> None:
    code = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
from stdeploy.runtime.event import program, threads
assert not program.run.signatures and type(program.run._cache).__name__ == 'NullCache'
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
