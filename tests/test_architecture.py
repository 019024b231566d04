"""What may import what, what an import costs, and what the sources may say."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import matchtir
from matchtir import ops

PACKAGE = Path(matchtir.__file__).parent
ROOT = PACKAGE.parent

# Layer of each module, by its longest prefix here. A module imports from lower layers only, and of
# its own layer only what is inside the same unit (the same entry of this table).
LAYERS = {
    "types": 0,
    "errors": 0,
    "config": 0,
    "_core": 1,
    "ops._dispatch": 1,
    "ops._spans": 1,
    "ops._threads": 1,
    "ops.hungarian": 1,
    "ops.sinkhorn": 1,
    "ops.similarity": 1,
    "ops.scatter": 1,
    "ops.returns": 1,
    "ops.policy_loss": 1,
    "ops.logprobs": 1,
    "rows": 1,
    "parse": 2,
    "similarity": 2,
    "matching": 2,
    "rewards": 2,
    "dialogues": 2,
    "advantages": 2,
    "baselines": 2,
    "scatter": 2,
    "loss": 2,
    "credit": 3,
    "methods": 3,
    "tools": 3,
    "tasks": 3,
    "rollout": 3,
    "files": 4,
    "report": 4,
    "train": 4,
    "integrations": 4,
    "evals": 4,
    "cli": 5,
    "__main__": 6,
}

# Imported inside a layer on purpose. (So are `_dispatch` and the like by every op, the ops by `ops`.)
ACROSS = {("types", "errors"), ("config", "errors"), ("rollout", "tools"), ("train", "evals")}

# Packages that may be missing, and the files that may import them.
OPTIONAL = {
    "torch": ("scatter.py", "loss.py", "train/", "rollout/", "ops/", "integrations/"),
    "pyarrow": ("files/parquet.py", "rows/parquet.py"),
    "datasets": ("tasks/hub.py",),
    "jsonschema": ("tools/arguments.py",),
    "referencing": ("tools/arguments.py",),
    "openai": ("evals/endpoint.py",),
    "bfcl_eval": ("tasks/bfcl_world.py", "evals/bfcl/driver/"),
    "json_repair": ("parse/repair.py",),
    "rich": ("cli/", "report/"),
    "triton": ("triton.py",),
    "numba": ("numba.py",),
    "transformers": ("rollout/cache.py", "rollout/continuous.py", "train/models.py", "train/embedded/"),
    "tokenizers": ("train/embedded/",),
    "deepspeed": ("deepspeed.py",),
    "peft": ("train/models.py",),
    "jsonargparse": ("cli/train_options.py",),
    "yaml": ("cli/train.py",),
    "huggingface_hub": ("train/model_source.py",),
    "gguf": ("train/model_source.py",),
    "safetensors": ("train/models.py", "train/embedded/"),
    "matplotlib": ("report/learning_curve.py", "report/inspector/charts.py"),
    **dict.fromkeys(("jinja2", "markupsafe"), ("report/inspector/page.py",)),
    **dict.fromkeys(("wandb", "mlflow", "trackio"), ("train/trackers.py",)),
    **dict.fromkeys(("trl", "accelerate"), ("integrations/trl.py",)),
    "verl": ("integrations/verl.py", "integrations/verl_agent_loop.py"),
    "omegaconf": ("integrations/verl.py", "integrations/verl_scoring.py"),
}

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    """Module name below `matchtir`, "" for the package itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file) for file in FILES} | {"_core"}


def unit_of(module: str) -> str:
    """The entry of LAYERS that a module belongs to; "" and "ops" belong to none."""
    found = [unit for unit in LAYERS if module == unit or module.startswith(unit + ".")]
    return max(found, key=len, default=module)


