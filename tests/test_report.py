"""The report: what its page holds against `matchtir score`, a run's folder, the page served, wrong input."""

from __future__ import annotations

import argparse
import base64
import gzip
import html
import json
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matchtir import CreditConfig, assign_credit
from matchtir.cli import main, report_files
from matchtir.errors import InputError
from matchtir.files import read_rollouts, sample_path
from matchtir.report.inspector import watch
from matchtir.report.inspector.charts import Line, line_chart, stacked_chart
from matchtir.report.inspector.rollouts import Shown, describe
from matchtir.report.inspector.run import rollout_charts, run_charts
from matchtir.report.inspector.watch import PageServer
from matchtir.types import ToolCall, Trajectory, Turn

for needed in ("jinja2", "matplotlib"):
    pytest.importorskip(needed)

Json = dict[str, Any]


def index_of(page: str) -> Json:
    found = re.search(r'<script type="application/json" id="index">(.*?)</script>', page, re.S)
    assert found is not None
    index: Json = json.loads(found[1])
    return index


def details_of(page: str) -> list[Json]:
    chunks = re.findall(r'<script type="text/plain" class="chunk">(.*?)</script>', page, re.S)
    return [one for chunk in chunks for one in json.loads(gzip.decompress(base64.b64decode(chunk)))]


