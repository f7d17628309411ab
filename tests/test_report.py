"The report: foreign text is escaped, one file is enough, and a run of any age can be shown."

import json
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from dreamgym.report import (
    AGENTS,
    Chart,
    Fragment,
    agent_rows,
    choose_episodes,
    command_of,
    dream_picture,
    escaped,
    evaluation_rows,
    evidence_chart,
    evidence_table,
    filled,
    filled_tables,
    gate_chart,
    iterations,
    judged_variations,
    learning_chart,
    loss_chart,
    open_run,
    page_html,
    plain,
    preformatted,
    real_experience,
    recorded_dreams,
    report_html,
    results_chart,
    results_table,
    show_comparison,
    show_trajectory,
    show_variations,
    stage_table,
    success_words,
    task_returns,
    time_chart,
    write_evaluation,
    write_evidence,
    write_report,
)
from dreamgym.runs import Run
from dreamgym.trajectories import (
    DreamgymError,
    Task,
    Trajectory,
    Transition,
    atomic_write_json,
    read_json,
    write_trajectories,
)

EVIL = "text <script>alert('x')</script> & [bold]b[/bold] \x1b[31m \u202e\n[1] button '\"><img src=x onerror=alert(1)>'"
TAGS = set("""html head meta title style body header h1 h2 h3 p nav a main section figure figcaption img div table thead
    tbody tr th td pre code b i br small mark""".split())


class Elements(HTMLParser):
    "Checks every element of a document against what the report itself writes."

    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attributes):
        assert tag in TAGS, tag
        for name, value in attributes:
            assert name in ("lang", "charset", "name", "content", "http-equiv", "class", "id", "style", "href", "alt",
                            "src"), (tag, name)
            assert name != "href" or value.startswith("#"), value
            assert name != "src" or value.startswith("data:image/"), value
        self.seen.append(tag)


class Texts(HTMLParser):
    "The text that a reader of a document sees."

    text = ""

    def handle_data(self, data):
        self.text += data


def trajectory(seed=0, reward=1.0, text=EVIL, real=False, **changes) -> Trajectory:
    task = Task(id=f"click-button/{seed}", kind="click-button", seed=seed, goal="Click <b>" + text[:20], start_state=text)
    step = Transition(state=text, action="click 1 <i>", next_state=text, reward=0.0, done=False, reasoning=text)
    last = Transition(state=text, action="click 1", next_state="(end)", reward=reward, done=True, reasoning=text)
    return Trajectory(**{"task": task, "transitions": (step, last), "source": "<u>agent", "real": real} | changes)


def rate(successes: int, episodes: int = 10) -> dict:
    return {"mean": successes / episodes, "low": 0.0, "high": 1.0, "successes": successes, "episodes": episodes}


def evaluation(successes: int, digest="a" * 64) -> dict:
    part = {"overall": rate(successes), "by_kind": {"click-button": rate(successes)}, "transitions": 20}
    return {"agent": "x", "panel": "test", "panel_hash": digest, "own": part, "held_out": part}


def gate(**changes) -> dict:
    return {"balanced_reward_accuracy": 0.7, "success_recognised": 0.9, "failure_recognised": 0.5, "real": rate(5),
            "dreamed": rate(8), "transitions": 30, "verdict": "flattering"} | changes


@pytest.fixture
def partial(quick_run):
    "Offline data, a warm start, one iteration: a run that was interrupted."
    run = quick_run
    run.build("offline.jsonl", lambda path: write_trajectories(path, [trajectory(n, real=True) for n in range(4)]))
    run.record("warm_start", losses=[2.0, 1.0, 0.5])
    run.build("evaluation/warm_start.json", lambda path: atomic_write_json(path, evaluation(4)))

    def iteration(path):
        path.mkdir()
        write_trajectories(path / "rollouts.jsonl", [trajectory(0), trajectory(0, 0.0), trajectory(1, 0.0)])
        atomic_write_json(path / "metrics.json", {"return": 0.3, "dead_groups": 0.5})
        atomic_write_json(path / "judged.json", [{"problem": "", "text": EVIL, "task": "click-button/0~1"},
                                                 {"problem": "not new", "text": EVIL, "task": None}])

    run.build("iterations/0001", iteration)
    return run