def imports_of(file: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of all modules that a file imports, anywhere in it, and the lines."""
    package = ["matchtir", *file.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                # `from . import x` imports the module x, where there is one.
                full = f"{stem}.{alias.name}"
                is_module = full.removeprefix("matchtir.") in MODULES and full.startswith("matchtir.")
                yield (full if is_module else stem), node.lineno
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value), node.lineno


def own(name: str) -> str | None:
    """Name below `matchtir`, None for a module of somebody else."""
    if name == "matchtir":
        return ""
    return name.removeprefix("matchtir.") if name.startswith("matchtir.") else None


def violation(module: str, imported: str) -> str | None:
    """What is wrong with an import inside the package; None if nothing is."""
    source, target = unit_of(module), unit_of(imported)
    if module == "":
        return None if LAYERS.get(target, 9) <= 3 else "the package's face takes layers 0 to 3 only"
    if imported == "":
        return "imports the package's face, which imports everything"
    if imported == "_core":
        native = module.startswith("ops.") and module.endswith(".native")
        return None if native or module == "report.environment" else "only native backends import the core"
    if source == target or (source, target) in ACROSS:
        return None
    if source == "ops":
        return None if target.startswith("ops.") or LAYERS.get(target) == 0 else "ops gathers its ops"
    if target in ("ops._dispatch", "ops._spans", "ops._threads") and source.startswith("ops."):
        return None
    level = 1 if target == "ops" else LAYERS.get(target)
    if level is None or source not in LAYERS:
        return "no layer is known; add it to LAYERS"
    if level == LAYERS[source]:
        return "imports a sibling of its own layer"
    return "imports upwards" if level > LAYERS[source] else None


@pytest.mark.parametrize("file", FILES, ids=lambda file: name_of(file) or "matchtir")
def test_imports_run_downwards(file):
    wrong = [
        f"{file.name}:{line} imports {name}: {why}"
        for name, line in imports_of(file)
        if (target := own(name)) is not None and (why := violation(name_of(file), target))
    ]
    assert wrong == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: name_of(file) or "matchtir")
def test_optional_packages_are_imported_where_they_belong(file):
    path = file.relative_to(PACKAGE).as_posix()
    for name, line in imports_of(file):
        root = name.partition(".")[0]
        if own(name) is not None or root in sys.stdlib_module_names or root == "numpy":
            continue
        places = OPTIONAL.get(root)
        assert places is not None, f"{path}:{line} imports {root}, which no file may"
        assert any(path.startswith(p) if p.endswith("/") else path.endswith(p) for p in places), (
            f"{path}:{line} imports {root}; expected only in {places}"
        )


def test_confined_worker_imports_the_standard_library_only():
    # It is imported by its path, in a process that has no other.
    folder = PACKAGE / "tools/sandbox/worker"
    files = sorted(folder.glob("*.py"))
    assert len(files) > 5
    for file in files:
        for name, line in imports_of(file):
            own_name = name.startswith("matchtir.tools.sandbox.worker")
            assert own_name or name.partition(".")[0] in sys.stdlib_module_names, f"{file}:{line}: {name}"


def test_import_rule_sees_what_it_forbids():
    assert violation("similarity", "matching") == "imports a sibling of its own layer"
    assert violation("ops.hungarian.native", "ops.sinkhorn") == "imports a sibling of its own layer"
    assert violation("types", "ops") == "imports upwards"
    assert violation("matching", "credit") == "imports upwards"
    assert violation("similarity", "_core") == "only native backends import the core"
    assert violation("matching", "ops.sinkhorn") is None
    assert violation("parse.hermes", "parse.scan") is None
    assert violation("cli", "files") is None
    assert violation("gadgets", "types") == "no layer is known; add it to LAYERS"
    assert violation("types", "gadgets") == "no layer is known; add it to LAYERS"
    found = {name for name, _ in imports_of(PACKAGE / "matching.py")}
    assert {"matchtir.errors", "matchtir.ops", "matchtir.types", "numpy"} <= found
    assert ("matchtir._core") in {name for name, _ in imports_of(PACKAGE / "ops/scatter/native.py")}
    assert "matchtir.ops._dispatch" in {name for name, _ in imports_of(PACKAGE / "ops/scatter/__init__.py")}


def test_import_needs_numpy_only():
    code = r"""
import sys
before = set(sys.modules)
class Block:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in sys.stdlib_module_names and root not in ("numpy", "matchtir"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Block())
import matchtir as mt
from matchtir import ops
gold = (mt.ToolCall("find", {"city": "Bern"}),)
turn = mt.parse_turn('<tool_call>{"name": "find", "arguments": {"city": "Basel"}}</tool_call>')
credit = mt.assign_credit([mt.Trajectory((t,), gold, "42", "q") for t in (turn, mt.Turn(gold))])
spans = mt.spans_from_mask([[0, 1], [1, 1]])
print((3 * mt.scatter(credit.turn_rewards, spans, (2, 2))).tolist())
assert {x["active"] for x in ops.backends().values()} == {"native", None}
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
allowed = set(sys.stdlib_module_names) | {"numpy", "matchtir"}
print(sorted(r for r in roots - allowed if not r.startswith(("_cython", "cython_runtime"))))
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MATCHTIR_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[[0.0, 2.0], [3.0, 3.0]]", "[]"]


# Docstrings

PUBLIC = [(matchtir, name) for name in matchtir.__all__] + [(ops, name) for name in ops.__all__]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=lambda x: getattr(x, "__name__", x))
def test_public_names_are_documented(module, name):
    thing = getattr(module, name)
    text = inspect.getdoc(thing) or ""
    assert len(text) > 20, f"{name} has no docstring"
    if not inspect.isfunction(thing):
        return
    if "as\n:func:" in text or "as :func:" in text.partition("Parameters\n---")[0]:
        return  # says that it takes what its twin takes
    signature = inspect.signature(thing)
    if signature.return_annotation not in ("None", None):
        assert "\nReturns\n-------\n" in text
    if signature.parameters:
        assert "\nParameters\n----------\n" in text
        section = text.partition("\nParameters\n----------\n")[2]
        section = re.split(r"\n\w[^\n]*\n-{4,}\n", section)[0]
        named = set(re.findall(r"\w+", "\n".join(re.findall(r"^(?! )(.*)$", section, flags=re.M))))
        assert set(signature.parameters) <= named, f"{name} does not describe all its parameters"


