"Text worlds: rooms in five lines, a grammar by rules, games by seed in a cache, panels that an oracle solves."

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from book_examples import run_without
from hypothesis import given
from hypothesis import strategies as st

from dreamgym.environments import InvalidAction, StateError, play_episodes
from dreamgym.runs import Run, Scale, load_suite
from dreamgym.suites import text_worlds
from dreamgym.suites.text_worlds import (
    FAMILIES,
    AlfWorlds,
    Scene,
    TextGrammar,
    TextWorldGame,
    TextWorlds,
    asked,
    game_of,
    make_game,
    named,
    offered,
    read_scene,
    understood,
    wanted,
    write_scene,
)
from dreamgym.trajectories import END_STATE, FAILURE_STATE, DreamgymError, Task, Transition

GRAMMAR = TextGrammar()
KITCHEN = Scene("kitchen", {}, {"cookbook": "chopped fried carrot", "fridge": "apple", "stove": "", "table": "knife"},
                ("chopped carrot",))
WAY = Scene("hall", {"north": "attic", "west": "porch"}, {"box": "closed", "ring": ""}, (), ("go north", "go west"))
GOAL = "Chop the carrot, fry it, then prepare the meal and eat it."
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="session")
def games_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("games")


@pytest.fixture
def suite(games_folder, monkeypatch):
    "The suite with a cache of its own, where TextWorld is installed."
    pytest.importorskip("textworld")
    monkeypatch.setenv("DREAMGYM_CACHE", str(games_folder))
    return TextWorlds()


def tasks_of(suite, family, count):
    "Tasks of the test panel and of the held-out one."
    return suite.tasks("test", [family], count) + suite.tasks("held_out", [f"{family}-3"], count)


def by_oracle(suite, tasks, steps=8):
    with suite.environment(16, steps) as games:
        return play_episodes(games, tasks, lambda i, task, state, past: suite.oracle(task, state, past), "oracle")


def by_chance(suite, tasks, seed=0, steps=8):
    random = np.random.default_rng(seed)
    with suite.environment(16, steps) as games:
        played = play_episodes(games, tasks, lambda i, task, state, past: suite.random_action(task, state, random))
        assert not games.failures
    return played


# ---------------------------------------------------------------- states


WORDS = st.text("abcdefgh", min_size=1, max_size=5)
NAMES = st.lists(WORDS, min_size=1, max_size=3).map(" ".join).filter(lambda name: name != "nothing")
INSIDE = st.just("") | st.just("closed") | st.lists(NAMES, min_size=1, max_size=3).map(", ".join)
SCENES = st.builds(Scene, WORDS, st.dictionaries(st.sampled_from(["north", "south", "east", "west"]), NAMES),
                   st.dictionaries(NAMES, INSIDE, max_size=4), st.lists(NAMES, max_size=3, unique=True).map(tuple),
                   st.none() | st.lists(NAMES, min_size=1, max_size=4).map(tuple))


@given(SCENES)
def test_whatever_a_scene_holds_survives(scene):
    assert read_scene(write_scene(scene)) == scene


@given(SCENES, SCENES)
def test_a_change_leads_from_one_scene_to_another(before, after):
    before, after = write_scene(before), write_scene(after)
    assert GRAMMAR.apply(before, GRAMMAR.change(before, after)) == after


@pytest.mark.parametrize(("change", "after"), [
    ("same", WAY), ("now\nCarried: ring\ngone ring", WAY._replace(here={"box": "closed"}, carried=("ring",))),
    ("now\nbox (hat, lamp)", WAY._replace(here={"box": "hat, lamp", "ring": ""})),
    ("room\nRoom: attic\nExits: south (hall)\nHere: nothing", Scene("attic", {"south": "hall"}, {}, ())),
    ("room\nRoom: attic\nExits: nothing\nHere: hat\nCarried: ring", Scene("attic", {}, {"hat": ""}, ("ring",)))])
def test_a_change_names_what_is_no_longer_what_it_was(change, after):
    before = WAY._replace(commands=offered(WAY))
    after = write_scene(after._replace(commands=offered(after)))
    assert GRAMMAR.apply(write_scene(before), change) == after
    assert len(GRAMMAR.change(write_scene(before), after)) <= len(change)