def written(folder: Path, *arguments: str, code: int = 0) -> str:
    assert main(["report", *arguments, "-o", str(folder / "page.html")]) == code
    return (folder / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("options", [(), ("--matching", "sinkhorn"), ("--penalty", "0.3", "--gamma", "0.5")])
def test_report_holds_the_numbers_of_score(tmp_path: Path, options: tuple[str, ...]) -> None:
    page = written(tmp_path, "--sample", *options)
    assert main(["score", "--sample", *options, "-o", str(tmp_path / "scores.jsonl")]) == 0
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    rows, details = index_of(page)["rows"], details_of(page)
    assert rows["row"] == [score["row"] for score in scores]
    assert rows["malformed"] == [score["malformed"] for score in scores]
    for detail, score in zip(details, scores, strict=True):
        assert [call["match"] for call in detail["calls"]] == score["matches"]
        for name, ours, theirs in (
            ("reward", detail["calls"], score["call_rewards"]),
            ("reward", detail["turns"], score["turn_rewards"]),
            ("advantage", detail["turns"], score["turn_advantages"]),
        ):
            np.testing.assert_allclose([one[name] for one in ours], theirs, rtol=1e-5)
        np.testing.assert_allclose(detail["trajectory_advantage"], score["trajectory_advantage"], rtol=1e-5)


def test_parts_of_a_pair_add_up_to_its_similarity() -> None:
    with read_rollouts(sample_path()) as rows:
        shown = [Shown(row.trajectory, row.fields, row.row) for row in rows if row.trajectory is not None]
    config = CreditConfig()
    _, details = describe(shown, assign_credit([one.trajectory for one in shown], config), config)
    parts = [part for detail in details for part in detail["parts"]]
    assert len(parts) > 50
    for part in parts:
        equal = sum(value is True for value in part["values"].values())
        whole = (1 + part["jaccard"] + equal) / (2 + len(part["values"]))
        assert part["similarity"] == pytest.approx(whole, rel=1e-5)
    values = [value for part in parts for value in part["values"].values()]
    assert {True, False, None} == set(values)


def test_values_are_equal_as_the_similarity_has_it() -> None:
    gold = (ToolCall("f", {"a": 1, "b": True, "c": {"x": 1, "y": 2}, "d": "Bern", "e": 0}),)
    call = ToolCall("f", {"a": 1.0, "b": 1, "c": {"y": 2, "x": 1}, "d": " bern"})
    shown = [Shown(Trajectory((Turn((call,)),), gold, None))]
    for match, same in (("exact", False), ("normalized", True)):
        config = CreditConfig(value_match=match)  # type: ignore[arg-type]
        _, (detail,) = describe(shown, assign_credit([shown[0].trajectory], config), config)
        assert detail["parts"][0]["values"] == {"a": True, "b": False, "c": True, "d": same, "e": None}


def test_plan_has_the_marginals_of_the_transport_and_pays_the_calls() -> None:
    with read_rollouts(sample_path()) as rows:
        shown = [Shown(row.trajectory, row.fields, row.row) for row in rows if row.trajectory is not None]
    config = CreditConfig(matching="sinkhorn")
    _, details = describe(shown, assign_credit([one.trajectory for one in shown], config), config)
    for detail in details:
        plan, scores = np.array(detail["plan"]), np.array(detail["similarity"])
        if plan.size:
            np.testing.assert_allclose(plan.sum(1), 1 / len(plan), rtol=1e-4)
            rewards = [call["reward"] for call in detail["calls"]]
            np.testing.assert_allclose((plan * scores).sum(1), rewards, rtol=1e-4, atol=1e-6)


def test_messages_stand_before_the_turns_that_they_lead_to(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "How high?"}]},
        {"role": "assistant", "content": '<tool_call>{"name": "f", "arguments": {}}</tool_call>'},
        {"role": "tool", "content": "104"},
        {"role": "assistant", "content": "<answer>104</answer>"},
        {"role": "user", "content": "Thanks."},
    ]
    row = {
        "group": "g",
        "messages": messages,
        "gold_calls": [{"name": "f", "arguments": {}}],
        "gold_answer": "104",
        "format": "hermes",
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    page = written(tmp_path, str(tmp_path / "rows.jsonl"))
    (detail,) = details_of(page)
    said = [[(one["role"], one["content"]) for one in turn["before"]] for turn in detail["turns"]]
    assert said == [[("system", "Be brief."), ("user", "How high?")], [("tool", "104")]]
    assert detail["after"] == [{"role": "user", "content": "Thanks."}]
    assert detail["calls"][0]["result"] == "104"
    assert index_of(page)["rows"]["success"] == [1.0]


def test_page_of_a_file_has_the_settings_of_its_credit(tmp_path: Path) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", " ", written(tmp_path, "--sample", "--gamma", "0.5")))
    settings = text[text.index("Settings") :].split()
    assert " ".join(settings[2:6]) == "the paper's, but gamma=0.5"
    for name, value in (("gamma", "0.5"), ("penalty", "0.0"), ("baseline", "turn_index")):
        assert settings[settings.index(f"credit.{name}") + 1] == value


def test_question_of_a_row_without_messages_is_its_prompt(tmp_path: Path) -> None:
    row = {"group": "g", "turns": ["<answer>4</answer>"], "gold_calls": []}
    rows = [row | {"question": "2 + 2?"}, row, row | {"question": None}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    page = written(tmp_path, str(tmp_path / "rows.jsonl"))
    assert index_of(page)["rows"]["prompt"] == ["2 + 2?", "", ""]
    before = [detail["turns"][0]["before"] for detail in details_of(page)]
    assert before == [[{"role": "user", "content": "2 + 2?"}], [], []]


def test_returns_stop_at_user_turns_where_the_horizon_says_so() -> None:
    from matchtir.types import Round

    turns = (Turn((ToolCall("f"),)), Turn(answer="x"), Turn((ToolCall("f"),)), Turn(answer="x"))
    rounds = (Round(2, 1, "x"), Round(2, 1, "x"))
    trajectory = Trajectory(turns, (ToolCall("f"), ToolCall("f")), rounds=rounds)
    for horizon, first in (("dialogue", 1 + 0.5 + 0.25 + 0.125), ("user_turn", 1.5)):
        config = CreditConfig(gamma=0.5, horizon=horizon)  # type: ignore[arg-type]
        _, (detail,) = describe([Shown(trajectory)], assign_credit([trajectory], config), config)
        assert detail["turns"][0]["return"] == first
        assert [turn["user_turn"] for turn in detail["turns"]] == [0, 0, 1, 1]
        assert detail["similarity"] == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5, "normalize_std": False}])
