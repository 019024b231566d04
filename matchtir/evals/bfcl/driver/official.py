"""The jobs of the driver: say what there is, generate results, judge them. bfcl_eval does the work."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .guard import Guard
from .report import Down, Refusal, Report

TRIALS = 3
"""Tasks in a row without an answer after which the endpoint is taken for down; more with more threads."""

ERROR = "Error during inference:"
"""How a result begins that is none, in bfcl_eval."""

Job = Mapping[str, Any]

# A traceback's line that says that the endpoint is down, refuses the key or does not know the model.
_DOWN = re.compile(
    r"^openai\.(APIConnection|APITimeout|InternalServer|Authentication|PermissionDenied|NotFound)Error", re.M
)
_UNDECLARED = ("soundfile",)  # which qwen-agent imports and does not ask for
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def plan(job: Job, report: Report) -> None:
    """Say which categories, tasks and files are meant, and what the handler is."""
    mapping = importlib.import_module("bfcl_eval.constants.category_mapping")
    known = [*mapping.MULTI_TURN_CATEGORY, *mapping.AGENTIC_CATEGORY]
    names: list[str] = []
    for asked in job["categories"]:
        found = [name for name in mapping.TEST_COLLECTION_MAPPING.get(asked, [asked]) if name in known]
        if not found or len(found) < len(mapping.TEST_COLLECTION_MAPPING.get(asked, [asked])):
            expected = ", ".join(("multi_turn", "memory", "web_search", *known))
            raise Refusal(f"category {asked!r} is unknown; expected one of {expected}")
        names += [name for name in found if name not in names]
    report.say(plan={"categories": [_category(name) for name in names], "handler": _handler(job)})


def _category(name: str) -> dict[str, Any]:
    """A category's tasks in order, where its files are, and the conversations that fill each memory."""
    utils = importlib.import_module("bfcl_eval.utils")
    entries = sorted(utils.load_dataset_entry(name), key=utils.sort_key)
    before: dict[str, list[str]] = {}
    for entry in entries:
        if utils.is_memory_prereq(entry["id"]):
            before.setdefault(entry["scenario"], []).append(entry["id"])
    tasks = [entry for entry in entries if not utils.is_memory_prereq(entry["id"])]
    return {
        "name": name,
        "folder": utils.get_directory_structure_by_category(name),
        "prefix": importlib.import_module("bfcl_eval.constants.category_mapping").VERSION_PREFIX,
        "tasks": [entry["id"] for entry in tasks],
        "before": before,
        "scenarios": {entry["id"]: entry["scenario"] for entry in tasks} if before else {},
    }


def _handler(job: Job) -> dict[str, Any]:
    """What is known of the handler that was asked for; the default is a chat endpoint that takes tools."""
    if job["handler"] is None:
        return {"local": False, "model": job["model"]}
    config = _registered(job["handler"])
    return {"local": _is_local(config.model_handler), "model": config.model_name}


def _registered(name: str) -> Any:
    """The registry's entry; refuses names it lacks, and handlers that do not ask the endpoint."""
    registry: dict[str, Any] = importlib.import_module(
        "bfcl_eval.constants.model_config"
    ).MODEL_CONFIG_MAPPING
    usable = [key for key, config in registry.items() if _asks_endpoint(config.model_handler)]
    if name in usable:
        return registry[name]
    problem = "asks its vendor and not an endpoint" if name in registry else "is not in bfcl_eval's registry"
    raise Refusal(f"handler {name!r} {problem}; expected one of {', '.join(usable)}")


def _is_local(handler: type) -> bool:
    """Whether a handler writes the prompt itself, and needs the model's tokenizer for it."""
    local = importlib.import_module("bfcl_eval.model_handler.local_inference.base_oss_handler")
    return issubclass(handler, local.OSSHandler)


def _asks_endpoint(handler: type) -> bool:
    """Whether a handler asks the address that it is given."""
    package = "bfcl_eval.model_handler.api_inference"
    chat = importlib.import_module(f"{package}.openai_completion").OpenAICompletionsHandler
    responses = importlib.import_module(f"{package}.openai_response").OpenAIResponsesHandler
    return _is_local(handler) or handler in (chat, responses)