@pytest.mark.parametrize("change", [
    "", "now", "room", "now\n", "now\ngone hat", "now\nring (", "now\nring, hat", "now\nCarried: ring, ring",
    "room\nattic",
    "room\nRoom: attic\nExits: up (hall)\nHere: nothing", "room\nRoom: attic\nHere: nothing", "now\nbox (closed)\nx\ty",
    "room\nRoom: a\nExits: nothing\nHere: nothing\nCarried: nothing\nCan: win", "then\nring"])
def test_what_is_no_change_is_refused(change):
    with pytest.raises(StateError):
        GRAMMAR.apply(write_scene(WAY), change)


@given(SCENES, st.text(max_size=80))
def test_any_text_leads_to_a_scene_or_a_state_error(scene, text):
    for change in (text, f"now\n{text}", f"room\n{text}"):
        try:
            GRAMMAR.check_state(GRAMMAR.apply(write_scene(scene), change))
        except StateError:
            pass


@pytest.mark.parametrize("damage", [
    lambda s: s + "\n", lambda s: "",
    lambda s: s.replace("Here: ", "There: "), lambda s: s.replace("(knife)", "(knife"),
    lambda s: s.replace("Exits: nothing", "Exits: up (attic)"), lambda s: s.replace("Exits: nothing", "Exits: north"),
    lambda s: s.replace("stove", "fridge (empty)"), lambda s: s.replace("chopped carrot", "carrot (closed)"),
    lambda s: s.replace("stove", "<script>"), lambda s: s.replace("\nCarried: chopped carrot", "")])
def test_what_is_no_room_is_refused(damage):
    GRAMMAR.check_state(write_scene(KITCHEN))
    with pytest.raises(StateError):
        GRAMMAR.check_state(damage(write_scene(KITCHEN)))


@given(st.text(max_size=200))
def test_any_text_is_a_scene_or_a_state_error(text):
    try:
        assert write_scene(read_scene(text)) == text
    except StateError:
        pass


# ---------------------------------------------------------------- actions


COMMANDS = ("go north", "take ring from box", "cook carrot with oven", "cook carrot with stove")


@pytest.mark.parametrize(("said", "meant"), [
    ("go north", "go north"), ("Go  North.", "go north"), ("take the ring from a box", "take ring from box"),
    ("take ring", "take ring from box"), (" cook carrot with the stove\t", "cook carrot with stove")])
def test_small_words_and_capitals_do_not_count(said, meant):
    assert understood(said, COMMANDS) == meant


@pytest.mark.parametrize("said", ["", " ", "the", "go south", "cook carrot", "take ring from boxes", "take rin"])
def test_what_is_unknown_or_unclear_is_invalid(said):
    with pytest.raises(InvalidAction):
        understood(said, COMMANDS)


@pytest.mark.parametrize("action", ["", "go\nnorth", "go \x1b", "click 3", "x" * 200, "go north; go south", "<b>go"])
def test_an_action_is_one_short_line_of_letters(action):
    with pytest.raises(InvalidAction):
        GRAMMAR.check_action(action, write_scene(KITCHEN))


def test_a_state_that_lists_its_commands_takes_no_others():
    silent, listing = KITCHEN, KITCHEN._replace(commands=("eat carrot",))
    GRAMMAR.check_action("Eat the carrot.", write_scene(listing))
    GRAMMAR.check_action("sing a song", write_scene(silent))  # the game will say
    with pytest.raises(InvalidAction):
        GRAMMAR.check_action("sing a song", write_scene(listing))
    assert GRAMMAR.describe("Eat the carrot.", write_scene(listing)) == "eat carrot"
    assert GRAMMAR.describe("Sing\n a song", FAILURE_STATE) == "sing a song"


# ---------------------------------------------------------------- traces


@pytest.mark.parametrize(("action", "says"), [
    ("take apple from fridge", "apple, no"), ("chop carrot with knife", "chop carrot, yes"),
    ("slice carrot with knife", "slice carrot, no"), ("cook carrot with stove", "fry carrot, yes"),
    ("cook carrot with oven", "roast carrot, no"), ("prepare meal", "meal of chopped carrot, no"),
    ("eat meal", "meal, yes"), ("eat carrot", "carrot, no"), ("go up", ""), ("open fridge", "")])
