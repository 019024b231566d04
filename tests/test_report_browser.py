"""The page of `matchtir report` in a browser: what it shows, how it is used, and that it stays inert."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_pages import Watched, launched, scores, write_report, write_rows

from matchtir import CreditConfig, assign_credit, files
from matchtir.report.inspector.charts import Line, line_chart
from matchtir.report.inspector.page import Report, render
from matchtir.report.inspector.rollouts import describe
from matchtir.report.inspector.watch import PageServer

SAMPLE = str(files.sample_path())

# Every text of the hostile rollout; what it would do in a page that reads it as markup, or in a template.
HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "<!-- <svg onload=alert(3)><style>*{display:none}</style><a href='javascript:window.hacked=4'>x</a>"
    '{{7*7}} {% raw %} ${window.hacked = 5} ]]> &lt;b&gt; " onfocus="window.hacked=6" autofocus x="'
    " \u202eevil\u202c zero\u200bwidth\ufeff \u2028 \u0007 \u0645\u0631\u062d\u0628\u0627 " + "W" * 300
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as one:
        yield one


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("sample"), "--sample")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    call = {"name": HOSTILE, "arguments": {HOSTILE: HOSTILE, "n": 1}}
    texts = (json.dumps(call["arguments"]), HOSTILE)  # arguments that are JSON, and that are none
    calls = [
        {"id": str(i), "type": "function", "function": {"name": HOSTILE, "arguments": text}}
        for i, text in enumerate(texts)
    ]
    answer = {"role": "assistant", "content": HOSTILE}
    prompt = [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}]
    result = {"role": "tool", "tool_call_id": "0", "content": HOSTILE}
    row = {"group": HOSTILE, "kind": HOSTILE, "gold_calls": [call], "gold_answer": HOSTILE}
    rows = [
        row | {"messages": [*prompt, answer | {"tool_calls": calls}, result, answer]},
        row | {"messages": [*prompt, answer]},
    ]
    return write_report(folder, str(write_rows(folder / "rows.jsonl", rows)))


def near(texts: list[str]) -> Any:
    """Numbers of the page, which has 6 significant digits."""
    return pytest.approx([float(text) for text in texts], rel=1e-5, abs=1e-9)


def values(page: Any, selector: str) -> list[str]:
    """The full values of the numbers that a selector finds."""
    found: list[str] = page.eval_on_selector_all(selector, "all => all.map(one => one.value)")
    return found


def groups_shown(page: Any) -> list[str]:
    found: list[str] = page.eval_on_selector_all(
        "#list tbody tr[data-place]", "all => all.map(row => row.cells[0].querySelector('bdi').textContent)"
    )
    return found


def test_page_asks_nothing_of_the_network_and_breaks_no_rule_of_its_own(browser: Any, sample: Path) -> None:
    watched = Watched(browser)
    page = watched.open(sample)
    for b in range(8):
        watched.rollout(b)
        page.click("#match [data-gold='0']")
    page.click("#theme")
    page.click("#open-help")
    assert [url for url in watched.requests if url != sample.as_uri() and not url.startswith("data:")] == []
    assert watched.complaints == []
    page.close()


def test_policy_of_the_page_stops_foreign_scripts_and_requests(browser: Any, sample: Path) -> None:
    watched = Watched(browser)
    page = watched.open(sample)
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<img src='https://example.invalid/x.png'>");
    }""")
    assert page.evaluate("fetch('https://example.invalid/').then(() => 'sent', () => 'stopped')") == "stopped"
    assert page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in text for text in watched.complaints)
    page.close()


@pytest.mark.parametrize("options", [(), ("--matching", "sinkhorn", "--gamma", "0.5")])
def test_numbers_equal_those_of_score(browser: Any, tmp_path: Path, options: tuple[str, ...]) -> None:
    watched = Watched(browser)
    watched.open(write_report(tmp_path, "--sample", *options))
    for b, row in enumerate(scores(tmp_path, "--sample", *options)):
        assert_shows(watched.rollout(b), row)
    watched.page.close()


def test_numbers_of_real_rollouts_equal_those_of_score(
    browser: Any, tmp_path: Path, tau_bench_path: Path
) -> None:
    path = write_report(tmp_path, str(tau_bench_path))
    assert path.stat().st_size < 3_000_000
    watched = Watched(browser)
    watched.open(path)
    expected = scores(tmp_path, str(tau_bench_path))
    for b in range(0, len(expected), 17):
        assert_shows(watched.rollout(b), expected[b])
    assert watched.complaints == []
    watched.page.close()