def _register(job: Job) -> str:
    """Put the model into the registry, if no handler of the registry is asked for; returns the name there."""
    if job["handler"] is not None:
        _registered(job["handler"])
        return str(job["handler"])
    registry = importlib.import_module("bfcl_eval.constants.model_config")
    chat = importlib.import_module("bfcl_eval.model_handler.api_inference.openai_completion")
    label: str = job["label"]

    class ChatHandler(chat.OpenAICompletionsHandler):  # type: ignore[misc, name-defined]
        """The official handler; only the names of its objects are such that Python takes any model's name."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.model_name_underline_replaced = re.sub(r"\W", "_", label)

    config = registry.ModelConfig(
        model_name=job["model"],
        display_name=job["model"],
        url="",
        org="",
        license="",
        model_handler=ChatHandler,
        is_fc_model=True,
        underscore_to_dot=True,
    )
    # The evaluation makes "/" of each "_" in a folder's name before it looks the model up.
    registry.MODEL_CONFIG_MAPPING[label] = registry.MODEL_CONFIG_MAPPING[label.replace("_", "/")] = config
    return label


def generate(job: Job, report: Report) -> None:
    """Generate results of the tasks that have none, by the official code."""
    official: Any = importlib.import_module("bfcl_eval._llm_response_generation")
    name = _register(job)
    guard = Guard(report)
    guard.install()
    categories = [one for one in job["categories"] if _can_run(one, report)]
    wanted = set(job["tasks"])
    found = [one for category in categories for one in official.load_dataset_entry(category)]
    tasks = [one for one in found if one["id"] in wanted]
    _import_tools({name for one in tasks for name in one["involved_classes"]})
    official.get_involved_test_entries = lambda *_: (categories, tasks)
    official.build_handler = _watching(official.build_handler, guard)
    official.sort_file_content_by_id = _sort_file
    official.multi_threaded_inference = _told(
        official.multi_threaded_inference, guard, report, job["threads"]
    )
    official.main(
        SimpleNamespace(
            model=[name],
            test_category=categories,
            temperature=job["temperature"],
            include_input_log=False,
            exclude_state_log=False,
            num_gpus=1,
            num_threads=job["threads"],
            gpu_memory_utilization=0.9,
            backend="vllm",
            skip_server_setup=True,
            local_model_path=job["local_model"],
            result_dir=None,
            allow_overwrite=False,
            run_ids=False,
            enable_lora=False,
            max_lora_rank=None,
            lora_modules=None,
        )
    )


def _can_run(category: str, report: Report) -> bool:
    """Whether a category's tools can be imported; memories of vectors need a model that may not be here."""
    if category != "memory_vector":
        return True
    try:
        _import_tools({"MemoryAPI_vector"})
    except Exception as error:
        report.say(
            note=f"{category} is left out, whose model for texts is not in the hub's cache here: {error}"
        )
        return False
    return True


def _import_tools(classes: Iterable[str]) -> None:
    """Import what tools are made of beforehand, so that the time it takes is nobody's."""
    places = importlib.import_module("bfcl_eval.constants.executable_backend_config").CLASS_FILE_PATH_MAPPING
    for name in sorted(classes):
        importlib.import_module(places[name])


def _watching(build: Callable[..., Any], guard: Guard) -> Callable[..., Any]:
    """A maker of handlers whose reading of the model's text is watched."""

    def built(*args: Any, **kwargs: Any) -> Any:
        handler = build(*args, **kwargs)
        handler.decode_execute = guard.watched(handler.decode_execute)
        return handler

    return built


def _told(infer: Callable[..., Any], guard: Guard, report: Report, threads: int) -> Callable[..., Any]:
    """The function that solves a task; it says when one is done, and stops if the endpoint is down."""
    lock = threading.Lock()
    in_a_row: list[str] = []

    def solved(handler: Any, entry: Any, *rest: Any) -> Any:
        with guard.task(entry["id"]):
            result = infer(handler, entry, *rest)
        failed = isinstance(result["result"], str) and result["result"].startswith(ERROR)
        report.say(task=entry["id"], error=result["result"] if failed else None)
        with lock:
            if failed and _DOWN.search(result.get("traceback", "")):
                in_a_row.append(result["result"])
            else:
                in_a_row.clear()
            if len(in_a_row) >= max(threads, TRIALS):
                raise Down(f"{len(in_a_row)} tasks in a row failed, the last with: {in_a_row[-1]}")
        return result

    return solved