@pytest.fixture
def whole(partial):
    "Everything a finished run has, in small."
    run = partial
    for name, successes in (("dream", 6), ("sim_to_real", 8)):
        run.build(f"evaluation/{name}.json", lambda path, n=successes: atomic_write_json(path, evaluation(n)))
    for name in ("gate.json", "gate_after.json"):
        run.build(name, lambda path: atomic_write_json(path, gate()))
    for name in ("iterations/0002", "transfer/0001"):
        run.build(name, lambda path: (path.mkdir(), write_trajectories(path / "rollouts.jsonl", [trajectory(2, real=True)]),
                                      atomic_write_json(path / "metrics.json", {"return": 1.0, "transitions": 8.0})))
    side = {"page": EVIL, "reward": 0.0, "done": False, "valid": True, "reasoning": EVIL}
    episode = {"task": "a/1", "kind": "a", "goal": EVIL, "steps": [
        {"page": EVIL, "action": EVIL, "real": side, "imagined": side | {"page": EVIL + "\ntext more"}},
        {"page": EVIL, "action": EVIL, "real": side, "imagined": side | {"valid": False}}]}
    run.build("transcripts.json", lambda path: atomic_write_json(
        path, {"episodes": [episode], "mistakes": [episode], "endings": 24, "wrong": 1}))
    run.build("model_quality.json", lambda path: atomic_write_json(
        path, {"full": {"steps": 9, "balanced_reward_accuracy": 0.9, "state_exact": None}}))
    return run


def assert_harmless(text: str) -> None:
    "No foreign text has become an element of the page, nothing is loaded, no control character is left."
    Elements().feed(str(text))
    assert "url(" not in text and "@import" not in text
    assert "\x1b" not in text and "\u202e" not in text


# ---------------------------------------------------------------- foreign text


def test_control_characters_go_and_markup_is_escaped():
    assert plain("a\x1b[2Jb\u202ec\n\td") == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c\n\td"
    assert escaped("<a href='x'>\"&") == "&lt;a href=&#39;x&#39;&gt;&#34;&amp;"
    assert escaped(None) == "None"
    assert Fragment("<p>x</p>")._repr_html_() == "<p>x</p>" and "<" not in repr(Fragment("<p>x</p>"))


@pytest.mark.parametrize("foreign", ["<script>", "\x1b[31m", "\u202e", "{{ 7 * 7 }}", "{% include 'x' %}", "' onerror='x", '"><b>'])
def test_nothing_foreign_gets_past_the_engine(foreign):
    "Whichever way it comes in: as a value, in a list, added, joined or formatted."
    ours = Fragment("<b>{}</b>")
    for shown in (filled("{{ x }}", x=foreign), filled("{% for y in x %}{{ y }}{% endfor %}", x=[foreign]), escaped(foreign),
                  Fragment() + foreign, foreign + Fragment(), Fragment().join([foreign]), ours.format(foreign)[3:-4],
                  preformatted(foreign).split(">", 1)[1].rsplit("<", 1)[0]):
        assert isinstance(shown, Fragment)
        assert not set(shown) & set("<>\"'\x1b\u202e")
        assert shown.unescape() == plain(foreign), "nothing is lost, and no value is a template"
    assert filled("{{ x }}", x=ours) == ours == Fragment.escape(ours), "what a template made is not escaped twice"
    with pytest.raises(UndefinedError):
        filled("{{ missing }}")


@given(st.text())
def test_any_text_comes_back_from_the_page(text):
    page = Texts()
    page.feed(f"{page_html('x' + text)}{show_variations([{'problem': text, 'text': 'x', 'task': None}])}")
    page.close()
    assert page.text.startswith("x" + plain(text)) and page.text.count(plain(text)) >= 2
    assert_harmless(page_html(text, text[:3]))


def test_names_from_files_are_plain_in_every_table(whole):
    "Also in the head of a table, where variants are columns."
    atomic_write_json(whole.path / "model_quality.json", {"x\u202e<b>": {"steps": 9, "state_exact": 0.5}})
    text = report_html(whole)
    assert_harmless(text)
    assert text.count("<th>x\N{REPLACEMENT CHARACTER}&lt;b&gt;</th>") == 1


def test_a_trajectory_is_shown_and_harmless():
    shown = show_trajectory(trajectory())
    assert_harmless(shown)
    assert shown.count("<tr>") == 3 and "[bold]b[/bold]" in shown and "reward 1" in shown and "imagined page" in shown
    assert "cut at the step limit" in show_trajectory(trajectory(
        transitions=(Transition(state="text a", action="click 1", next_state="text a", reward=0.0, done=False),), truncated=True))
    assert "(end)" in shown and "<mark>(end)" not in shown


