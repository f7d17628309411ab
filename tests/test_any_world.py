"The method in worlds of which it knows nothing: free text, tool calls, a browser's functions, recordings alone, a world that dies."

import gc
import json
import multiprocessing
import re
import signal
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from dreamgym import experience_model, replay_buffer
from dreamgym.environments import Grammar, InvalidAction, play_episodes, start_tasks
from dreamgym.experience_model import annotated_steps, parse_answer, render_answer
from dreamgym.experiments import result_rows, results_of, run_method
from dreamgym.runs import Run
from dreamgym.sim_to_real import sim_to_real
from dreamgym.suites.own import OwnSuite, RecordedSuite
from dreamgym.trajectories import DreamgymError, read_json, read_trajectories, write_trajectories

TINY = dict(lora_rank=2, warm_start_epochs=1, imitation_epochs=1, experience_token_budget=3000, judgement_examples=2,
            variation_examples=2, log_episodes=1, iterations=2, tasks_per_iteration=2, group_size=2, test_per_kind=3,
            development_per_kind=2, quality_steps=4, transfer_share=2.0, transfer_group_size=2, random_actions=0.3,
            offline_seeds_per_kind=6, start_seeds_per_kind=3)


class WordEmbedder:
    "Texts to unit vectors by their letters, without weights."

    width = 384

    def embed(self, texts):
        vectors = np.zeros((len(texts), self.width), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            np.add.at(row, np.frombuffer(text.encode(), np.uint8), 1)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def no_weights_are_fetched(monkeypatch):
    for module in (experience_model, replay_buffer):
        monkeypatch.setattr(module, "Embedder", WordEmbedder)


class Cafe:
    "Free text: take the drink that the guest wants, then serve it."

    def reset(self, seed, options):
        self.menu, self.cup = Random(seed).sample(["tea", "milk", "water"], 2), "nothing"
        self.wanted = self.menu[seed % 2]
        return self.page(), {"goal": f"Serve {self.wanted}."}

    def page(self):
        return f"You hold {self.cup}.\nOn the counter: {', '.join(self.menu)}."

    def step(self, action):
        if action == "serve":
            return "(end)", float(self.cup == self.wanted), True, False, {}
        if action.removeprefix("take ") not in self.menu:
            raise InvalidAction(f"Nobody can {action} here.")
        self.cup = action.removeprefix("take ")
        return self.page(), 0.0, False, False, {}


def waiter(task, state, past):
    wanted = task.goal[6:-1]
    return "serve" if f"hold {wanted}" in state else f"take {wanted}"


def anything(task, state, random):
    return str(random.choice(["serve", *(f"take {drink}" for drink in state.split(": ")[1][:-1].split(", "))]))


cafe = OwnSuite(Cafe, tasks=20, name="test_any_world:cafe", oracle=waiter, random_action=anything, maximum_steps=3)


# ---------------------------------------------------------------- killed between stages

def one_run(model: Path, folder: Path) -> Run:
    "The method in the café, named as any process can find it."
    return run_method("test_any_world:cafe", run=str(folder), **TINY, model=str(model))


def alone(work, *arguments) -> None:
    "What a process of its own does first."
    gc.freeze()  # what it has imported stays
    torch.set_num_threads(1)
    experience_model.Embedder = replay_buffer.Embedder = WordEmbedder
    work(*arguments)


def run_until(mark: Path, work, *arguments) -> None:
    "Work in a process of its own, which is killed as soon as that file is there. The libraries are loaded once for all."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dreamgym.experiments", "dreamgym.fast_model", "dreamgym.suites.own", "faiss", "pytest"])
    child = context.Process(target=alone, args=(work, *arguments))
    child.start()
    while child.is_alive() and not mark.exists():
        time.sleep(0.02)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL, "it ended before"


def numbers_of(folder: Path) -> dict:
    "All that a run has found, by file."
    names = ["gate.json", "gate_after.json", *(f"iterations/000{n}/metrics.json" for n in (1, 2))]
    found = {name: read_json(folder / name) for name in names}
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in ("offline.jsonl", "starts.jsonl")}
    return found | texts | Run(folder, None, 0).evaluations()


def test_a_killed_run_ends_with_the_numbers_of_an_unbroken_one(tiny_model_folder, tmp_path):
    "In a world of free text; it is killed after the logs and after the first update."
    once, again = tmp_path / "once", tmp_path / "again"
    sizes = TINY | {"model": str(tiny_model_folder)}
    for mark in ("offline.jsonl", "iterations/0001"):
        run_until(again / mark, one_run, tiny_model_folder, again)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other processes
    one_run(tiny_model_folder, again)
    run = run_method(cafe, run=str(once), **sizes)
    torch.set_num_threads(threads)
    assert numbers_of(again) == numbers_of(once)
    table = results_of(run)
    assert list(table.index) == ["warm_start", "imitation", "dream", "sim_to_real"]
    assert set(table["measured"]) == {"real"} and list(table["episodes"]) == [3] * 4
    assert run_method(cafe, run=str(once), **sizes).stages() == run.stages()  # all is there, nothing is built again