def test_modules_are_documented():
    for file in FILES:
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), f"{file} says nothing"


def test_public_names_exist_and_are_sorted():
    for module in (matchtir, ops):
        assert list(module.__all__) == sorted(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)
    for file in FILES:
        if file.name == "__init__.py" and file.parent != PACKAGE:
            module = importlib.import_module(f"matchtir.{name_of(file)}")
            assert all(hasattr(module, name) for name in getattr(module, "__all__", ()))


# The project speaks of itself alone

TEXT = (
    ".py",
    ".pyx",
    ".pxi",
    ".pyi",
    ".hpp",
    ".cpp",
    ".md",
    ".toml",
    ".txt",
    ".in",
    ".jsonl",
    ".cfg",
    ".yml",
)
OURS = ["matchtir", "csrc", "tests", "bench", "docs", ".ci"]
MACHINE_PATH = re.compile(r"/(work|tmp/w|home/\w+|root|Users/\w+)/")


def sources() -> list[Path]:
    found = [file for file in ROOT.iterdir() if file.is_file()]
    found += [file for folder in OURS for file in (ROOT / folder).rglob("*") if file.is_file()]
    return [file for file in found if file.suffix in TEXT or file.name in ("Makefile", "LICENSE", "run")]


def test_sources_name_no_machine_paths():
    files = sources()
    assert len(files) > 60 or not (ROOT / "csrc").exists()
    wrong = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert wrong == []


def test_machine_paths_are_recognised():
    for path in (
        "/wo" + "rk/main",
        "see /tm" + "p/w/x",
        "/ho" + "me/ada/x",
        "/ro" + "ot/x",
        "/Us" + "ers/ada/x",
    ):
        assert MACHINE_PATH.search(path), path
    for text in ("the root/leaf", "work/time", "https://example.org/a/b", "/tmp/x"):
        assert not MACHINE_PATH.search(text), text