def assert_shows(page: Any, row: dict[str, Any]) -> None:
    """The shown rollout has the numbers of a line of a score file."""
    turn = "#conversation .turn"
    assert near(values(page, "#rollout > .facts div:nth-child(1) data")) == [row["return"]]
    assert near(values(page, "#rollout > .facts div:nth-child(3) data")) == [row["trajectory_advantage"]]
    assert near(values(page, f"{turn} h4 data")) == row["turn_advantages"]
    assert near(values(page, f"{turn} .turn-figures div:nth-child(1) data")) == row["turn_rewards"]
    assert near(values(page, f"{turn} .call-lines data")) == row["call_rewards"]
    assert near(values(page, "#match .card[data-call] .card-foot data")) == row["call_rewards"]
    fates = page.locator("#match .card[data-call] .fate").all_inner_texts()
    matches = [int(text.split()[-1]) if text.startswith("→") else -1 for text in fates]
    assert matches == [-1 if match is None else match for match in row["matches"]]
    assert sum(text.startswith("malformed") for text in fates) == row["malformed"]
    here = values(page, "#siblings .here .strip data")
    assert near(here) == row["turn_advantages"]


def test_similarity_taken_apart_adds_up(browser: Any, sample: Path) -> None:
    watched = Watched(browser)
    page = watched.open(sample)
    watched.rollout(1)
    assert page.locator("#pair tbody tr").all_inner_texts() == [
        "name of the tool\tequal\tferry_timetable\tferry_timetable",
        'origin\tequal\t"Sundhaven"\t"Sundhaven"',
        'destination\tequal\t"Tern Island"\t"Tern Island"',
        'departure\tnot equal\t"morning"\t"evening"',
    ]
    formula = "(name 1 + parameter names 1.000 + equal values 2) / (2 + 3) = 0.800"
    assert page.inner_text("#pair .formula") == formula
    assert values(page, "#matrix td.assigned data") == ["0.8"]
    assert page.locator("#match .lines path").count() == 1
    page.close()


def test_transport_plan_is_a_layer_of_the_matrix(browser: Any, tmp_path: Path) -> None:
    watched = Watched(browser)
    page = watched.open(write_report(tmp_path, "--sample", "--matching", "sinkhorn"))
    watched.rollout(2)  # two calls, one gold call: each gives it all it has
    before = values(page, "#matrix data")
    page.click("[data-layer='plan']")
    assert [float(value) for value in values(page, "#matrix data")] == pytest.approx([0.5, 0.5])
    paid = "plan 0.500 × similarity = 0.367 of the call's reward 0.367"
    assert page.locator("#pair .formula").last.inner_text() == paid
    page.click("[data-layer='similarity']")
    assert values(page, "#matrix data") == before
    page.close()


