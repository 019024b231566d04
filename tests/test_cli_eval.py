"""`matchtir eval`: its table, its JSON, its exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from matchtir import cli, files
from matchtir.evals import METRICS, Bootstrap, evaluate
from matchtir.report.evaluation import evaluation_tables

ROOT = Path(__file__).parents[1]


def row(group: str, *results: str | None, answer: str = "yes", **fields: Any) -> dict[str, Any]:
    """A rollout that calls `f` once for each result, all in one turn, and then answers."""
    calls = [{"id": str(i), "function": {"name": "f", "arguments": "{}"}} for i in range(len(results))]
    said = [
        {"role": "tool", "tool_call_id": str(i), "content": text}
        for i, text in enumerate(results)
        if text is not None
    ]
    turn = [{"role": "assistant", "content": None, "tool_calls": calls}] if calls else []
    return {"group": group, "messages": [*turn, *said, {"role": "assistant", "content": answer}], **fields}


ASKED = {"gold_answer": "yes", "sub_answers": {"f": ["1", "2"]}, "kind": "double"}
BOTH = row("a", "1", "2", **ASKED)
HALF = row("b", "1", "3", "Error: no", answer="no", **ASKED)


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


def means(found: dict[str, Any], level: str = "overall", name: str = "all") -> dict[str, float | None]:
    (chosen,) = [row for row in found["rows"] if (row["level"], row["name"]) == (level, name)]
    return {metric: value and value["mean"] for metric, value in chosen["metrics"].items()}


def test_eval_of_the_sample_is_as_counted_by_hand(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "m.json"
    assert cli.main(["eval", "--sample", "--json", str(out)]) == cli.DONE
    found = json.loads(out.read_text())
    # q, calls and sub-questions of the rollouts with sub_answers, four of each of these tasks:
    tasks = {
        "single_hop": [(1, 1, 1)] * 4,  # chart-branch
        "parallel_single_hop": [(3, 3, 3), (3, 4, 3), (2, 3, 3), (3, 4, 3)],  # spare-parts
        "multi_hop": [(3, 3, 3), (3, 4, 3), (2, 3, 3), (2, 3, 3)],  # author-town
        "parallel_multi_hop": [(4, 4, 4), (4, 4, 4), (4, 5, 4), (3, 4, 4)],  # menu-allergens
    }
    by_kind = {
        kind: (
            sum(q / calls for q, calls, _ in rollouts) / 4,
            sum(q / asked for q, _, asked in rollouts) / 4,
            sum(2 * q / (calls + asked) for q, calls, asked in rollouts) / 4,
        )
        for kind, rollouts in tasks.items()
    }
    for kind, solve in by_kind.items():
        values = means(found, "kind", kind)
        assert [values["solve_p"], values["solve_r"], values["solve_f1"]] == pytest.approx(solve)
    overall = means(found)
    mean_of_kinds = [sum(values) / 4 for values in zip(*by_kind.values(), strict=True)]
    assert [overall["solve_p"], overall["solve_r"], overall["solve_f1"]] == pytest.approx(mean_of_kinds)
    # One rollout of 32 gives no answer, in the task menu-allergens.
    assert overall["unanswered"] == 1 / 32
    assert (found["rows"][0]["tasks"], found["rows"][0]["rollouts"]) == (8, 32)
    assert "sample\n32 rollouts of 8 tasks\n" in capsys.readouterr().out


def test_documented_json_is_that_of_the_sample(capsys: Any) -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text("utf-8")
    (shown,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    documented = json.loads(shown)
    assert cli.main(["eval", "--sample", "--json", "-"]) == cli.DONE
    found = json.loads(capsys.readouterr().out)
    (row,) = documented.pop("rows")
    assert documented.items() <= found.items()
    assert [*documented, "rows"] == list(found)
    (overall, *_) = found["rows"]
    assert overall["metrics"]["solve_p"] == pytest.approx(row.pop("metrics")["solve_p"], abs=1e-4)
    assert row.items() <= overall.items()


def test_eval_prints_the_means_of_the_json(tmp_path: Path, capsys: Any) -> None:
    path = write_lines(tmp_path / "r.jsonl", [BOTH, HALF])
    assert cli.main(["eval", path, "--bootstrap", "100"]) == cli.DONE
    captured = capsys.readouterr()
    assert captured.err == f"matchtir: {path}: recognised as jsonl\n"
    # P (1 + 1/3) / 2, R (1 + 1/2) / 2, F1 (1 + 2/5) / 2, one of two right; calls, failed, turns, no answer.
    rows = re.findall(r"^ (\S+) +2 +(\S+) +(\S+) +(\S+) +(\S+)$", captured.out, re.MULTILINE)
    solved, effort = ("66.7", "75.0", "70.0", "50.0"), ("2.50", "16.7", "2.00", "0.0")
    assert rows == [(name, *values) for values in (solved, effort) for name in ("all", "double", "1-3")]
    assert "below each its 95 % interval (100 resamples, seed 0)" in captured.out


def test_eval_json_to_stdout_leaves_only_json_there(tmp_path: Path, capsys: Any) -> None:
    path = write_lines(tmp_path / "r.jsonl", [BOTH, HALF])
    assert cli.main(["eval", path, "--json", "-", "--confidence", "0.5", "--seed", "3"]) == cli.DONE
    captured = capsys.readouterr()
    assert "below each its 50 % interval (2,000 resamples, seed 3)" in captured.err
    found = json.loads(captured.out)
    with files.read_rollouts(path) as opened:
        rollouts = [r.trajectory for r in opened if r.trajectory is not None]
    assert found == json.loads(json.dumps(evaluate(rollouts, Bootstrap(2000, 0.5, 3)).to_dict()))


def test_eval_reports_broken_rows_and_evaluates_the_rest(tmp_path: Path, capsys: Any) -> None:
    path = write_lines(tmp_path / "r.jsonl", [BOTH, "{not json", {**HALF, "kind": 3}, HALF])
    assert cli.main(["eval", path, "--json", "-"]) == cli.PARTLY
    captured = capsys.readouterr()
    assert f"{path}, line 2 (row 1): not JSON" in captured.err
    assert "row 2): kind is" in captured.err
    assert "2 broken rows are left out, 2 read" in captured.err
    assert json.loads(captured.out)["rows"][0]["tasks"] == 2


def test_eval_keeps_going_past_unreadable_files(tmp_path: Path, capsys: Any) -> None:
    good, missing = write_lines(tmp_path / "good.jsonl", [BOTH]), str(tmp_path / "missing.jsonl")
    empty = write_lines(tmp_path / "empty.jsonl", [])
    assert cli.main(["eval", missing, empty, good]) == cli.PARTLY
    captured = capsys.readouterr()
    assert f"{missing}: No such file or directory" in captured.err
    assert f"{empty} is empty" in captured.err
    assert "1 rollout of 1 task\n" in captured.out
    assert cli.main(["eval", missing, empty]) == cli.FAILED
    captured = capsys.readouterr()
    assert "nothing could be evaluated" in captured.err
    assert captured.out == ""


def test_eval_of_several_files_keeps_their_tasks_apart(tmp_path: Path, capsys: Any) -> None:
    paths = [write_lines(tmp_path / name, [BOTH, HALF]) for name in ("a.jsonl", "b.jsonl")]
    assert cli.main(["eval", *paths, "--json", "-"]) == cli.DONE
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"][0]["tasks"] == 4
    assert "2 files\n4 rollouts of 4 tasks\n" in captured.err


def test_eval_refuses_a_file_that_says_nothing_of_what_is_right(tmp_path: Path, capsys: Any) -> None:
    path = write_lines(tmp_path / "r.jsonl", [row("a", "1")])
    assert cli.main(["eval", path]) == cli.FAILED
    captured = capsys.readouterr()
    expected = "nothing says what is right in 1 rollouts: expected sub_answers or gold_answer"
    assert captured.err.splitlines()[1:] == [f"matchtir: error: {path}: {expected}"]
    assert captured.out == ""


def test_eval_without_results_warns_or_refuses(tmp_path: Path, capsys: Any) -> None:
    silent = row("a", None, **ASKED)
    path = write_lines(tmp_path / "r.jsonl", [silent])
    assert cli.main(["eval", path]) == cli.DONE
    captured = capsys.readouterr()
    reason = "the Solve metrics need results, but none of the 1 calls has one"
    assert f"matchtir: warning: {path}: {reason}\n" in captured.err
    assert re.search(r"^ all +1 +- +- +- +100\.0$", captured.out, re.MULTILINE)
    assert "Known for 0 tasks: Solve-P, Solve-R, Solve-F1, failed." in captured.out
    path = write_lines(tmp_path / "r.jsonl", [{**silent, "gold_answer": None}])
    assert cli.main(["eval", path]) == cli.FAILED
    assert reason in capsys.readouterr().err


def test_eval_names_a_group_of_two_tasks(tmp_path: Path, capsys: Any) -> None:
    path = write_lines(tmp_path / "r.jsonl", [BOTH, {**HALF, "group": "a", "kind": "other"}])
    assert cli.main(["eval", path]) == cli.FAILED
    assert f"{path}: rollouts of group 'a' are of different tasks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--bootstrap", "-1"], "bootstrap samples are -1"),
        (["--confidence", "95"], "confidence is 95.0; expected more than 0 and less than 1"),
        (["--seed", "-2"], "seed is -2"),
        (["--bootstrap", "many"], "invalid int value: 'many'"),
        (["--json", "nowhere/m.json"], "there is no folder"),
        (["--json", "r.jsonl"], "is the input"),
        (["--json", "."], "is no ordinary file"),
        (["--format", "csv"], "invalid choice: 'csv'"),
    ],
)
def test_eval_refuses_impossible_options_before_it_reads(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, options: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "r.jsonl", [BOTH])
    assert cli.main(["eval", "r.jsonl", *options]) == cli.FAILED
    captured = capsys.readouterr()
    assert reason in captured.err
    assert "recognised" not in captured.err
    assert os.listdir(tmp_path) == ["r.jsonl"]


def test_eval_reads_standard_input_and_needs_a_file(capsys: Any) -> None:
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    done = subprocess.run(
        [sys.executable, "-m", "matchtir", "eval", "-"],
        input=json.dumps(BOTH) + "\n",
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == cli.DONE, done.stderr
    assert "<stdin>\n1 rollout of 1 task\n" in done.stdout
    assert cli.main(["eval"]) == cli.FAILED
    assert "no file is given" in capsys.readouterr().err


# --- the table ----------------------------------------------------------------------------------------


def shown(found: dict[str, Any], columns: int = 80) -> str:
    console = Console(width=columns, highlight=False, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(evaluation_tables(found, "r.jsonl"))
    return capture.get()


def found_with(mean: float, name: str, tasks: int = 200) -> dict[str, Any]:
    estimate = {"mean": mean, "low": mean, "high": mean, "tasks": tasks}
    rows = [
        {
            "level": level,
            "name": title,
            "tasks": tasks,
            "rollouts": tasks,
            "metrics": dict.fromkeys(METRICS, estimate),
        }
        for level, title in (("overall", "all"), ("kind", name), ("band", "12+"))
    ]
    return {"samples": 2000, "confidence": 0.95, "seed": 0, "notes": [], "rows": rows}


def test_table_fits_80_columns_with_the_widest_numbers() -> None:
    text = shown(found_with(1.0, "parallel_single_hop", tasks=99_999 // 10))
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert text.count("100.0-100.0") == 3 * 6
    assert "parallel_single_hop" in text


def test_table_cuts_long_names_and_never_numbers() -> None:
    text = shown(found_with(1.0, "a_kind_with_a_very_long_name"))
    assert "a_kind_with_a_very…" in text
    assert text.count("…") == 2


def test_table_shows_names_as_they_are_and_never_as_markup_or_control_codes() -> None:
    text = shown(found_with(0.5, "[b]x\x1b[2J"))
    assert r"[b]x\x1b[2J" in text
    assert "\x1b" not in text
    assert "(none)" in shown(found_with(0.5, ""))