def test_changed_lines_are_marked():
    assert page_html("text a\ntext b", "text a").count("<mark>") == 1
    assert page_html("text a", "text a").count("<mark>") == 0
    assert page_html("text a").count("<mark>") == 0


def test_a_comparison_says_where_the_dream_differs(whole):
    shown = show_comparison(read_json(whole.path / "transcripts.json")["episodes"][0])
    assert_harmless(shown)
    assert shown.count("differs") == 2 and "cannot be parsed" in shown and "<mark>text more</mark>" in shown


def test_variations_of_both_kinds(partial):
    shown = show_variations(judged_variations(partial))
    assert_harmless(shown)
    assert "1 accepted, 1 rejected because: not new (1)." in shown
    assert "0 accepted, 0 rejected." in show_variations([])
    many = [{"iteration": 1, "problem": f"Not a line of a page: {i}", "text": "x", "task": None} for i in range(9)]
    assert show_variations([*many, {"iteration": 1, "problem": "not new", "text": "y", "task": None}], 2).count("<tr>") == 3


# ---------------------------------------------------------------- rows


def test_rows_are_tidy_and_ordered(whole, tmp_path):
    rows = evaluation_rows(whole)
    assert [r["agent"] for r in rows if r["kind"] == "all" and r["part"] == "own"] == ["warm_start", "dream", "sim_to_real"]
    frame = pd.read_csv(write_evaluation(whole))
    assert list(frame.columns) == ["agent", "part", "kind", "successes", "episodes", "mean", "low", "high", "panel",
                                   "panel_hash", "scale", "seed"]
    assert len(frame) == len(rows) == 12 and set(frame["scale"]) == {"quick"}
    (whole.path / "evaluation" / "mine.json").write_text(json.dumps(evaluation(1)))
    assert list(results_table(whole).index) == ["warm start", "dream", "sim-to-real", "mine"]
    assert results_table(whole).loc["sim-to-real", "real transitions in RL"] == 8


def test_real_transitions_are_all_counted(whole):
    table = real_experience(whole)
    spent = dict(zip(table["where"], table["real transitions"], strict=True))
    assert spent == {"offline data": 8, "fidelity gate before": 30, "fidelity gate after": 30, "GRPO in the dream": 0,
                     "sim-to-real": 8, "test panel, warm start": 40, "test panel, dream": 40, "test panel, sim-to-real": 40}


def test_bands_come_from_whole_tasks():
    assert task_returns([trajectory(0), trajectory(0, 0.0), trajectory(1)]) == [0.5, 1.0]


def test_stages_are_summed_by_training_and_rebuilt_ones_count_once(partial):
    partial._log_stage("iterations/0002", 5.0)
    partial._log_stage("offline.jsonl", 99.0)
    table = stage_table(partial)
    assert list(table["stage"]) == ["offline.jsonl", "evaluation/warm_start.json", "iterations (2)"]
    assert table["seconds"][0] == 99.0 and list(stage_table(Run.open(partial.path)).columns)[3] == "peak megabytes"


def test_episodes_are_chosen_by_a_rule():
    other = trajectory(3, task=Task(id="b/3", kind="b"), transitions=trajectory().transitions[1:])
    chosen = choose_episodes([trajectory(0, 0.0), other, trajectory(1)], 3)
    assert [(t.task.id, t.success) for t in chosen] == [("click-button/1", True), ("click-button/0", False), ("b/3", True)]
    assert choose_episodes([]) == []


# ---------------------------------------------------------------- charts


def test_charts_draw_themselves_and_speak(whole):
    charts = [results_chart(evaluation_rows(whole)), learning_chart(iterations(whole)),
              gate_chart({"before": gate(), "after": gate(success_recognised=None)}),
              loss_chart({"a": [1.0], "b": [2.0, 1.0]}), time_chart(stage_table(whole))]
    for chart in charts:
        assert isinstance(chart, Chart) and len(chart.text) > 20 and chart.text in repr(chart)
    png, tag = charts[0]._repr_png_(), charts[0].tag()
    assert png.startswith(b"\x89PNG") and len(png) < 60_000
    assert tag == charts[0].tag(), "the same picture has the same bytes"


def test_nothing_to_draw_is_no_chart():
    assert [results_chart([]), learning_chart([]), gate_chart({"before": None}), loss_chart({"a": []}),
            time_chart(pd.DataFrame({"stage": [], "seconds": [], "peak megabytes": []}))] == [None] * 5