def test_transport_that_pays_nothing_has_no_line(browser: Any, tmp_path: Path) -> None:
    text = "".join(f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>' for name in "ab")
    row = {"group": "a", "turns": [text], "gold_calls": [{"name": "a", "arguments": {}}]}
    rows = str(write_rows(tmp_path / "rows.jsonl", [row]))
    watched = Watched(browser)
    page = watched.open(write_report(tmp_path, rows, "--matching", "sinkhorn"))
    watched.rollout(0)
    assert page.evaluate("view.detail.plan") == [[0.5], [0.5]]
    assert page.locator("#match .lines path").count() == 1
    page.close()


def test_filters_and_order_show_the_rows_that_score_says(browser: Any, sample: Path, tmp_path: Path) -> None:
    rows = scores(tmp_path, "--sample")
    watched = Watched(browser, height=2400)
    page = watched.open(sample)
    assert groups_shown(page) == [row["group"] for row in rows]
    page.fill("#filter-q", "FERRY")
    assert groups_shown(page) == [row["group"] for row in rows if "ferry" in row["group"]]
    assert page.inner_text("#count") == "4 of 32"
    page.fill("#filter-q", "")
    page.check("#filter-malformed")
    assert groups_shown(page) == [row["group"] for row in rows if row["malformed"]]
    page.fill("#filter-q", "no such group")
    assert page.is_visible("#no-rows")
    page.click("#clear")
    page.locator("#list thead .col-return button").focus()
    page.keyboard.press("Enter")
    assert page.get_attribute("#list thead .col-return", "aria-sort") == "descending"
    returns = values(page, "#list tbody .col-return data")
    assert near(returns) == sorted((row["return"] for row in rows), reverse=True)
    page.select_option("#sort", "gap desc")
    gaps = [float(value) for value in values(page, "#list tbody .col-gap data")]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0
    assert page.get_attribute("#list thead .col-return", "aria-sort") is None
    page.close()


def test_success_filter_parts_the_rollouts(browser: Any, sample: Path) -> None:
    watched = Watched(browser, height=2400)
    page = watched.open(sample)
    page.select_option("#filter-success", "yes")
    solved = [float(value) for value in values(page, "#list tbody .col-success data")]
    page.select_option("#filter-success", "no")
    rest = [float(value) for value in values(page, "#list tbody .col-success data")]
    assert set(solved) == {1.0}
    assert rest
    assert max(rest) < 1
    assert len(solved) + len(rest) == 32
    page.close()


def test_address_keeps_what_is_shown(browser: Any, sample: Path) -> None:
    watched = Watched(browser)
    page = watched.open(sample)
    page.fill("#filter-q", "ferry")
    page.select_option("#sort", "return asc")
    page.locator("#list tbody a").first.click()
    page.wait_for_selector("#conversation")
    title = page.inner_text("#rollout-title")
    page.reload()
    page.wait_for_selector("#conversation")
    assert page.inner_text("#rollout-title") == title
    page.go_back()
    page.wait_for_selector("#list tbody tr[data-place]")
    assert page.input_value("#filter-q") == "ferry"
    returns = [float(value) for value in values(page, "#list tbody .col-return data")]
    assert len(returns) == 4
    assert returns == sorted(returns)
    page.close()


def test_keys_step_through_rollouts_and_turns(browser: Any, sample: Path) -> None:
    watched = Watched(browser)
    page = watched.open(sample)
    focus = "document.activeElement.id"

    def shows(b: int) -> None:
        watched.until(f"view.b === {b} && view.detail !== null")

    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("focusedPlace()") == 1
    page.keyboard.press("Enter")
    shows(1)
    page.keyboard.press("j")
    shows(2)
    page.keyboard.press("ArrowDown")
    shows(3)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("k")
    shows(1)
    assert page.evaluate(focus) == "rollout-title"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focus) == "turn-2"
    assert page.locator(".turn[aria-current='true'] h4").inner_text().startswith("Turn 1")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focus) == "turn-1"
    page.keyboard.press("c")  # its only call
    assert page.get_attribute("#match [data-call='0']", "aria-pressed") == "true"
    page.keyboard.press("s")
    assert page.evaluate(focus) == "siblings-title"
    page.keyboard.press("?")
    assert page.evaluate("byId('help').open")
    page.keyboard.press("j")  # belongs to the dialog
    page.keyboard.press("Escape")
    assert not page.evaluate("byId('help').open")
    shows(1)
    page.keyboard.press("Escape")
    page.wait_for_selector("#list tbody tr[data-place]")
    assert page.evaluate("focusedPlace()") == 1
    page.keyboard.press("/")
    assert page.evaluate(focus) == "filter-q"
    page.keyboard.type("jks?")  # letters, here
    assert page.input_value("#filter-q") == "jks?"
    page.close()


def test_arrow_keys_go_through_the_matrix(browser: Any, sample: Path) -> None:
    watched = Watched(browser)
    page = watched.open(sample)
    b = page.evaluate("rows.calls.findIndex((calls, b) => calls > 2 && rows.malformed[b] === 0)")
    watched.rollout(b)
    page.locator("#matrix [data-cell='0 0']").click()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.cell") == "1 1"
    assert page.inner_text("#pair h4").startswith("call 1 and gold 1")
    assert page.evaluate("view.b") == b
    page.close()


