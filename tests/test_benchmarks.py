"Benchmarks: turns, ratios, limits, rows, peers and the command. Nothing here is timed; models are tiny."

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamgym import benchmarks
from dreamgym.benchmarks import (
    BENCHMARKS,
    BenchmarkError,
    BenchmarkSettings,
    Clocked,
    RecordedPages,
    Row,
    TokenCost,
    affordable,
    break_even,
    choose_benchmarks,
    clustered_vectors,
    explain_aims,
    growth_exponent,
    make_row,
    our_model,
    pays_above,
    peer_model,
    ratios,
    read_rows,
    recorded,
    recorded_examples,
    row_line,
    run_benchmarks,
    sampling_limit,
    save_rows,
    spread,
    take_turns,
    times,
    token_cost,
    trl_rows,
    useful_flop,
    verdict,
)
from dreamgym.environments import BatchEnvironment, make_task
from dreamgym.language_model import Example
from dreamgym.rollouts import Agent, collect_rollouts

ORIGIN = {"date": "2026-01-01", "command": "dreamgym bench", "versions": "a=1"}


class Clock:
    "Time that passes only where a test says so."

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def settings(tiny_model_folder):
    return BenchmarkSettings(str(tiny_model_folder), rank=2, repeats=2, seconds=60, episodes=8, group_size=4,
                             action_tokens=4, training_tokens=600, batches=(1, 3), new_tokens=3, queries=2,
                             sizes=(200, 400), searches=30, iterations=3)


# ---------------------------------------------------------------- turns


def test_contestants_take_turns_and_the_first_round_does_not_count():
    order, clock = [], Clock()

    def work(name, seconds):
        def one_turn():
            order.append(name)
            clock.now += seconds
            return 10 * seconds

        return one_turn

    found = take_turns({"a": work("a", 1.0), "b": work("b", 2.0)}, repeats=3, clock=clock)
    assert "".join(order) == "ab" * 4
    assert times(found["a"]) == [1.0] * 3 and times(found["b"]) == [2.0] * 3
    assert {t.rate for t in found["a"] + found["b"]} == {10.0}
    assert ratios(times(found["b"]), times(found["a"])) == [2.0] * 3


@pytest.mark.parametrize("seconds, rounds", [(0.0, 1), (2.0, 1), (3.0, 2), (4.5, 3), (100.0, 5)])
def test_no_round_starts_that_would_end_too_late(seconds, rounds):
    clock = Clock()

    def work():
        clock.now += 1.0

    assert len(take_turns({"a": work}, 5, seconds, clock)["a"]) == rounds


def test_spread_is_median_and_extremes():
    assert spread([5.0, 1.0, 3.0, 4.0]) == (3.5, 1.0, 5.0)
    with pytest.raises(BenchmarkError, match="at least one"):
        spread([])


# ---------------------------------------------------------------- limits


def test_costs_are_counted_from_the_weights(settings):
    cost = token_cost(our_model(settings))
    inner = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)
    vocabulary = our_model(settings).network.config.vocab_size
    assert cost.blocks == 2 * inner and cost.head == 2 * vocabulary * 64, "adapters are not counted"
    size = cost.weights / (inner + vocabulary * 64)
    assert size in (2, 4) and cost.remembered == size * 2 * 2 * 2 * 16


def test_the_lower_roof_bounds_sampling():
    cost = TokenCost(blocks=100.0, head=20.0, weights=1000.0, remembered=1.0)
    few = sampling_limit(cost, 1e3, 1e3, batch=2, prompt_tokens=0, steps=4)
    many = sampling_limit(cost, 1e3, 1e3, batch=50, prompt_tokens=0, steps=4)
    assert few.bound == "memory" and few.steps == pytest.approx(4 * 1.004)
    assert many.bound == "matrix product" and many.steps == pytest.approx(4 * 6.0)
    prompts = sampling_limit(cost, 1e3, 1e3, 2, prompt_tokens=30, steps=4).prompts
    assert prompts == pytest.approx((30 * 100 + 2 * 20) / 1e3)


def test_useful_operations_count_what_is_shared_once():
    cost = TokenCost(1.0, 10.0, 0.0, 0.0)
    examples = [Example([1, 2], [3, 4]), Example([1, 2], [3, 5]), Example([1, 2], [3, 4])]
    assert useful_flop(cost, examples) == 2 * (5 + 3 * 10)
    assert useful_flop(cost, examples, share=False) == 2 * (12 + 6 * 10)


# ---------------------------------------------------------------- rows


def row(**changes) -> Row:
    return replace(make_row("training", "case", "speed", "share", [0.5, 0.4, 0.7], "at least 0.6", "note"), **changes)