def test_group_mean_of_a_turn_is_what_its_return_is_compared_with(options: Json) -> None:
    with read_rollouts(str(sample_path())) as opened:
        trajectories = [row.trajectory for row in opened if row.trajectory is not None]
    config = CreditConfig(**options)
    shown = [Shown(one, {"step": k % 2}, row=k) for k, one in enumerate(trajectories)]
    _, details = describe(shown, assign_credit(trajectories, config), config)
    compared: dict[Any, list[Json]] = {}
    for one, detail in zip(trajectories, details, strict=True):
        for t, turn in enumerate(detail["turns"]):
            compared.setdefault((one.group, t), []).append(turn)
    assert {len(turns) for turns in compared.values()} >= {1, 4}
    for turns in compared.values():
        (mean,) = {turn["group_mean"] for turn in turns}
        returns = np.array([turn["return"] for turn in turns])
        if len(turns) == 1:
            assert mean is None
            mean = 0.0
        spread = returns.std(ddof=1) + config.eps if len(turns) > 1 and config.normalize_std else 1.0
        parts = [turn["turn_level_advantage"] for turn in turns]
        np.testing.assert_allclose((returns - mean) / spread, parts, rtol=1e-3, atol=1e-4)


def test_group_mean_is_left_out_where_it_is_not_compared_with() -> None:
    trajectory = Trajectory((Turn((), answer="x"),), gold_answer="x")
    for baseline in ("pooled", "leave_one_out"):
        config = CreditConfig(baseline=baseline)
        _, (detail,) = describe([Shown(trajectory)], assign_credit([trajectory], config), config)
        assert "group_mean" not in detail["turns"][0]


def test_rollouts_of_a_group_are_numbered_together_whatever_their_step(tmp_path: Path) -> None:
    rows = [json.dumps({"group": "g", "step": step, "turns": ["x"], "gold_calls": []}) for step in (1, 2)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    assert index_of(written(tmp_path, str(tmp_path / "rows.jsonl")))["rows"]["sample"] == [0, 1]


def test_numbers_that_json_has_not_make_a_call_malformed_and_leave_the_page_whole(tmp_path: Path) -> None:
    call = '{"name": "f", "arguments": {"x": NaN, "y": -Infinity}}'
    row = f'{{"group": "g", "turns": [{{"calls": [{call}]}}], "gold_calls": []}}'
    (tmp_path / "rows.jsonl").write_text(row + "\n")
    (detail,) = details_of(written(tmp_path, str(tmp_path / "rows.jsonl")))
    assert detail["calls"][0]["malformed"] is not None


# A run's folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What a run of two steps leaves, by hand: the sample in each step, with what it was rewarded."""
    folder = tmp_path / "run"
    (folder / "rollouts").mkdir(parents=True)
    (folder / "evaluations").mkdir()
    credit = {"penalty": 0.3, "gamma": 0.9}
    settings = {"method": "matchtir-km", "steps": 2, "credit": credit, "seed": 0}
    (folder / "config.json").write_text(json.dumps(settings))
    lines = [json.loads(line) for line in sample_path().read_text().splitlines()]
    for step in (1, 2):
        rows = [json.dumps(line | {"step": step, "finish": "answer"}) for line in lines]
        (folder / f"rollouts/step-{step:06d}.jsonl").write_text("\n".join(rows) + "\n")
    metrics = [{"step": s, "reward": 1.0 * s, "solve_f1": 0.2 * s, "seconds/update": 1.0} for s in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in metrics))
    for step, mean in ((0, 0.25), (2, 0.5)):
        estimate = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "tasks": 8}
        row = {
            "level": "overall",
            "name": "all",
            "tasks": 8,
            "rollouts": 8,
            "metrics": {"solve_f1": estimate},
        }
        path = folder / f"evaluations/step-{step:06d}.json"
        path.write_text(json.dumps({"step": step, "confidence": 0.95, "rows": [row]}))
    return folder