def test_hostile_rollout_does_nothing_and_is_shown_as_text(browser: Any, hostile: Path) -> None:
    watched = Watched(browser)
    page = watched.open(hostile)
    text = page.evaluate("text => shown(text).textContent", HOSTILE)
    assert "U+202Eevil" in text  # what turns or hides the text is named instead
    assert "zeroU+200Bwidth" in text
    assert text.replace("U+202E", "\u202e").startswith(HOSTILE[:150])
    hidden = "a\U000e0041\u3164\u034f\t\u00e9\u200d\u2764\ufe0f\U0001f600"  # tags spell words
    shown = page.evaluate("text => shown(text).textContent", hidden)
    assert shown == "aU+E0041U+3164U+034F" + hidden[4:]
    assert page.locator("#list tbody th bdi").first.text_content() == text
    assert "U+202Eevil" in page.locator("#list tbody .col-kind").first.text_content()
    for b in (0, 1):
        watched.rollout(b)
        page.evaluate("document.querySelectorAll('details').forEach(one => (one.open = true))")
        foreign = "#rollout :is(script, img, style, iframe, [onerror], [onfocus], [href^='javascript'])"
        assert page.locator(foreign).count() == 0
    watched.rollout(0)
    assert page.locator("#rollout-title bdi").text_content() == text
    contents = page.locator("#conversation .text").all_text_contents()
    assert contents.count(text) == 6  # system, user, two turns, tool, gold answer
    assert text in page.locator("#match .card[data-gold] .tool").all_text_contents()
    assert text in page.locator("#match .card[data-call] .parameter").all_text_contents()
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('script').length") == page.evaluate(
        "document.querySelectorAll('script.chunk').length + 2"
    )
    assert watched.complaints == []
    page.close()


def test_five_thousand_rollouts_load_and_scroll(browser: Any, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in Path(SAMPLE).read_text().splitlines()]
    rows = [line | {"group": f"{line['group']}-{copy}"} for copy in range(157) for line in lines][:5000]
    path = write_report(tmp_path, str(write_rows(tmp_path / "rows.jsonl", rows)))
    watched = Watched(browser)
    start = time.perf_counter()
    page = watched.open(path)
    seconds = time.perf_counter() - start
    print(f"5,000 rollouts: {path.stat().st_size / 1e6:.1f} MB, shown after {seconds:.2f} s")
    assert page.inner_text("#count") == "5,000 rollouts"
    assert page.locator("#list tbody tr").count() < 200
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_selector("#list tbody tr[data-place='4999']")
    assert groups_shown(page)[-1] == rows[-1]["group"]
    assert page.get_attribute("#list tbody tr[data-place='4999']", "aria-rowindex") == "5001"
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight / 2)")
    watched.until("list.first > 2000 && list.end < 3000")
    first = page.evaluate("list.first")
    assert groups_shown(page) == [row["group"] for row in rows][first : first + len(groups_shown(page))]
    watched.rollout(4321)
    assert page.inner_text("#rollout-title").startswith(rows[4321]["group"])
    assert watched.complaints == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_no_serious_fault(browser: Any, sample: Path, scheme: str, width: int) -> None:
    module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs its package")
    axe = module.Axe()
    watched = Watched(browser, width=width, scheme=scheme)
    page = watched.open(sample)
    faults = serious(axe.run(page), "list")
    for b in (2, 12):
        watched.rollout(b)
        faults += serious(axe.run(page), f"rollout {b}")
    page.click("#open-help")
    faults += serious(axe.run(page), "help")
    assert faults == []
    page.close()


def serious(results: Any, where: str) -> list[str]:
    """Violations that axe-core calls serious or critical, and what they were found in."""
    violations = results.response["violations"]
    grave = [one for one in violations if one["impact"] in ("serious", "critical")]
    return [f"{where}: {one['id']}: {node['html'][:120]}" for one in grave for node in one["nodes"]]


@pytest.mark.parametrize("name", ["sample", "hostile"])
def test_narrow_page_does_not_scroll_sideways(
    browser: Any, name: str, request: pytest.FixtureRequest
) -> None:
    watched = Watched(browser, width=360, height=740)
    page = watched.open(request.getfixturevalue(name))
    widths = [page.evaluate("document.documentElement.scrollWidth")]
    for b in (0, 1):
        watched.rollout(b)
        page.evaluate("document.querySelectorAll('details').forEach(one => (one.open = true))")
        widths.append(page.evaluate("document.documentElement.scrollWidth"))
    assert widths == [360, 360, 360]
    page.close()