@pytest.mark.parametrize("median, aim, expected", [
    (0.5, "at least 0.6", "missed by 17%"), (0.6, "at least 0.6", "met"), (7.0, "at least 5", "met"),
    (1.2, "at most 1.0", "missed by 20%"), (0.9, "at most 1.0", "met"), (0.5, "", "")])
def test_aims_are_judged(median, aim, expected):
    assert verdict(row(median=median, aim=aim)) == expected


def test_sentences_tell_aims_and_their_notes():
    sentences = explain_aims([row(), row(aim="")])
    assert len(sentences) == 1 and "missed by 17%" in sentences[0] and sentences[0].endswith("Note.")
    assert "0.5 share (0.4 to 0.7 in 3)" in row_line(row())
    assert row_line(row(median=math.nan)).endswith("note")


def test_rows_survive_the_file_and_others_stay(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    sampled = row(benchmark="sampling", case='a "b", c\nd')
    save_rows([row(), sampled], path, ORIGIN)
    save_rows([row(median=0.6)], path, ORIGIN | {"date": "2026-02-02"})
    assert read_rows(path) == [sampled, row(median=0.6)]
    text = path.read_text(encoding="utf-8")
    assert "2026-01-01" in text and "2026-02-02" in text and "dreamgym bench" in text
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]


def test_an_interrupted_write_leaves_the_old_rows(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    save_rows([row()], path, ORIGIN)
    before = path.read_bytes()

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_rows([row(median=0.9)], path, ORIGIN)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["benchmark,case\ntraining,x\n", "nonsense\n1\n", "\x00"])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(BenchmarkError, match="rows.csv"):
        read_rows(path)


# ---------------------------------------------------------------- what is measured


def test_recorded_pages_answer_everyone_alike(settings):
    episodes = recorded(3)
    assert len({t.task.kind for t in episodes}) == 3 and all(2 <= len(t) <= 6 for t in episodes)
    tasks = [t.task for t in episodes]
    rollouts = collect_rollouts(Agent(our_model(settings), maximum_tokens=2), RecordedPages(episodes), tasks, 4)
    assert [len(r.turns) for r in rollouts] == [len(t) for t in episodes for _ in range(4)]
    assert [r.reward for r in rollouts] == [1.0, 0.0] * 6, "no group is dead"
    batch = trl_rows(rollouts)
    turns = [turn for r in rollouts for turn in r.turns]
    for i, turn in enumerate(turns):
        assert batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist() == turn.prompt
        assert batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist() == turn.action
    assert batch["prompt_mask"][:, -1].all() and batch["completion_mask"][:, 0].all()


def test_the_peer_samples_the_same_greedy_tokens(settings, monkeypatch):
    monkeypatch.setenv("DREAMGYM_DTYPE", "float32")
    model = our_model(settings)
    for layer in model.adapted.values():  # as if trained: the peer must have it too
        layer.lora_b.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    prompts = [e.prompt for e in recorded_examples(model, 600)]
    ours, theirs = (m.sample(prompts, 5, 0) for m in (model, peer_model(settings, model)))
    assert [s.tokens for s in ours] == [s.tokens for s in theirs]
    assert len({tuple(s.tokens) for s in peer_model(settings, model).sample(prompts[:1] * 6, 5, 1.0)}) > 1


def test_groups_repeat_prompts_with_other_actions(settings):
    examples = recorded_examples(our_model(settings), 2000, group_size=3)
    for i in range(0, len(examples), 3):
        group = examples[i:i + 3]
        assert len({tuple(e.prompt) for e in group}) == 1 and len({tuple(e.completion) for e in group}) >= 2


def test_episodes_are_halved_until_they_fit():
    assert [affordable(64, 1.0, s) for s in (64, 63, 31, 0)] == [64, 32, 16, 8]
    assert affordable(4, 100.0, 1.0) == 4


@pytest.mark.parametrize("name", ["training", "sampling", "memory", "retrieval"])
def test_every_benchmark_returns_sound_rows(name, settings):
    rows = BENCHMARKS[name].measure(settings)
    assert rows and {r.benchmark for r in rows} == {name}
    assert all(r.low <= r.median <= r.high and r.repeats >= 1 and r.quantity and r.unit for r in rows)
    assert len({(r.case, r.quantity) for r in rows}) == len(rows)


def test_an_iteration_is_raced_against_trl(settings):
    from dreamgym.benchmarks import iteration

    rows = iteration(settings)
    assert [r.quantity for r in rows][:3] == ["whole iteration against TRL", "rollouts against generate",
                                              "update against TRL"]
    assert rows[0].aim == "at least 5" and rows[0].repeats == 2 and rows[0].case == "8 episodes"
    assert "scaled down" not in rows[0].note
    short = iteration(replace(settings, episodes=64, group_size=4, seconds=0.0))
    assert short[0].case == "8 episodes" and "scaled down from 64" in short[0].note