def test_what_an_action_takes_is_compared_with_the_goal(action, says):
    assert wanted(GOAL, write_scene(KITCHEN), action) == says


def test_a_meal_is_wanted_when_all_is_done_with_it():
    done = write_scene(KITCHEN._replace(carried=("chopped fried carrot",)))
    assert wanted(GOAL, done, "prepare meal") == "meal of chopped fried carrot, yes"
    assert wanted(GOAL, done, "cook carrot with stove") == "fry carrot, no"  # it would burn
    assert named(GOAL, "carrot") and not named(GOAL, "car") and not named("Find the carrots.", "carrot")


def test_a_room_is_wanted_for_what_the_goal_names_in_front_of_it():
    hall = write_scene(Scene("hall", {"north": "cellar", "east": "study", "west": "attic"}, {}, (), None))
    goal = "Find the coin in the drawer in the study behind the cellar and take nothing else."
    assert asked(goal) == "coin, drawer, study, cellar"
    assert [wanted(goal, hall, f"go {way}") for way in ("north", "east", "west")] == [
        "cellar, yes, for study", "study, yes, for drawer", "attic, no"]
    claim = f"Carried: nothing. It does: go east. Goal: {asked(goal)}. Wanted: study, yes, for drawer. This ends the task well."
    assert "ends nothing" in GRAMMAR.doubt(claim, Task(id="treasure-2/0", kind="treasure", goal=goal), hall)
    assert asked(GOAL).split(", ")[-1] == "eat" and asked("Find the.") == "nothing"


RING = write_scene(Scene("attic", {}, {"ring": "", "hat": ""}, (), ("take hat", "take ring")))
RING_GOAL = "Find the ring in the attic and take nothing else."
CLAIM = "Carried: nothing. It does: take ring. Goal: ring, attic. Wanted: ring, yes. This ends the task well."


@pytest.mark.parametrize(("change", "doubt"), [
    (("", ""), ""), (("nothing", "lamp"), "carried"), (("take ring", "take sun"), "offer"),
    (("Wanted: ring", "Wanted: hat"), "comparison"), (("ring, yes", "ring, no"), "comparison"),
    ((" Goal: ring, attic. Wanted: ring, yes.", ""), "comparison"), (("ring, attic", "hat, attic"), "asks for"),
    (("Carried", "I carry"), ""), (("well", "badly"), "")])
def test_a_success_that_contradicts_state_or_goal_is_doubted(change, doubt):
    task = Task(id="treasure-1/0", kind="treasure", goal=RING_GOAL)
    found = GRAMMAR.doubt(CLAIM.replace(*change), task, RING)
    assert doubt in found and bool(found) == bool(doubt)


def test_a_trace_names_the_command_that_is_meant_whether_the_state_lists_it_or_not():
    task = Task(id="treasure-1/0", kind="treasure", goal=RING_GOAL)
    for state in (RING, RING.partition("\nCan:")[0]):
        step = Transition(state=state, action="Take the ring.", next_state=END_STATE, reward=1.0, done=True)
        assert GRAMMAR.explain(task, step) == CLAIM and GRAMMAR.doubt(CLAIM, task, state) == ""
        odd = step.model_copy(update={"action": "sing\n a song", "next_state": FAILURE_STATE, "reward": 0.0})
        assert "\n" not in GRAMMAR.explain(task, odd) and "sing a song" in GRAMMAR.explain(task, odd)


def test_the_comparison_belongs_to_the_judgement():
    assert CLAIM[GRAMMAR.judgement(CLAIM):] == " Wanted: ring, yes. This ends the task well."
    walk = "Carried: nothing. It does: open box. Now box holds coin. It goes on."
    assert GRAMMAR.judgement(walk) == len(walk)