def test_recordings_alone_go_through_every_stage(tiny_model_folder, tmp_path):
    "The evaluation is labelled, the gate never finds the dream trustworthy, and what measures is not learned from."
    logs = tmp_path / "logs.jsonl"
    with cafe.environment(3, 3) as world:
        tasks = [task for name in ("train", "development", "test") for task in cafe.tasks(name)]
        write_trajectories(logs, [*play_episodes(world, tasks, lambda i, task, state, past: waiter(task, state, past)),
                                  *play_episodes(world, tasks, lambda i, task, state, past: "serve")])
    alone = run_method(str(logs), run=str(tmp_path / "alone"), **TINY, model=str(tiny_model_folder))
    table = results_of(alone)
    assert list(table.index) == ["warm_start", "imitation", "dream"]
    assert set(table["measured"]) == {"dreamed, not real"} and "trustworthy" not in set(table["gate"])
    assert all("not real" in row["panel"] and row["real"] is False and row["agreement"]["episodes"] >= 4
               for row in alone.evaluations().values())
    assert all(row["panel"].endswith(" (dreamed, not real)") for row in result_rows(alone))
    with pytest.raises(DreamgymError, match="recordings but no environment, so the transfer"):
        sim_to_real(alone)
    learned = {t.task.id for t in read_trajectories(alone.path / "offline.jsonl")}
    assert learned == {t.id for t in RecordedSuite(logs).tasks("train")}


# ---------------------------------------------------------------- foreign worlds


class Mixer:
    "Free text: heat, then stir, in the order that the goal says."

    def reset(self, *, seed=None, options=None):
        self.left = ["heat", "stir"] if seed % 2 else ["stir", "heat"]
        return "A cold pot of soup.", {"goal": f"First {self.left[0]}, then {self.left[1]} the soup."}

    def step(self, action):
        if action not in ("heat", "stir"):
            raise InvalidAction("What?")
        if action != self.left.pop(0):
            return "(end)", 0, True, False, {}
        return ("The soup is ready.", 1, True, False, {}) if not self.left else (f"You {action} it.", 0, False, False, {})

    @staticmethod
    def play(task, state, past):
        return re.findall("heat|stir", task.goal)[len(past)]


class Tools:
    "JSON tool calls against a table of orders."

    def reset(self, *, seed=None, options=None):
        self.row = {"order": seed, "paid": bool(seed % 2)}
        return json.dumps({"tools": ["look", "answer"]}), {"goal": f"Has order {seed} been paid? Answer yes or no."}

    def step(self, action):
        call = json.loads(action)  # text that is no JSON is the world's failure, unless its grammar refuses it
        if call["tool"] == "answer":
            return "(end)", float(call["text"] == ("yes" if self.row["paid"] else "no")), True, False, {}
        return json.dumps({"rows": [self.row]}), 0.0, False, False, {}

    @staticmethod
    def play(task, state, past):
        if not past:
            return json.dumps({"tool": "look", "order": task.seed})
        return json.dumps({"tool": "answer", "text": "yes" if '"paid": true' in state else "no"})


class ToolGrammar(Grammar):
    "An action is a JSON object with a tool."

    def check_action(self, action, state):
        try:
            if not isinstance(json.loads(action)["tool"], str):
                raise ValueError("no tool")
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidAction(f"Not a tool call: {action[:40]!r}.") from error


class Browser:
    "An accessibility tree, and functions such as click('a12') and fill('b3', 'x')."

    def reset(self, *, seed=None, options=None):
        self.name, self.text = ["Ada", "Bo", "Cy"][seed % 3], ""
        return self.tree(), {"goal": f"Enter {self.name} and send it."}

    def tree(self):
        return f"RootWebArea 'Form'\n\t[b3] textbox 'Name', value='{self.text}'\n\t[a12] button 'Send'"

    def step(self, action):
        if found := re.fullmatch(r"fill\('b3', '(.*)'\)", action):
            self.text = found[1]
            return self.tree(), 0.0, False, False, {}
        if action != "click('a12')":
            raise InvalidAction(f"{action} names no element.")
        return "(end)", float(self.text == self.name), True, False, {}

    @staticmethod
    def play(task, state, past):
        return "click('a12')" if past else f"fill('b3', '{task.goal.split()[1]}')"