# ---------------------------------------------------------------- the file


def test_the_report_of_an_empty_run(quick_run):
    path = write_report(quick_run)
    text = path.read_text()
    assert "nothing has been measured" in text and "Not there yet: Results" in text
    assert 'id="origin"' in text and 'id="results"' not in text
    assert_harmless(text)
    assert (quick_run.path / "evaluation.csv").read_text().startswith("agent,part,kind")


def test_the_report_of_a_partial_run(partial):
    text = report_html(partial)
    assert "the warm start succeeds in 40% [0%, 100%]." in text
    assert "Invented tasks" in text and "Episodes in the dream" in text and "Real and imagined" not in text
    assert_harmless(text)


def test_the_report_of_a_whole_run(whole):
    text = write_report(whole).read_text()
    for title in ("Results", "Is the dream true?", "Learning", "Transcripts", "Invented tasks", "Time and memory", "Origin"):
        assert f"<h2>{title}</h2>" in text
    assert "after 8 real transitions more, 80%" in text and "flattering" in text and "1 wrongly" in text
    assert "different panels" not in text and "a" * 64 in text
    assert escaped(command_of(whole)) in text and "dreamgym reproduce --scale quick --seed 0" in text
    assert_harmless(text)
    assert text == report_html(whole), "the same run gives the same report"
    assert len(text) < 600_000
    assert [p.name for p in whole.path.iterdir() if p.name.endswith("unfinished")] == []


def test_numbers_from_different_panels_are_not_compared(whole):
    (whole.path / "evaluation" / "dream.json").write_text(json.dumps(evaluation(6, "b" * 64)))
    assert "different panels" in report_html(whole)


def test_hostile_names_of_agents_and_chapters(whole):
    (whole.path / "evaluation" / "<script>x.json").write_text(json.dumps(evaluation(6)))
    (whole.path / "chapters.jsonl").write_text('{"chapter": "<script>", "seconds": 1.0}\n{"chapter": "cut')
    assert_harmless(report_html(whole))


# ---------------------------------------------------------------- damage


def test_damaged_files_are_named(partial):
    (partial.path / "gate.json").write_text('{"real"')
    with pytest.raises(DreamgymError, match="gate.json in run is damaged"):
        write_report(partial)
    assert not (partial.path / "report.html").exists()
    (partial.path / "gate.json").unlink()
    (partial.path / "iterations" / "0001" / "rollouts.jsonl").write_text("{}\n")
    with pytest.raises(DreamgymError, match="line 1"):
        write_report(partial)


def test_a_run_is_opened_as_it_was_made(tmp_path):
    Run.open(tmp_path / "run", "cpu", 3)
    opened = open_run(tmp_path / "run")
    assert (opened.scale.name, opened.seed) == ("cpu", 3)
    with pytest.raises(DreamgymError, match="no run directory"):
        open_run(tmp_path / "other")
    assert not (tmp_path / "other").exists()


# --- lost, unknown and foreign: what is not known has no number


def test_a_report_needs_no_figures_beside_the_results(whole):
    text = report_html(whole)
    assert "after 8 real transitions more, 80%" in text
    (whole.path / "metrics.json").unlink()
    shorn = report_html(whole)
    assert "after 8 real transitions more, 80%" in shorn and len(shorn) < len(text), "only the losses are missing"
    (whole.path / "metrics.json").write_text("[")
    with pytest.raises(DreamgymError, match="metrics.json in run is damaged; delete that file"):
        report_html(whole)


def test_steps_that_no_result_tells_have_no_row(whole):
    (whole.path / "transfer" / "0001" / "metrics.json").unlink()
    assert results_table(whole).loc["sim-to-real", "real transitions in RL"] == 2, "counted again in the rollouts"
    (whole.path / "transfer" / "0001" / "rollouts.jsonl").unlink()
    (whole.path / "offline.jsonl").unlink()
    found = evaluation(6)
    del found["own"]["transitions"]
    atomic_write_json(whole.path / "evaluation" / "dream.json", found)
    assert results_table(whole).loc["sim-to-real", "real transitions in RL"] == ""
    assert list(real_experience(whole)["where"]) == ["fidelity gate before", "fidelity gate after", "GRPO in the dream",
                                                     "test panel, warm start", "test panel, sim-to-real"]