def test_report_of_a_run_has_its_steps_its_settings_and_its_curves(run_folder: Path, tmp_path: Path) -> None:
    page = written(tmp_path, str(run_folder))
    index = index_of(page)
    assert index["rows"]["step"] == [1] * 32 + [2] * 32
    assert index["method"] == "matchtir-km"
    assert main(["score", "--sample", "--penalty", "0.3", "-o", str(tmp_path / "scores.jsonl")]) == 0
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    for detail, score in zip(details_of(page), scores + scores, strict=True):
        advantages = [turn["advantage"] for turn in detail["turns"]]
        np.testing.assert_allclose(advantages, score["turn_advantages"], rtol=1e-5)
    for chart in ("reward", "solve-f1", "phases", "advantage", "wrong"):
        assert f'id="chart-{chart}"' in page
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    assert "50.0%" in text
    assert "25.0% before" in text


def test_report_of_a_run_has_the_credit_that_was_trained_with(tmp_path: Path) -> None:
    for needed in ("torch", "transformers", "deepspeed", "jsonargparse"):
        pytest.importorskip(needed)
    import train_runs

    folder = tmp_path / "run"
    train_runs.run(folder, steps=1)
    (file,) = (folder / "rollouts").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    details = details_of(written(tmp_path, str(folder)))
    for detail, row in zip(details, rows, strict=True):
        assert [call["match"] for call in detail["calls"]] == row["matches"]
        for name in ("reward", "advantage"):
            ours = [turn[name] for turn in detail["turns"]]
            np.testing.assert_allclose(ours, row[f"turn_{name}s"], rtol=1e-5, atol=1e-6)
    assert np.ptp([row["return"] for row in rows]) > 0