def _sort_file(path: Path) -> None:
    """Put a file's results in the order of their tasks; a process killed meanwhile loses none."""
    utils = importlib.import_module("bfcl_eval.utils")
    lines = path.read_bytes().splitlines(keepends=True)
    ordered = sorted(lines, key=lambda line: utils.sort_key(json.loads(line)))
    if ordered != lines:
        beside = path.with_suffix(".new")
        beside.write_bytes(b"".join(ordered))
        os.replace(beside, path)


def evaluate(job: Job, report: Report) -> None:
    """Judge the results by the official code; tasks that cannot be judged are failed, and named."""
    official: Any = importlib.import_module("bfcl_eval.eval_checker.eval_runner")
    name = _register(job)
    guard = Guard(report)
    guard.install()
    official.get_handler = _watching(official.get_handler, guard)
    official.load_file = _without_surrogates(official.load_file)
    for function in ("_evaluate_single_multi_turn_entry", "_evaluate_single_agentic_entry"):
        setattr(official, function, _judged(getattr(official, function), guard, report, job["failed"]))
    official.generate_leaderboard_csv = _if_it_can(official.generate_leaderboard_csv, report)
    official.main([name], list(job["categories"]), None, None, partial_eval=True)


def _judged(
    judge: Callable[..., Any], guard: Guard, report: Report, failed: Mapping[str, str]
) -> Callable[..., Any]:
    """The function that judges a task; one that failed, or fails here, is judged as without a result."""

    @functools.wraps(judge)
    def judged(handler: Any, task: str, result: Any, *rest: Any) -> Any:
        if task in failed:
            verdict = judge(handler, task, f"{ERROR} {failed[task]}", *rest)
        else:
            try:
                with guard.task(task):
                    verdict = judge(handler, task, result, *rest)
            except Exception as error:  # a strange result must not keep the others from being judged
                reason = f"judging it raised {type(error).__name__}: {error}"
                report.say(failed=task, reason=reason[:500])
                verdict = judge(handler, task, f"{ERROR} {reason}", *rest)
        report.say(task=task, error=None)
        return verdict

    return judged


def _without_surrogates(load: Callable[..., Any]) -> Callable[..., Any]:
    """A reader of files that replaces what cannot be written as UTF-8; the official code would end there."""

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return _SURROGATES.sub("\ufffd", value)
        if isinstance(value, list):
            return [clean(one) for one in value]
        return {clean(key): clean(one) for key, one in value.items()} if isinstance(value, dict) else value

    def loaded(*args: Any, **kwargs: Any) -> Any:
        return clean(load(*args, **kwargs))

    return loaded


def _if_it_can(write: Callable[..., Any], report: Report) -> Callable[..., Any]:
    """The writer of the official tables, which fails for a single request; our table does not need them."""

    def written(*args: Any, **kwargs: Any) -> None:
        try:
            write(*args, **kwargs)
        except Exception as error:
            report.say(note=f"the official tables (data_*.csv) are not written: {error}")

    return written


def installed_version() -> str:
    """Version of bfcl-eval here; refuses an environment without it, or without what it needs."""
    try:
        version = importlib.metadata.version("bfcl-eval")
    except importlib.metadata.PackageNotFoundError:
        raise Refusal("bfcl-eval is not installed there") from None
    needed = [
        re.split(r"[^\w.-]", one)[0]
        for one in importlib.metadata.requires("bfcl-eval") or ()
        if ";" not in one
    ]
    missing = [name for name in (*needed, *_UNDECLARED) if not _is_installed(name)]
    if missing:
        raise Refusal(f"bfcl-eval needs {', '.join(missing)}, not installed there")
    return version


def _is_installed(name: str) -> bool:
    """Whether there is a distribution of that name."""
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