@pytest.mark.parametrize("null", ["null", "NaN"])
def test_a_gate_that_measured_nothing(whole, null):
    lost = ("balanced_reward_accuracy", "success_recognised")
    text = json.dumps(gate(verdict="not measured") | dict.fromkeys(lost)).replace("null", null)
    for name in ("gate.json", "gate_after.json"):
        (whole.path / name).write_text(text)
    (whole.path / "model_quality.json").write_text(f'{{"full": {{"steps": 9, "state_exact": {null}}}}}')
    shown = report_html(whole)
    assert "not measured</b> how true" in shown and "none seen" in shown
    assert "balanced reward accuracy not measured" in shown and "nan%" not in shown
    assert_harmless(shown)


def test_an_iteration_that_measured_nothing(partial):
    path = partial.path / "iterations" / "0001" / "metrics.json"
    path.write_text('{"return": null, "dead_groups": null, "ratio": NaN, "entropy": 0.5}')
    assert_harmless(report_html(partial))
    for number in (2, 3):
        folder = partial.path / "iterations" / f"{number:04d}"
        folder.mkdir()
        (folder / "metrics.json").write_text('{"return": null, "kl": null, "dead_groups": 0.5}')
    rows = iterations(partial)
    assert None not in [value for row in rows for value in row.values()] and "ratio" not in rows[0]
    assert "not measured in the last" in learning_chart(rows).text
    assert_harmless(report_html(partial))
    assert loss_chart({"a": [None, 1.0, None]}).text.count("from 1.00") == 1 and loss_chart({"a": [None]}) is None


def test_a_text_that_was_cut_off_is_shown_as_rejected():
    shown = show_variations([{"iteration": 1, "problem": "cut off at its token limit", "text": "", "task": None}])
    assert "0 accepted, 1 rejected because: cut off at its token limit (1)." in shown


def test_files_that_are_not_ours_change_nothing(whole):
    before = report_html(whole)
    for name in ("._dream.json", ".dream.json", "_dream.json", "dream copy.json", "dream.json~"):
        (whole.path / "evaluation" / name).write_bytes(b"\0\5\x16\7\xff")
    for name in ("._0001", ".0002.unfinished", "0002 copy", "00"):
        (whole.path / "iterations" / name).mkdir()
        (whole.path / "iterations" / name / "judged.json").write_text("{")
        (whole.path / "iterations" / name / "metrics.json").write_text("{")
    (whole.path / "iterations" / "0001" / "._rollouts.jsonl").write_bytes(b"\0")
    (whole.path / "transfer" / ".DS_Store").write_bytes(b"\0")
    assert report_html(whole) == before


@pytest.mark.parametrize("name, text", [("chapters.jsonl", '{"chapter": "00_x", "seconds": 1.5}\n'),
                                        ("stages.jsonl", '{"stage": "x", "seconds": 1.5, "peak_megabytes": 3}\n')])
def test_a_torn_log_does_not_stop_the_report(whole, name, text):
    (whole.path / name).write_bytes(text.encode()[:-9] + text.encode() + b"\xff\0\n[]\n{}\n" + text.encode() + text.encode()[:-9])
    assert "1.5" in report_html(whole)


def test_every_agent_of_the_method_has_a_name():
    from dreamgym.experiments import VARIANTS

    assert {name: AGENTS[name] for name in AGENTS} == {name: variant.words for name, variant in VARIANTS.items()}


# ---------------------------------------------------------------- tables and pictures outside a run


def seeds(agent: str, *successes: int, tasks: int = 60, steps: str = "12") -> list[dict]:
    return [{"agent": agent, "seed": str(seed), "success": repr(found / tasks), "episodes": str(tasks),
             "steps": steps} for seed, found in enumerate(successes)]


def stored(folder, rows) -> None:
    folder.mkdir(parents=True)
    pd.DataFrame(rows).rename(columns={"steps": "policy_real_steps"}).to_csv(folder / "agents.csv", index=False)