def test_an_invented_task_is_of_its_parents_family_and_offers_what_its_things_allow():
    parent = Task(id="treasure-1/0", kind="treasure", goal=RING_GOAL, start_state=RING)
    longer = "Find the hat in the box in the attic behind the hall and take nothing else."
    other = parent.model_copy(update={"goal": longer})
    assert GRAMMAR.variation_problem(other, parent) == ""
    assert list(GRAMMAR.trials(other, 1)) == ["take hat"]
    coin = other.model_copy(update={"goal": "Find the coin in the attic and take it."})
    assert "goal" in GRAMMAR.variation_problem(coin, parent)
    flying = other.model_copy(update={"start_state": RING.replace("take ring", "take sun")})
    assert "offers" in GRAMMAR.variation_problem(flying, parent)
    kitchen = write_scene(KITCHEN._replace(commands=offered(KITCHEN)))
    cook, onion = (Task(id="c", kind="c", goal=g, start_state=kitchen) for g in (GOAL, GOAL.replace("carrot", "onion")))
    assert GRAMMAR.variation_problem(cook, cook) == "" and "cookbook" in GRAMMAR.variation_problem(onion, cook)
    silent = other.model_copy(update={"start_state": RING.partition("\nCan:")[0]})
    assert "form" in GRAMMAR.variation_problem(silent, parent)


# ---------------------------------------------------------------- games


@each_family
def test_the_same_seed_makes_the_same_game(suite, family):
    def text(seed):
        game = make_game(family, 2, seed)
        return json.dumps([game.objective, game.metadata, sorted(map(str, game.world.facts))])

    assert text(3) == text(3) and len({text(seed) for seed in range(4)}) > 1


def test_another_process_makes_the_same_game(suite, tmp_path):
    program = ("import sys; from dreamgym.suites.text_worlds import TextWorlds, TextWorldGame\n"
               "for task in [t for n in ('train', 'held_out') for t in TextWorlds().tasks(n, per_kind=2)]:\n"
               "    print(TextWorldGame().reset(options={'task': task}))")
    texts = {subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                            env={**os.environ, "PYTHONHASHSEED": seed,
                                 "DREAMGYM_CACHE": str(tmp_path / seed)}).stdout for seed in ("1", "2")}
    assert len(texts) == 1 and len(texts.pop().splitlines()) == 12


@each_family
def test_the_oracle_solves_the_panels(suite, family):
    tasks = tasks_of(suite, family, 20)
    played = by_oracle(suite, tasks)
    assert [t.task.id for t in played if not t.success] == []
    assert all(len(t) <= suite.maximum_steps for t in played)
    assert all(0 < len(s.action.split()) <= 5 and len(s.state) < 400 for t in played for s in t.transitions)


@each_family
def test_the_grammar_knows_what_textworld_does(suite, family):
    "On every state of random play: the same commands, no doubt of a success, a doubt of every failure dressed as one."
    tasks = tasks_of(suite, family, 8)
    ends = set()
    for episode in by_oracle(suite, tasks) + by_chance(suite, 2 * tasks):
        for step in episode.transitions:
            scene, trace = read_scene(step.state), GRAMMAR.explain(episode.task, step)
            assert write_scene(scene) == step.state and "\n" not in trace and not step.invalid
            assert offered(scene) == scene.commands
            if not step.done:
                told = GRAMMAR.change(step.state, step.next_state)
                assert GRAMMAR.apply(step.state, told) == step.next_state
                assert told.split("\n")[0] in ("same", "room", "now") and "Can:" not in told
                continue
            ends.add(step.won)
            claim = trace.replace("This ends the task badly.", "This ends the task well.")
            assert bool(GRAMMAR.doubt(claim, episode.task, step.state)) == (not step.won), trace
    assert ends == ({True} if family == "collecting" else {True, False})


def test_what_the_game_does_not_understand_ends_the_episode(suite):
    task = suite.tasks("train", per_kind=1)[0]
    for admissible in (True, False):
        suite.admissible = admissible
        with suite.environment(1, 8) as games:
            started = games.reset_batch([task])
            assert (read_scene(started[0].start_state).commands is not None) == admissible
            assert games.step_batch(["dance wildly"])[0][:3] == (FAILURE_STATE, 0.0, True)


def test_the_list_of_commands_can_be_switched_off(suite):
    suite.admissible = False
    tasks = suite.tasks("train", per_kind=3)
    assert all(t.success for t in by_oracle(suite, tasks))
    for episode in by_chance(suite, 2 * tasks):
        assert all("Can:" not in s.state and not s.invalid for s in episode.transitions)