def test_unfinished_lines_of_a_live_run_are_passed_over(run_folder: Path, tmp_path: Path) -> None:
    with (run_folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "rew')
    assert len(index_of(written(tmp_path, str(run_folder)))["rows"]["row"]) == 64


def test_limit_keeps_the_first_and_the_last_step_and_says_so(run_folder: Path, tmp_path: Path) -> None:
    for step in range(3, 10):
        shutil.copy(run_folder / "rollouts/step-000001.jsonl", run_folder / f"rollouts/step-{step:06d}.jsonl")
    page = written(tmp_path, str(run_folder), "--limit", "96")
    assert len(index_of(page)["files"]) == 3
    assert index_of(page)["files"] == [f"rollouts/step-{step:06d}.jsonl" for step in (1, 5, 9)]
    assert "from 3 of 9 steps" in page


def test_live_page_reads_only_files_that_changed(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def of_file(source: str, *arguments: Any) -> Any:
        read.append(Path(source).name)
        return whole(source, *arguments)

    whole = report_files._of_file
    monkeypatch.setattr(report_files, "_of_file", of_file)
    files = sorted((run_folder / "rollouts").iterdir())
    known: dict[str, Any] = {}
    args = argparse.Namespace(format="jsonl", text_format=None, repair=False, quiet=True, limit=100)

    def page() -> Any:
        sources = [str(file) for file in files]
        report, _ = report_files.report_of_files(sources, args, CreditConfig(), None, True, known)
        return report

    first, again = page(), page()
    assert read == [file.name for file in files]
    assert again == first
    files[1].write_text(files[1].read_text() + files[0].read_text())
    files = files[1:]
    changed = page()
    assert read[2:] == [files[0].name]
    assert changed.columns["file"] == [0] * 64
    assert [*known] == [str(files[0])]


def test_limit_of_a_file_cuts_no_group(tmp_path: Path) -> None:
    page = written(tmp_path, "--sample", "--limit", "6")
    assert index_of(page)["rows"]["group"] == ["ferry-capacity"] * 4
    assert "only 4 of 32 rollouts are shown" in page


def test_run_without_rollouts_has_its_curves(run_folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(run_folder / "rollouts")
    page = written(tmp_path, str(run_folder))
    assert index_of(page)["rows"]["row"] == []
    assert 'id="chart-reward"' in page
    assert "There are no rollouts yet." in page
    assert 'role="search" hidden' in page


# Charts


def test_chart_has_its_numbers_unique_ids_and_no_colour_of_its_own_ink() -> None:
    charts = [
        line_chart(name, "t", [Line("a", [1, 2, 3], [0.5, None, 0.25], [0.1] * 3, [0.9] * 3)], x="step")
        for name in ("one", "two")
    ]
    assert charts[0].table["columns"] == ["step", "a", "a, low", "a, high"]
    assert charts[0].table["rows"] == [[1, 0.5, 0.1, 0.9], [2, None, 0.1, 0.9], [3, 0.25, 0.1, 0.9]]
    ids = [re.findall(r'\bid="([^"]+)"', chart.svg) for chart in charts]
    assert len(set(ids[0])) == len(ids[0]) > 3
    assert not set(ids[0]) & set(ids[1])
    for reference in re.findall(r'(?:href="|url\()#([^")]+)', charts[0].svg):
        assert reference in ids[0]
    assert "currentColor" in charts[0].svg
    assert "#010203" not in charts[0].svg
    assert "<text" in charts[0].svg


def test_interval_of_a_single_evaluation_is_drawn() -> None:
    drawn = [
        line_chart("one", "t", [Line("a", [1], [0.5], [low], [high])], x="step", share=True).svg
        for low, high in ((0.1, 0.9), (0.5, 0.5))
    ]
    (bar,), (point,) = (
        re.findall(r'<g id="one-LineCollection_1">.*?d="M \S+ (\S+) \nL \S+ (\S+) ', svg, re.S)
        for svg in drawn
    )
    assert abs(float(bar[0]) - float(bar[1])) > 80
    assert point[0] == point[1]


def test_chart_of_a_long_run_stays_small() -> None:
    steps = list(range(20_000))
    values = np.random.default_rng(0).random(20_000).tolist()
    chart = line_chart("long", "t", [Line("a", steps, values, smooth=True)], x="step")
    assert len(chart.svg) < 60_000
    assert len(chart.table["rows"]) == 200
    assert chart.table["rows"][-1][0] == 19_999


def test_notes_of_charts_say_what_is_drawn() -> None:
    metrics = [{"step": s, "reward": 1.0, "reward/a": 1.0, "silent_groups": 0.5} for s in range(20)]
    pale = "pale: single steps"
    assert {chart.id: chart.note for chart in run_charts(metrics, {})} == {
        "reward": f"all rollouts, and by kind of task; {pale}",
        "silent": f"every advantage is 0; {pale}",
    }
    assert [chart.note for chart in run_charts(metrics[:2], {})] == [
        "all rollouts, and by kind of task",
        "every advantage is 0",
    ]
    details = [{"turns": [{"advantage": 1.0}] * count} for count in (3, 1)]
    (chart,) = rollout_charts({"step": [None, None]}, details)
    assert chart.note.endswith("; 2 rollouts at first, 1 at the last turn")


def test_shares_are_labelled_in_percent() -> None:
    line = Line("a", [1, 2], [0.25, 0.5])
    assert "100%" in line_chart("one", "t", [line], x="step", share=True).svg
    assert "100%" not in line_chart("one", "t", [line], x="step").svg


def test_charts_of_nothing_are_left_out() -> None:
    assert run_charts([], {}) == []
    assert [chart.id for chart in run_charts([{"step": 1, "reward": 1.0, "solve_f1": None}], {})] == [
        "reward"
    ]
    assert stacked_chart("s", "t", [1], {"a": [1.0]}, label="step").table["rows"] == [[1, 1]]


# Wrong input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["--sample", "--watch"], "--watch follows a run"),
        (["."], "config.json is missing; expected the folder of a run"),
        (["--sample", "--tokenizer", "./no-tokenizer"], "tokenizer './no-tokenizer' cannot be read"),
        ([], "no file is given"),
        (["--sample", "-o", "nowhere/page.html"], "output 'nowhere/page.html': there is no folder"),
        (["--sample", "-o", "."], "output '.' is a folder"),
        (["--sample", "--limit", "0"], "'0' is not 1 or more"),
    ],
)
def test_wrong_input_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    if "--tokenizer" in arguments:
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_figures_of_the_rollouts_of_a_run_stand_above_the_list(run_folder: Path, tmp_path: Path) -> None:
    whole = written(tmp_path, str(run_folder))
    top, below = whole.split('<h2 id="list-title"')
    assert "<dt>method</dt>" in top
    assert "<dt>mean return</dt>" in below
    assert "<dt>mean return</dt>" not in top


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", '{"credit": {"gama": 0.5}}', "did you mean 'gamma'"),
        ("evaluations/step-000000.json", '{"rows": []}', "evaluation of step 0 in"),
    ],
)
def test_run_that_was_changed_is_refused(
    run_folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, words: str
) -> None:
    (run_folder / name).parent.mkdir(exist_ok=True)
    (run_folder / name).write_text(content)
    assert main(["report", str(run_folder)]) == 2
    assert words in capsys.readouterr().err