@pytest.mark.parametrize(("world", "grammar"), [(Mixer, None), (Tools, ToolGrammar()), (Browser, None)])
def test_a_foreign_world_is_played_recorded_and_dreamed(world, grammar, tmp_path):
    suite = OwnSuite(world, tasks=15, grammar=grammar, name="foreign", oracle=world.play)
    with suite.environment(4, 5) as batch:
        tasks = [task for name in ("train", "development", "test") for task in suite.tasks(name)]
        good = play_episodes(batch, tasks, lambda i, task, state, past: suite.oracle(task, state, past), "oracle")
        bad = play_episodes(batch, tasks, lambda i, task, state, past: "what now?")
    assert all(t.success for t in good) and not batch.failures
    assert not any(t.success for t in bad) and all(t.transitions[-1].invalid for t in bad)
    for step in annotated_steps(good, suite.grammar):
        assert suite.grammar.explain(step.query.task, step.transition)
        told = step.transition.model_copy(update={"reasoning": "Because."})
        answer = parse_answer("".join(render_answer(told, suite.grammar)), step.transition.state, suite.grammar)
        assert answer.valid and (answer.done, answer.reward) == (told.done, float(told.won))
        assert told.done or answer.state == told.next_state
    write_trajectories(tmp_path / "logs.jsonl", good + bad)
    recorded = RecordedSuite(tmp_path / "logs.jsonl")
    assert type(recorded.grammar) is Grammar and {t.goal for t in recorded.panel("train")} <= {t.task.goal for t in good}


@pytest.mark.parametrize(("world", "grammar"), [(Tools, ToolGrammar()), (Browser, None)])
def test_a_foreign_world_goes_through_every_stage(world, grammar, tiny_model_folder, tmp_path):
    "Tool calls and a browser's functions: logged, annotated, dreamed, trained on and measured, each in its own words."
    suite = OwnSuite(world, tasks=20, grammar=grammar, name="foreign", oracle=world.play, maximum_steps=3,
                     random_action=lambda task, state, random: world.play(task, state, ["one"] * int(random.integers(2))))
    run = run_method(suite, run=str(tmp_path / "run"), **TINY | {"random_actions": 1.0}, model=str(tiny_model_folder))
    table, offline = results_of(run), read_trajectories(run.path / "offline.jsonl")
    assert list(table.index) == ["warm_start", "imitation", "dream", "sim_to_real"] and not table["broken"].any()
    acted = [step.action for trajectory in offline for step in trajectory.transitions if not step.invalid]
    assert acted and all(suite.grammar.check_action(action, "") is None for action in acted)
    assert any(t.success for t in offline) and any(not t.success for t in offline)
    states = {step.state for trajectory in offline for step in trajectory.transitions}
    dreamed = [r for path in run.iterations() for r in read_trajectories(path / "rollouts.jsonl")]
    assert dreamed and not any(t.real for t in dreamed) and {t.transitions[0].state for t in dreamed} <= states | {
        task.start_state for task in start_tasks(run)}


# ---------------------------------------------------------------- a world that dies


class Mortal(Cafe):
    "Dies by chance, each time in another way."

    deaths, lives = set(), 0

    def reset(self, seed, options):
        self.lives += 1
        self.random = Random(100 * seed + self.lives)
        self.death = "hangs" if seed % 15 == 0 else ["raises", "exits", "types", "reward"][seed % 4]
        if self.random.random() < 0.1:
            raise ConnectionError("the server does not answer")
        return super().reset(seed, options)

    def step(self, action):
        if self.random.random() < 0.7:
            return super().step(action)
        self.deaths.add(self.death)
        if self.death == "raises":
            raise ConnectionError("the server is gone")
        if self.death == "exits":
            raise SystemExit(3)
        if self.death == "hangs":
            time.sleep(3)
        return (None, 0, False, False, {}) if self.death == "types" else ("(end)", 3, True, False, {})


def test_a_world_that_dies_at_random_is_counted_and_the_run_goes_on(tiny_model_folder, tmp_path):
    suite = OwnSuite(Mortal, tasks=40, name="mortal", oracle=waiter, random_action=anything, maximum_steps=3, time_limit=1.0)
    sizes = TINY | {"model": str(tiny_model_folder), "offline_seeds_per_kind": 16, "random_actions": 1.0, "test_per_kind": 8,
                    "iterations": 1, "log_episodes": 2}
    run = run_method(suite, run=str(tmp_path / "run"), **sizes)
    offline = read_trajectories(run.path / "offline.jsonl")
    assert Mortal.deaths == {"raises", "exits", "hangs", "types", "reward"}
    assert run.metrics()["offline"]["broken"] == sum(t.broken for t in offline if t.source == "log") > 2
    assert not any(t.broken and t.success for t in offline) and any(t.success for t in offline)
    table = results_of(run)
    assert len(table) == 4 and list(table["episodes"]) == [8] * 4 and all(table["broken"] >= 0)
    assert {name: row["broken"] for name, row in run.evaluations().items()} == table["broken"].to_dict()


def test_a_world_that_always_fails_is_told_at_once(tiny_model_folder, tmp_path):
    class Dead(Cafe):
        def step(self, action):
            raise ConnectionError("the server is gone")

    suite = OwnSuite(Dead, tasks=20, name="dead", oracle=waiter, maximum_steps=3)
    with pytest.raises(DreamgymError, match="failed in all of .* the server is gone"):
        run_method(suite, run=str(tmp_path / "run"), **TINY, model=str(tiny_model_folder))