def test_random_play_is_a_function_of_its_generator(suite):
    tasks = suite.tasks("train", per_kind=2)
    first, again, other = (by_chance(suite, tasks, seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("family", ["collecting", "treasure"])
def test_signs_and_goal_tell_the_way(suite, family):
    for episode in by_oracle(suite, tasks_of(suite, family, 6)):
        for step in episode.transitions:
            scene, way = read_scene(step.state), step.action.removeprefix("go ")
            if step.action != way:
                room = scene.exits[way]
                assert room == read_scene(step.next_state).room and named(episode.task.goal, room)


def test_an_oracle_that_was_left_says_nothing(suite):
    task = suite.tasks("train", per_kind=1)[0]
    first = suite.oracle(task, "", [])
    assert first and suite.oracle(task, "", ["look"]) is None and suite.oracle(task, "", [first] * 20) is None


@pytest.mark.parametrize("name", ["collecting/1", "collecting-4/1", "chess-1/1", "collecting-1/x", "../../x-1/1"])
def test_only_tasks_of_the_panels_are_games(suite, name):
    with pytest.raises(DreamgymError, match="no game of TextWorld"):
        game_of(Task(id=name, kind="collecting"))


def test_an_ended_game_takes_no_action(suite):
    game = TextWorldGame()
    with pytest.raises(DreamgymError, match="reset first"):
        game.step("go north")


# ---------------------------------------------------------------- panels and cache


def test_panels_are_disjoint_and_hashed():
    suite = TextWorlds()
    panels = {name: suite.tasks(name) for name in ("train", "development", "test", "held_out")}
    seeds = {name: {task.seed for task in tasks} for name, tasks in panels.items()}
    assert sum(map(len, seeds.values())) == len(set.union(*seeds.values()))
    levels = {name: {task.id.split("/")[0][-1] for task in tasks} for name, tasks in panels.items()}
    assert levels["held_out"] == {"3"} and all(levels[name] == {"1", "2"} for name in ("train", "development", "test"))
    kinds = {name: {task.kind for task in tasks} for name, tasks in panels.items()}
    assert kinds.pop("held_out") == {f"{family}-3" for family in FAMILIES}  # evaluation tells them apart by type
    assert all(found == set(FAMILIES) for found in kinds.values())
    assert suite.panel_hash() == "9dcbd6e4d9677076db497419775742605da6317628b2714375fdf0c7cef5b090"


def test_a_game_is_kept_whole_and_a_damaged_one_is_made_anew(suite, tmp_path, monkeypatch):
    monkeypatch.setenv("DREAMGYM_CACHE", str(tmp_path))
    task = suite.tasks("train", per_kind=1)[0]
    before = [str(fact) for fact in game_of(task).world.facts]
    (path,) = (tmp_path / "textworld").rglob("*.json")
    whole, made = path.read_bytes(), []
    monkeypatch.setattr(text_worlds, "make_game", lambda *a: made.append(a) or make_game(*a))
    game_of(task)
    assert made == [] and [p.name for p in path.parent.iterdir()] == [path.name]
    for damage in (b"", whole[:-9], whole.replace(b"coin", b"gold"), b"\xff" + whole, b"{}"):
        path.write_bytes(damage)
        assert [str(fact) for fact in game_of(task).world.facts] == before and path.read_bytes() == whole
    assert len(made) == 5


def test_processes_share_a_cache(suite, tmp_path):
    program = ("from dreamgym.suites.text_worlds import TextWorlds, game_of\n"
               "print([game_of(task).objective for task in TextWorlds().tasks('train', per_kind=3)])")
    environment = {**os.environ, "DREAMGYM_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", program]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[0] for process in started]
    assert said[0] == said[1] != b"" and [process.returncode for process in started] == [0, 0]
    files = [path.name for path in (tmp_path / "textworld").rglob("*") if path.is_file()]
    assert len(files) == 9 and all(name.endswith(".json") for name in files)


def test_a_write_that_fails_leaves_no_half_game(suite, tmp_path, monkeypatch):
    monkeypatch.setenv("DREAMGYM_CACHE", str(tmp_path))
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        game_of(suite.tasks("train", per_kind=1)[0])
    assert [path for path in (tmp_path / "textworld").rglob("*.json") if not path.name.startswith(".")] == []


def test_what_is_missing_is_told_with_its_cure(monkeypatch, tmp_path):
    monkeypatch.setattr(text_worlds, "find_spec", lambda name: None)
    monkeypatch.delenv("DREAMGYM_ALFWORLD", raising=False)
    assert TextWorlds().missing() == ['textworld is not installed; type: pip install "textworld>=1.7,<1.8"']
    assert len(AlfWorlds().missing()) == 3 and "alfworld-download" in AlfWorlds().missing()[-1]


# ---------------------------------------------------------------- ALFWorld


class Answer(dict):
    feedback = ""


class Kitchen:
    "A game of ALFWorld that is won by putting the apple away."

    def answer(self, feedback, won=False):
        answer = Answer(admissible_commands=["look", "put apple 1 in fridge 1"], won=won)
        answer.feedback = feedback
        return answer

    def reset(self):
        task = "Your task is to: put an apple in fridge."
        return self.answer(f"-= Welcome to TextWorld, ALFRED! =-\n\nYou see a fridge 1.\n\n{task}")

    def step(self, command):
        won = command.startswith("put")
        return self.answer("You put it." if won else "You see\na fridge 1.", won), float(won), won


@pytest.fixture
def alfworld(tmp_path, monkeypatch):
    walk = {"solvable": True, "walkthrough": ["look", "put apple 1 in fridge 1"]}
    for split, count in (("train", 20), ("valid_seen", 2), ("valid_unseen", 1)):
        for i in range(count):
            folder = tmp_path / "json_2.1.1" / split / f"pick_and_place_simple-Apple-{i}" / "trial_1"
            folder.mkdir(parents=True)
            (folder / "game.tw-pddl").write_text(json.dumps(walk | {"solvable": i != 0 or split != "train"}))
    monkeypatch.setenv("DREAMGYM_ALFWORLD", str(tmp_path))
    monkeypatch.setattr(text_worlds, "_alf_start", lambda path: Kitchen() if path.exists() else None)
    return AlfWorlds()


def test_alfworld_has_its_panels_and_its_goal(alfworld):
    panels = {name: {task.id for task in alfworld.tasks(name)} for name in ("train", "development", "test", "held_out")}
    assert [len(panel) for panel in panels.values()] == [18, 1, 2, 1] and len(set.union(*panels.values())) == 22
    (task,) = alfworld.tasks("held_out")
    assert task.kind == "pick_and_place_simple"
    (episode,) = by_oracle(alfworld, [task])
    assert episode.success and episode.task.goal == "put an apple in fridge."
    first, commands = episode.task.start_state, {"look", "put apple 1 in fridge 1"}
    assert first == "You see a fridge 1.\nCan: look; put apple 1 in fridge 1"
    assert [step.next_state for step in episode.transitions] == [first, END_STATE]
    assert {step.action for t in by_chance(alfworld, [task] * 8) for step in t.transitions} == commands
    with alfworld.environment(1, 30) as games:
        games.reset_batch([task])
        assert games.step_batch(["sing"])[0][0] == FAILURE_STATE


# ---------------------------------------------------------------- the method


def test_the_whole_method_runs_in_a_text_world(suite, tmp_path, tiny_model_folder, monkeypatch):
    from dreamgym.experiments import PLAIN, result_rows, run_variants

    little = dict(model=str(tiny_model_folder), lora_rank=4, offline_seeds_per_kind=4, start_seeds_per_kind=4,
                  log_episodes=2, warm_start_epochs=1, experience_token_budget=6000, judgement_examples=4,
                  variation_examples=2, iterations=1, tasks_per_iteration=3, group_size=2, test_per_kind=2,
                  development_per_kind=2, transfer_share=20.0, transfer_group_size=2)
    monkeypatch.setattr(TextWorlds, "answer_tokens", 24)  # this model knows no end
    name = "dreamgym.suites.text_worlds:TextWorlds"
    run = Run.open(tmp_path / "run", Scale.named("quick", **load_suite(name).sizes("quick") | little), 0, name)
    assert run_variants(run, PLAIN) == ["warm_start", "imitation", "dream", "sim_to_real"]
    rows = run.evaluations()
    assert {(row[part]["overall"]["episodes"], part) for row in rows.values() for part in ("own", "held_out")} == {
        (6, "own"), (6, "held_out")}
    assert len(result_rows(run)) == 4


def test_the_chapter_passes_without_textworld(tmp_path):
    "Its cells in order, in a Python that finds no TextWorld."
    run_without("31_text_worlds", {"textworld"}, tmp_path)