def test_options_of_credit_are_refused_for_a_run(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run_folder), "--gamma", "0.5"]) == 2
    assert "the rollouts of a run have the run's own" in capsys.readouterr().err


def test_files_are_named_without_the_folders_they_share(tmp_path: Path) -> None:
    row = json.dumps({"group": "g", "turns": ["x"], "gold_calls": []})
    paths = [tmp_path / name for name in ("a/one.jsonl", "b/one.jsonl")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(row + "\n")
    page = written(tmp_path, *map(str, paths))
    assert index_of(page)["files"] == ["a/one.jsonl", "b/one.jsonl"]
    assert str(tmp_path) not in page
    page = written(tmp_path, str(paths[0]))
    assert index_of(page)["files"] == ["one.jsonl"]
    assert "<title>one.jsonl ·" in page


def test_broken_rows_are_named_on_the_page(tmp_path: Path) -> None:
    lines = [*sample_path().read_text().splitlines()[:4], '{"group": "<b>x</b>"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    page = written(tmp_path, str(tmp_path / "rows.jsonl"), code=1)
    assert "line 5 (row 4)" in page
    assert "<summary>Left out</summary>" in page
    assert len(details_of(page)) == 4


def test_no_text_of_a_rollout_can_end_the_element_that_holds_it(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script><!--\u2028&lt;{{ 7 * 7 }}"
    row = {
        "group": bad,
        "kind": bad,
        "turns": [{"calls": [{"name": bad, "arguments": {bad: bad}}], "text": bad}],
    }
    row |= {"gold_calls": [{"name": bad, "arguments": {bad: bad}}], "gold_answer": bad}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    page = written(tmp_path, str(tmp_path / "rows.jsonl"))
    assert "alert(1)" not in page.replace("\\u003cscript\\u003ealert(1)", "")
    assert index_of(page)["rows"]["group"] == [bad]
    assert details_of(page)[0]["calls"][0]["arguments"] == {bad: bad}


def test_page_of_a_run_is_not_written_where_a_link_leads(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (run_folder / "report.html").symlink_to(other)
    assert main(["report", str(run_folder)]) == 2
    assert "report.html is a link, which leads out of the run; expected -o" in capsys.readouterr().err
    assert other.read_text() == "mine"


def test_names_in_charts_are_no_formulas_and_no_markup() -> None:
    kinds = {"reward/$\\frac{$": 0.2, "reward/<script>\u202e\x1b": 0.3}
    (chart,) = run_charts([{"step": step, **kinds} for step in (1, 2)], {})
    assert r"$\frac{$" in chart.svg
    assert r"&lt;script&gt;\u202e\x1b" in chart.svg
    assert r"<script>\u202e\x1b" in chart.table["columns"]


def test_text_above_the_rollouts_has_no_direction_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "rows\u202eevil.jsonl"
    path.write_text(sample_path().read_text().splitlines()[0] + "\n{}\n")
    page = written(tmp_path, str(path), code=1)
    assert "\\u202eevil.jsonl, line 2" in page
    assert "\u202e" not in page


# Served


@contextmanager
def served(version: Any, page: Any) -> Iterator[PageServer]:
    with PageServer("127.0.0.1", 0, version, page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def asked(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_served_page_is_made_anew_when_its_version_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matchtir.report.inspector.watch._FRESH_SECONDS", 0.0)
    state = {"version": "1", "made": 0}

    def page() -> str:
        state["made"] += 1
        return f"page {state['version']}"

    with served(lambda: str(state["version"]), page) as server:
        assert asked(server.url) == (200, "page 1")
        assert asked(server.url) == (200, "page 1")
        assert state["made"] == 1
        state["version"] = "2"
        assert asked(server.url + "version") == (200, "2")
        assert asked(server.url) == (200, "page 2")
        assert state["made"] == 2


def test_server_answers_to_its_own_name_and_paths_only() -> None:
    with served(lambda: "1", lambda: "page") as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert asked(server.url, Host="evil.example:80")[0] == 403
        assert asked(server.url, Host="localhost:1")[0] == 200
        assert asked(server.url, Host="127.0.0.1")[0] == 200
        assert asked(server.url, Host="127.0.0.1.evil.example")[0] == 403
        assert asked(server.url + "../etc/passwd")[0] == 404
        assert asked(server.url + "rollouts")[0] == 404


@pytest.mark.parametrize("host", ["LOCALHOST", "::ffff:127.0.0.1", "a-name-of-this-machine"])
def test_server_takes_any_name_of_this_machine_for_what_it_is(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    look_up = socketserver.TCPServer.server_bind

    def server_bind(server: Any) -> None:
        if server.server_address[0].startswith("a-name"):
            server.server_address = ("127.0.0.1", 0)
        look_up(server)

    monkeypatch.setattr(socketserver.TCPServer, "server_bind", server_bind)
    try:
        server = PageServer(host, 0, lambda: "1", lambda: "page")
    except InputError as error:
        pytest.skip(str(error))
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        assert server.loopback
        assert asked(url, Host="evil.example")[0] == 403
        assert asked(url, Host=f"[{host}]:1" if ":" in host else f"{host}:1")[0] == 200
        server.shutdown()


def test_server_lets_go_of_who_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch._Handler.timeout == 60.0
    monkeypatch.setattr(watch._Handler, "timeout", 0.1)
    with (
        served(lambda: "1", lambda: "page") as server,
        socket.create_connection(server.server_address[:2], timeout=10) as silent,
    ):
        silent.sendall(b"GET / HT")
        assert silent.recv(1) == b""


def test_server_changes_nothing_when_posted_to() -> None:
    with served(lambda: "1", lambda: "page") as server:
        request = urllib.request.Request(server.url, data=b"x")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        assert refused.value.code == 501


def test_server_outlives_files_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matchtir.report.inspector.watch._FRESH_SECONDS", 0.0)
    broken = [True]

    def page() -> str:
        if broken:
            raise InputError("metrics.jsonl, line 2 is no step of a run")
        return "page"

    with served(lambda: "1", page) as server:
        assert asked(server.url) == (500, "metrics.jsonl, line 2 is no step of a run\n")
        broken.clear()
        assert asked(server.url) == (200, "page")


def test_address_that_is_taken_or_none_is_named() -> None:
    with served(lambda: "1", lambda: "page") as server:
        port = server.server_address[1]
        with pytest.raises(InputError, match=rf"host '127.0.0.1', port {port}: "):
            PageServer("127.0.0.1", port, lambda: "1", lambda: "page")
    with pytest.raises(InputError, match="port 99999: "):
        PageServer("127.0.0.1", 99_999, lambda: "1", lambda: "page")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_server_listens_on_the_loopback_of_ipv6() -> None:
    try:
        server = PageServer("::1", 0, lambda: "1", lambda: "page")
    except InputError as error:
        pytest.skip(str(error))
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert server.loopback
        assert server.url.startswith("http://[::1]:")
        assert asked(server.url) == (200, "page")
        server.shutdown()


def test_watched_run_is_served_until_it_is_interrupted(run_folder: Path) -> None:
    command = [sys.executable, "-m", "matchtir", "report", str(run_folder), "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        url = running.stdout.readline().strip()
        status, page = asked(url)
        assert status == 200
        index = index_of(page)
        assert index["live"]
        assert index["rows"]["step"] == [1] * 32 + [2] * 32
        assert asked(url + "version") == (200, index["version"])
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=30) == 130
