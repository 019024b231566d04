"""Which backend runs: forced by argument or environment, never silently another one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import matchtir
from matchtir import BackendError, ConfigError, RaggedMatrix, ops
from matchtir.ops import _dispatch, hungarian

OPS = ["hungarian", "sinkhorn", "similarity", "scatter"]
KERNELS = ["returns", "policy_loss", "logprobs"]  # of tensors
PROBLEM = "RaggedMatrix.from_blocks([[[0.9, 0.8], [0.8, 0.1]]])"

# An installation without the core: its import fails as it does where nothing was compiled.
NO_CORE = "import sys; sys.modules['matchtir._core'] = None\n"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a process of its own, on this tree, without the settings of this one."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MATCHTIR_")}
    root = str(Path(matchtir.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def output(code: str, **environment: str) -> str:
    done = python(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def problem() -> RaggedMatrix:
    return RaggedMatrix.from_blocks([[[0.9, 0.8], [0.8, 0.1]]])


@pytest.fixture
def spied(monkeypatch) -> list[str]:
    """Names of the modules whose `hungarian` runs."""
    seen: list[str] = []
    for name in ("native", "reference"):
        module = _dispatch.load("hungarian", name)

        def spy(*arguments, run=module.hungarian, name=name):
            seen.append(name)
            return run(*arguments)

        monkeypatch.setattr(module, "hungarian", spy)
    monkeypatch.delenv("MATCHTIR_BACKEND", raising=False)
    return seen


def test_backend_native_is_the_default(problem, spied):
    hungarian(problem)
    assert spied == ["native"]


@pytest.mark.parametrize("name", ["native", "reference"])
def test_backend_is_forced_by_argument(problem, spied, name):
    hungarian(problem, backend=name)
    assert spied == [name]


@pytest.mark.parametrize("name", ["native", "reference"])
def test_backend_is_forced_by_the_environment(problem, spied, monkeypatch, name):
    monkeypatch.setenv("MATCHTIR_BACKEND", name)
    hungarian(problem)
    assert spied == [name]


def test_backend_argument_comes_before_the_environment(problem, spied, monkeypatch):
    monkeypatch.setenv("MATCHTIR_BACKEND", "reference")
    hungarian(problem, backend="native")
    monkeypatch.setenv("MATCHTIR_BACKEND", "unheard of")
    hungarian(problem, backend="reference")
    assert spied == ["native", "reference"]


def test_backend_empty_variable_is_none(problem, spied, monkeypatch):
    monkeypatch.setenv("MATCHTIR_BACKEND", "")
    hungarian(problem)
    assert spied == ["native"]


@pytest.mark.parametrize("op", OPS)
def test_backend_unknown_is_refused(op, monkeypatch):
    expected = rf"op {op} has no backend 'cuda'; expected one of \[('triton', )?'native', 'reference'\]"
    with pytest.raises(ConfigError, match=expected):
        _dispatch.load(op, "cuda")
    monkeypatch.setenv("MATCHTIR_BACKEND", "reference,cuda")
    with pytest.raises(ConfigError, match=r"names the backend 'cuda'; expected names of \['native', 'ref"):
        _dispatch.load(op)


def test_backend_is_forced_in_a_fresh_process():
    code = "from matchtir import ops; print(sorted({x['active'] for x in ops.backends().values()}))"
    assert output(code) == "['native', 'numba']"
    assert output(code, MATCHTIR_BACKEND="native") == "['native', 'numba']"
    assert output(code, MATCHTIR_BACKEND="native,reference") == "['native', 'reference']"
    assert output(code, MATCHTIR_BACKEND="reference") == "['reference']"
    assert output(code, MATCHTIR_BACKEND="reference, native") == "['reference']"
    done = python(code, MATCHTIR_BACKEND="fpga")
    assert done.returncode == 1
    assert "ConfigError: MATCHTIR_BACKEND names the backend 'fpga'; expected names of" in done.stderr


def test_backends_lists_every_op(monkeypatch):
    monkeypatch.delenv("MATCHTIR_BACKEND", raising=False)
    pytest.importorskip("triton")
    pytest.importorskip("numba")
    found = ops.backends()
    core = {"available": ["native", "reference"], "active": "native"}
    assert [found[op] for op in OPS] == [core] * 3 + [{**core, "available": ["triton", *core["available"]]}]
    kernel = {"available": ["triton", "numba", "reference"], "active": "numba"}
    assert [found[op] for op in KERNELS] == [kernel] * 3
    assert {x["active"] for x in ops.backends("cuda").values()} == {"reference", "triton"}
    monkeypatch.setenv("MATCHTIR_BACKEND", "reference")
    assert {x["active"] for x in ops.backends().values()} == {"reference"}
    folders = {x.name for x in Path(ops.__file__).parent.iterdir() if (x / "reference.py").exists()}
    assert folders == {*OPS, *KERNELS} == set(_dispatch.BACKENDS)


def test_backend_must_run_where_the_data_is(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("MATCHTIR_BACKEND", raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    hint = "op scatter does not take data on cpu; TRITON_INTERPRET=1 interprets it, slowly"
    with pytest.raises(BackendError, match=hint):
        _dispatch.load("scatter", "triton")
    with pytest.raises(BackendError, match=r"'native' of op scatter does not take data on cuda$"):
        _dispatch.load("scatter", "native", "cuda")
    assert _dispatch.load("scatter", device="cuda") is _dispatch.load("scatter", "triton", "cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _dispatch.load("scatter", "triton") is _dispatch.load("scatter", "triton", "cuda")


# Without the core


def test_missing_core_falls_back_and_says_so_once():
    code = NO_CORE + (
        "import logging\n"
        "seen = []\n"
        "class Keep(logging.Handler):\n"
        "    def emit(self, record): seen.append((record.levelname, record.getMessage()))\n"
        "logging.getLogger('matchtir').addHandler(Keep())\n"
        "import matchtir as mt\n"
        "from matchtir import RaggedMatrix, ops\n"
        f"for _ in range(3): print(mt.match({PROBLEM})[0].tolist())\n"
        f"for _ in range(2): mt.match({PROBLEM}, matching='sinkhorn')\n"
        "gold = (mt.ToolCall('f', {'x': [1]}),)\n"
        "for _ in range(2): print(mt.similarity([gold], [gold])[0].tolist())\n"
        "print(ops.backends()['scatter']['active'])\n"
        "print(sorted(seen))\n"
    )
    lines = output(code).splitlines()
    assert lines[:5] == ["[[1, 0]]"] * 3 + ["[[1.0]]"] * 2
    assert lines[5] == "reference"
    messages = [
        ("WARNING", f"op {op} runs on backend 'reference' of ('native', 'reference')") for op in sorted(OPS)
    ]
    assert lines[6] == repr(messages)


def test_missing_core_is_an_error_where_it_was_asked_for():
    by_argument = NO_CORE + (
        "from matchtir import RaggedMatrix, ops\n" + f"ops.hungarian({PROBLEM}, backend='native')"
    )
    by_variable = NO_CORE + f"import matchtir\nfrom matchtir import RaggedMatrix\nmatchtir.match({PROBLEM})"
    for done in (python(by_argument), python(by_variable, MATCHTIR_BACKEND="native")):
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert "BackendError: backend 'native' of op hungarian was asked for but cannot be loaded" in last
        assert "matchtir._core" in last


def test_missing_core_still_assigns_credit():
    code = (
        "import matchtir as mt\n"
        "gold = (mt.ToolCall('find', {'city': 'Bern'}),)\n"
        "wrong = (mt.ToolCall('find', {'city': 'Basel'}),)\n"
        "turn = mt.Turn\n"
        "rollouts = [mt.Trajectory((turn(c), turn(answer='42')), gold, '42', 'q') for c in (gold, wrong)]\n"
        "credit = mt.assign_credit(rollouts)\n"
        "print(credit.turn_rewards.tolist(), credit.turn_advantages.tolist())\n"
    )
    assert output(NO_CORE + code) == output(code)


def test_chosen_backend_is_logged_once(caplog, monkeypatch, problem):
    monkeypatch.delenv("MATCHTIR_BACKEND", raising=False)
    _dispatch._automatic.cache_clear()
    with caplog.at_level(logging.DEBUG, logger="matchtir"):
        for _ in range(3):
            hungarian(problem)
    records = [(r.name, r.levelname, r.getMessage()) for r in caplog.records]
    assert records == [
        ("matchtir", "DEBUG", "op hungarian runs on backend 'native' of ('native', 'reference')")
    ]


def test_backend_error_is_a_runtime_error_of_the_library():
    assert issubclass(BackendError, RuntimeError)
    assert issubclass(BackendError, matchtir.MatchtirError)


# Threads


def test_threads_argument_environment_default(monkeypatch):
    monkeypatch.delenv("MATCHTIR_NUM_THREADS", raising=False)
    assert _dispatch.threads(None) == 1
    assert _dispatch.threads(5) == 5
    monkeypatch.setenv("MATCHTIR_NUM_THREADS", "3")
    assert _dispatch.threads(None) == 3
    assert _dispatch.threads(2) == 2


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "2"])
def test_threads_refuses_impossible_arguments(value, problem):
    with pytest.raises(ConfigError, match=f"num_threads is {value!r}; expected a positive integer or None"):
        hungarian(problem, num_threads=value)


@pytest.mark.parametrize("text", ["0", "-2", "two", "1.5", "", " ", "²"])
def test_threads_refuses_an_impossible_variable(text, problem, monkeypatch):
    monkeypatch.setenv("MATCHTIR_NUM_THREADS", text)
    with pytest.raises(ConfigError, match=f"MATCHTIR_NUM_THREADS is {text!r}; expected a positive integer"):
        hungarian(problem)


def test_threads_more_than_there_is_work_for(problem):
    for threads in (1000, 10**6, 2**40):
        assert hungarian(problem, num_threads=threads).tolist() == [[1, 0]]