def test_print_shows_the_whole_rollout(browser: Any, tmp_path: Path) -> None:
    long = "word " * 3000
    messages = [
        {"role": "system", "content": "SYSTEM " + long},
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "ANSWER " + long + "END"},
    ]
    row = {"group": "a", "messages": messages, "gold_calls": [], "gold_answer": "x"}
    path = write_report(tmp_path, str(write_rows(tmp_path / "rows.jsonl", [row])))
    watched = Watched(browser, scheme="dark")
    page = watched.open(path)
    watched.rollout(0)
    assert page.locator("#conversation details").first.get_attribute("open") is None
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#conversation details:not([open])").count() == 0
    cut = page.locator("#conversation .turn .text").first
    assert cut.evaluate("one => one.scrollHeight - one.clientHeight") <= 1
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.is_visible("#theme")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("#conversation details:not([open])").count() == 1
    page.close()


def test_print_shows_the_list_beyond_the_window(browser: Any, tmp_path: Path) -> None:
    rows = [{"group": f"g{k}", "turns": ["x"], "gold_calls": []} for k in range(1200)]
    watched = Watched(browser)
    page = watched.open(write_report(tmp_path, str(write_rows(tmp_path / "rows.jsonl", rows))))
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert groups_shown(page) == [row["group"] for row in rows[:1000]]
    assert page.inner_text("#count") == "1,200 rollouts, the first 1,000 printed"
    assert not page.is_visible("#list .padding")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.inner_text("#count") == "1,200 rollouts"
    assert len(groups_shown(page)) < 100
    page.close()


def test_theme_button_overrides_the_system(browser: Any, sample: Path) -> None:
    watched = Watched(browser, scheme="dark")
    page = watched.open(sample)
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#theme")
    assert page.inner_text("#theme") == "theme: light"
    assert page.evaluate(colour) != dark
    page.reload()
    assert page.inner_text("#theme") == "theme: light"
    page.click("#theme")
    assert page.evaluate(colour) == dark
    page.close()