def test_what_was_not_run_is_never_a_zero():
    assert success_words([]) == "not run" and success_words(seeds("dream", 0)).startswith("0% [0, ")
    table = evidence_table({"a": seeds("dream", 30), "b": seeds("real", 0), "c": []})
    assert table.splitlines()[2:] == ["| dream | 50% [38, 62] · 12 | not run | not run |",
                                      "| real GRPO | not run | 0% [0, 6] · 12 | not run |"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_few_seeds_are_told_and_many_have_an_interval(found):
    words = success_words(seeds("dream", *found))
    assert words.startswith(f"{sum(found) / len(found) / 60:.0%} ") and words.endswith(" · 12")
    assert (f"({', '.join(map(str, found))})" in words) == (2 <= len(found) <= 4)
    assert ("[" in words) == (len(found) in (1, 5, 6, 7, 8))


def test_unknown_steps_are_left_out():
    assert "·" not in success_words(seeds("dream", 3, steps=""))


def test_only_the_tables_between_marks_change(tmp_path):
    stored(tmp_path / "main" / "a-quick", seeds("dream", 30) + seeds("new_rival", 60))
    text = "One.\n<!-- results main/a-quick main/b-quick -->\nold | table\n<!-- /results -->\nTwo <!-- x -->\n| agent |\n"
    made = filled_tables(text, tmp_path)
    assert made.startswith("One.\n<!-- results main/a-quick main/b-quick -->\n| agent | a-quick, 1 × 60 | b-quick |\n")
    assert made.endswith("| new rival | 100% [94, 100] · 12 | not run |\n<!-- /results -->\nTwo <!-- x -->\n| agent |\n")
    assert "old" not in made and filled_tables(made, tmp_path) == made
    stored(tmp_path / "main" / "b-quick", seeds("dream", 15))
    assert filled_tables(made, tmp_path) != made


def test_rows_without_their_columns_are_refused(tmp_path):
    stored(tmp_path / "a", [{"agent": "dream", "seed": 0}])
    with pytest.raises(DreamgymError, match="has no column success"):
        agent_rows(tmp_path / "a")
    assert agent_rows(tmp_path / "nothing") == []


def test_older_and_newer_tables_are_read_alike(tmp_path):
    old = {"agent": "rejection_sampling", "seed": "0", "success": "0.5", "episodes": "60", "policy_real_steps": "7"}
    new = {"variant": "imitation", "seed": "0", "success": "0.5", "episodes": "60", "steps_real": "7"}
    for name, row in (("old", old), ("new", new)):
        stored(tmp_path / name, [row])
    tables = [evidence_table({"a": agent_rows(tmp_path / name)}) for name in ("old", "new")]
    assert tables[0] == tables[1] and "| imitation (BC, RFT) | 50% [38, 62] · 7 |" in tables[0]


def test_the_figure_tells_its_rows():
    chart = evidence_chart({"a": seeds("dream", 30, 60), "b": seeds("warm_start", 6), "c": []})
    assert "a: warm start not run, dream 75% (30, 60) · 12; b: warm start 10%" in chart.text and "c:" not in chart.text
    assert chart.text in chart.svg()
    assert evidence_chart({"a": []}) is None


def test_evidence_is_written_where_it_belongs(tmp_path):
    with pytest.raises(DreamgymError, match="has no place for results"):
        (tmp_path / "README.md").write_text("nothing")
        write_evidence(tmp_path)
    (tmp_path / "nbs").mkdir()
    (tmp_path / "README.md").write_text("<!-- results main/a-quick -->\n<!-- /results -->\n")
    assert [p.name for p in write_evidence(tmp_path)] == ["README.md", "system.svg", "dream.svg"], "no rows, no figure"
    stored(tmp_path / "results" / "main" / "a-quick", seeds("dream", 30))
    assert [p.name for p in write_evidence(tmp_path)] == ["README.md", "system.svg", "dream.svg", "results.svg"]
    assert "| dream | 50% [38, 62] · 12 |" in (tmp_path / "README.md").read_text()


def test_recordings_pair_a_real_page_with_a_dream():
    pairs = recorded_dreams()
    assert any(not real.success for real, _ in pairs)
    for real, dreamed in pairs:
        assert real.real and not dreamed.real and real.task == dreamed.task
        assert [s.action for s in real.transitions] == [s.action for s in dreamed.transitions]
        assert all(s.reasoning for s in dreamed.transitions)


def test_a_picture_of_two_episodes_escapes_and_compares():
    task = Task(id="x/1", kind="x", goal=EVIL, start_state=EVIL)
    one = Trajectory(task=task, real=True, transitions=(
        Transition(state=EVIL, action="click 1", next_state=EVIL + "\nnew", reward=0.0, done=False, reasoning=EVIL),))
    drawn = dream_picture(one, one)
    assert "<script>" not in drawn and "<img" not in drawn and "\x1b" not in drawn and drawn.count("#fff0b3") == 2
    other = one.model_copy(update={"transitions": (one.transitions[0].model_copy(update={"action": "click 2"}),)})
    with pytest.raises(DreamgymError, match="take different actions"):
        dream_picture(one, other)