def test_indexes_pay_where_recall_and_time_allow():
    def case(kind, count, p50, recall, build):
        values = {"search, p50": p50, "recall against exact search": recall, "build": build}
        return [make_row("retrieval", f"{kind}, {count}", name, "", [v]) for name, v in values.items()]

    rows = [*case("flat", 10, 1.0, 1.0, 0.0), *case("HNSW", 10, 2.0, 1.0, 1.0), *case("IVF", 10, 0.5, 0.5, 0.1),
            *case("flat", 99, 9.0, 1.0, 0.0), *case("HNSW", 99, 1.0, 0.99, 8.0), *case("IVF", 99, 1.0, 0.5, 0.1)]
    assert break_even(rows, "HNSW", 10) == math.inf and break_even(rows, "HNSW", 99) == pytest.approx(1000)
    assert pays_above(rows) == {"HNSW": 99.0, "IVF": math.inf}
    assert pays_above(rows, searches=999)["HNSW"] == math.inf


def test_made_vectors_lie_in_clusters():
    vectors = clustered_vectors(400, seed=1)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosine = vectors @ vectors.T
    inside = np.mean([cosine[i, i + 1] for i in range(0, 400, 8)])
    assert inside > 0.9 > np.median(cosine) > 0.2
    assert np.array_equal(vectors, clustered_vectors(400, seed=1))


def test_exponents_are_slopes_of_logarithms():
    assert growth_exponent([4, 8, 16], [2.0, 8.0, 32.0]) == pytest.approx(2.0)


# ---------------------------------------------------------------- all of them, and the command


def test_unknown_names_are_refused_and_order_is_kept():
    assert choose_benchmarks() == list(BENCHMARKS)
    assert choose_benchmarks(" retrieval,iteration ") == ["iteration", "retrieval"]
    with pytest.raises(BenchmarkError, match="No benchmark is named 'speed'; choose of iteration,"):
        choose_benchmarks("training,speed")


@pytest.fixture
def stand_ins(monkeypatch):
    "Two benchmarks that measure nothing: one answers, one fails."
    asked = []

    def works(settings):
        asked.append(settings)
        return [row(benchmark="works")]

    def fails(settings):
        raise BenchmarkError("no browser.")

    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"fails": benchmarks.Benchmark(fails, 1, "?"),
                                                   "works": benchmarks.Benchmark(works, 3, "Does it work?")})
    return asked


def test_one_failure_does_not_stop_the_others(stand_ins):
    found = run_benchmarks(["fails", "works"], BenchmarkSettings(), seconds=100)
    assert next(found)[0].benchmark == "works"
    assert 90 < stand_ins[0].seconds <= 100, "the whole rest, for it is the last"
    with pytest.raises(BenchmarkError, match="Not measured: fails: no browser."):
        next(found)


def test_the_command_prints_and_saves(stand_ins, tmp_path, capsys):
    from dreamgym.command_line import run_command

    assert run_command(["bench", "--only", "works", "--repeats", "2", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Does it work?" in shown and "missed by 17%" in shown
    assert read_rows(tmp_path / "rows.csv") == [row(benchmark="works")]
    assert "dreamgym bench --only works --repeats 2" in (tmp_path / "rows.csv").read_text()
    assert stand_ins[0].repeats == 2
    assert run_command(["bench", "--only", "nothing"]) == 1
    assert "No benchmark is named 'nothing'" in capsys.readouterr().err


# ---------------------------------------------------------------- the world of a run


def test_without_a_run_there_is_no_world_to_compare(settings):
    (row,) = BENCHMARKS["world"].measure(replace(settings, run=""))
    assert math.isnan(row.median) and "run directory" in row.note


def test_a_world_on_the_clock_is_the_world_itself():
    class Two(BatchEnvironment):
        real, maximum_steps, capacity = True, 3, 2

        def reset_batch(self, tasks):
            return [task.model_copy(update={"start_state": "here"}) for task in tasks]

        def step_batch(self, actions):
            return [None if action is None else ("(end)", 1.0, True, False, {}) for action in actions]

    clocked = Clocked(Two())
    assert (clocked.real, clocked.maximum_steps, clocked.capacity) == (True, 3, 2)
    assert [t.start_state for t in clocked.reset_batch([make_task("x", 1), make_task("x", 2)])] == ["here"] * 2
    assert clocked.step_batch(["go", None]) == [("(end)", 1.0, True, False, {}), None]
    assert clocked.counts == {"reset": 2, "step": 1} and all(seconds >= 0 for seconds in clocked.seconds.values())