def test_live_page_follows_its_run_and_says_when_the_server_is_gone(
    browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matchtir.report.inspector.watch._FRESH_SECONDS", 0.0)
    state = {"steps": "1"}

    def page_now() -> str:
        columns, details = describe([], assign_credit([]), CreditConfig())
        report = Report("run", columns, details, [], facts=[("steps", state["steps"], "")])
        return render(report, version="1", live=True)

    server = PageServer("127.0.0.1", 0, lambda: state["steps"], page_now)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    watched = Watched(browser)
    page = watched.page
    try:
        page.goto(f"{server.url}#sort=return&dir=desc")
        watched.until("byId('live').textContent === 'live'")
        assert page.inner_text("#count") == "0 rollouts"
        state["steps"] = "2"
        page.wait_for_selector(".facts dd:text-is('2')")
        assert page.evaluate("location.hash") == "#sort=return&dir=desc"
        page.evaluate("document.querySelector('#overview').append(el('details', { open: true }))")
        state["steps"] = "3"
        page.wait_for_selector("#live button")
        assert page.is_visible(".facts dd:text-is('2')")
        page.click("#live button")
        page.wait_for_selector(".facts dd:text-is('3')")
        assert {url.split("#")[0] for url in watched.requests} == {server.url, f"{server.url}version"}
        assert watched.complaints == []
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    watched.until("byId('live').textContent.startsWith('no longer live')")
    page.close()


def test_tokens_take_the_place_of_the_texts_on_demand(browser: Any, tmp_path: Path, sample: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs tokenizers")
    tokenizer = str(Path(SAMPLE).parent / "embedded")
    watched = Watched(browser)
    page = watched.open(write_report(tmp_path, "--sample", "--tokenizer", tokenizer))
    watched.rollout(0)
    before = page.locator("#conversation .turn .text").all_text_contents()
    page.keyboard.press("t")
    after = page.locator("#conversation .turn .tokens").all_text_contents()
    assert [text.replace("↵", "") for text in after] == before
    assert page.locator("#conversation .turn .token").count() == page.evaluate(
        "view.detail.turns.reduce((sum, turn) => sum + turn.tokens.length, 0)"
    )
    page.keyboard.press("t")
    assert page.locator("#conversation .token").count() == 0
    assert page.locator("#conversation .turn .text").all_text_contents() == before
    watched.open(sample)
    watched.rollout(0)
    assert page.locator("#tokens").count() == 0
    page.close()


def test_user_turns_of_a_dialogue_are_told_apart(browser: Any, tmp_path: Path) -> None:
    calls = [{"name": "book", "arguments": {"day": day}} for day in ("Monday", "Friday")]
    made = [
        {"id": "c", "type": "function", "function": call | {"arguments": json.dumps(call["arguments"])}}
        for call in calls
    ]
    messages = [
        {"role": "user", "content": "Monday"},
        {"role": "assistant", "content": "", "tool_calls": made[:1]},
        {"role": "tool", "tool_call_id": "c", "content": "ok"},
        {"role": "assistant", "content": "Booked"},
        {"role": "user", "content": "Friday too"},
        {"role": "assistant", "content": "Done"},
    ]
    rounds = [{"gold_calls": [call], "gold_answer": "Booked"} for call in calls]
    rounds.append({"gold_calls": [], "gold_answer": "Goodbye"})
    path = write_rows(tmp_path / "rows.jsonl", [{"group": "a", "messages": messages, "rounds": rounds}])
    watched = Watched(browser)
    page = watched.open(write_report(tmp_path, str(path)))
    watched.rollout(0)
    assert page.locator("#conversation .round").all_inner_texts() == [
        "User turn 0",
        "User turn 1",
        "User turn 2, not reached",
    ]
    answers = page.locator("#conversation .gold-answer .text").all_inner_texts()
    assert answers == ["Booked", "Booked", "Goodbye"]
    assert page.locator("#conversation .outcome").all_inner_texts() == [
        f"outcome {outcome}, F1 of the two answers" for outcome in ("1.000", "0.000", "0.000")
    ]
    assert page.locator("#match .card[data-gold] .card-foot").all_inner_texts() == ["← call 0", "not met"]
    page.click("#match [data-cell='0 1']")
    assert "different user turns" in page.inner_text("#pair")
    page.close()


def test_chosen_pair_stays_in_the_window_and_follows_the_turn(browser: Any, tmp_path: Path) -> None:
    calls = [{"name": "look", "arguments": {"at": at}} for at in range(40)]
    text = "<tool_call>{}</tool_call>"
    row = {"group": "a", "turns": [text.format(json.dumps(call)) for call in calls], "gold_calls": calls}
    watched = Watched(browser)
    page = watched.open(write_report(tmp_path, str(write_rows(tmp_path / "rows.jsonl", [row]))))
    watched.rollout(0)
    inside = "(box => box.top >= 0 && box.bottom <= innerHeight)(byId('pair').getBoundingClientRect())"
    assert page.inner_text("#pair h4").startswith("call 0 and gold 0")
    assert not page.evaluate(inside)
    page.click("#match [data-call='3']")
    assert page.inner_text("#pair h4").startswith("call 3 and gold 3")
    assert page.evaluate(inside)
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#pair h4").startswith("call 5 and gold 5")
    assert page.evaluate(inside)
    page.reload()  # at this turn
    page.wait_for_selector("#conversation")
    watched.until("view.turn === 6")
    assert page.inner_text("#pair h4").startswith("call 5 and gold 5")
    page.close()


def test_key_goes_through_the_calls_of_a_turn(browser: Any, tmp_path: Path) -> None:
    calls = [{"name": "look", "arguments": {"at": at}} for at in range(3)]
    texts = [f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls]
    row = {"group": "a", "turns": [texts[0] + texts[1], texts[2]], "gold_calls": calls, "outcome": 0.5}
    watched = Watched(browser)
    page = watched.open(write_report(tmp_path, str(write_rows(tmp_path / "rows.jsonl", [row]))))
    page.keyboard.press("c")  # of a rollout only
    watched.rollout(0)
    assert page.inner_text("#conversation .outcome") == "outcome 0.500, as the file says"
    chosen = []
    for key in ("c", "c", "ArrowRight", "ArrowRight", "c"):
        page.keyboard.press(key)
        chosen.append(page.inner_text("#pair h4").split(" and ")[0])
    assert chosen == ["call 1", "call 0", "call 0", "call 2", "call 2"]
    page.close()


def test_cells_of_the_matrix_can_be_reached_when_nothing_is_matched(browser: Any, tmp_path: Path) -> None:
    text = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
    row = {"group": "a", "turns": [text], "gold_calls": [{"name": "b", "arguments": {}}]}
    watched = Watched(browser)
    page = watched.open(write_report(tmp_path, str(write_rows(tmp_path / "rows.jsonl", [row]))))
    watched.rollout(0)
    assert page.locator("#matrix [tabindex='0']").count() == 1
    assert page.inner_text("#pair p") == "No gold call has this name."
    page.close()


def test_pair_that_is_not_matched_says_who_has_its_gold_call(browser: Any, sample: Path) -> None:
    watched = Watched(browser)
    page = watched.open(sample)
    watched.rollout(2)
    page.click("#match [data-call='0']")
    assert page.inner_text("#pair h4") == (
        "call 0 and gold 0: similarity 0.733, not matched: gold 0 has call 1"
    )
    page.click("#match [data-call='1']")
    assert page.inner_text("#pair h4") == "call 1 and gold 0: similarity 1.000"
    page.close()


def test_values_of_a_pair_have_half_of_a_narrow_page(browser: Any, sample: Path) -> None:
    watched = Watched(browser, width=360, height=740)
    watched.open(sample)
    page = watched.rollout(1)
    widths = page.eval_on_selector_all(
        "#pair tbody td:nth-child(n + 3)", "all => all.map(one => one.offsetWidth)"
    )
    assert min(widths) > 120
    page.close()


@pytest.mark.parametrize(
    ("options", "formula"),
    [((), "= trajectory part + turn part"), (("--reward", "outcome"), "= trajectory part")],
)
def test_turns_say_what_their_advantage_is_made_of(
    browser: Any, tmp_path: Path, options: tuple[str, ...], formula: str
) -> None:
    watched = Watched(browser)
    page = watched.open(write_report(tmp_path, "--sample", *options))
    watched.rollout(2)  # the only one of its group with a third turn
    assert page.inner_text("#conversation .legend").splitlines()[0].strip() == f"advantage {formula}"
    texts = page.locator(".turn-figures div:nth-child(3)").all_inner_texts()
    assert [text.split() for text in texts[:2]] == [
        ["group", "mean", digits]
        for digits in page.evaluate("view.detail.turns.slice(0, 2).map(turn => turn.group_mean.toFixed(3))")
    ]
    assert "no other rollout has this turn" in texts[2]
    page.close()


def test_charts_beside_each_other_stand_on_one_line(browser: Any, tmp_path: Path) -> None:
    columns, details = describe([], assign_credit([]), CreditConfig())
    charts = [line_chart(name, name, [Line("a", [1, 2], [0, 1])], x="x", note=name) for name in ("", "b")]
    path = tmp_path / "page.html"
    path.write_text(render(Report("run", columns, details, [], charts=charts), version="1"))
    watched = Watched(browser)
    page = watched.page
    page.goto(path.as_uri())
    tops = page.eval_on_selector_all(
        "figure .chart", "all => all.map(one => one.getBoundingClientRect().top)"
    )
    assert tops[0] == tops[1]
    page.close()


def test_rollout_that_is_not_on_the_page_is_named(browser: Any, sample: Path) -> None:
    watched = Watched(browser)
    page = watched.open(sample)
    assert not page.is_visible("#missing")
    page.evaluate("location.hash = 'r=' + encodeURIComponent('<b>x</b>:7')")
    page.wait_for_selector("#missing")
    assert page.inner_text("#missing") == "Rollout <b>x</b>:7 is not on this page."
    page.fill("#filter-q", "ferry")
    page.locator("#list tbody a").first.click()
    page.wait_for_selector("#conversation")
    page.keyboard.press("Escape")
    page.wait_for_selector("#list tbody tr[data-place]")
    assert not page.is_visible("#missing")
    page.close()


def test_long_values_of_a_card_hide_no_other_parameter(browser: Any, tmp_path: Path) -> None:
    call = {"name": "f", "arguments": {"text": "word " * 300, "other": 1}}
    row = {"group": "a", "turns": [f"<tool_call>{json.dumps(call)}</tool_call>"], "gold_calls": [call]}
    watched = Watched(browser)
    page = watched.open(write_report(tmp_path, str(write_rows(tmp_path / "rows.jsonl", [row]))))
    watched.rollout(0)
    foot = page.locator("#match [data-call='0'] .card-foot").bounding_box()
    last = page.locator("#match [data-call='0'] .argument").last.bounding_box()
    assert last["y"] + last["height"] <= foot["y"] + 1
    assert foot["y"] < 900
    page.close()
