"Dream where it is true: types that the gate does not trust are never played, updates that lose are undone, every step counted."

import pytest
from test_any_world import TINY, WordEmbedder, cafe

import dreamgym.training_loop as module
from dreamgym import experience_model, replay_buffer
from dreamgym.environments import BatchEnvironment, BatchOf, make_task
from dreamgym.evaluation import measure_fidelity, trusted_kinds
from dreamgym.experience_model import Imagined
from dreamgym.experiments import (
    VARIANTS,
    curve_rows,
    fidelity_rows,
    open_experiment,
    real_steps,
    result_rows,
    run_variants,
    variant_run,
)
from dreamgym.language_model import Example, Sample
from dreamgym.pages import PageGrammar
from dreamgym.replay_buffer import ReplayBuffer
from dreamgym.runs import Run, Scale
from dreamgym.statistics import rate_difference, wilson
from dreamgym.training_loop import Course, LoopState, course_of, dream_training, has_fallen
from dreamgym.trajectories import END_STATE, DreamgymError, atomic_write_json, read_json, read_trajectories

KINDS, PAGE = ("folders", "tabs"), "[1] button 'a'\n[2] button 'b'"
DEVELOPMENT = [make_task(kind, n) for kind in KINDS for n in range(16)]
STARTS = [make_task(kind, 100 + n).model_copy(update={"goal": "Press a.", "start_state": PAGE})
          for kind in KINDS for n in range(16)]


class Page:
    "The first button is right, the second is wrong."

    maximum_steps = 3

    def reset(self, seed, options):
        return PAGE, {"goal": "Press a."}

    def step(self, action):
        return END_STATE, float(action == "click 1"), True, False, {}


class World(BatchEnvironment):
    "Real pages that count their steps; the power goes at the given start."

    starts, steps = 0, 0

    def __init__(self, at=None):
        self.inner, self.at, self.maximum_steps, self.real, self.failures = BatchOf(Page, real=True), at, 3, True, {}

    def reset_batch(self, tasks):
        World.starts += 1
        if World.starts == self.at:
            raise KeyboardInterrupt
        return self.inner.reset_batch(tasks)

    def step_batch(self, actions):
        World.steps += sum(action is not None for action in actions)
        return self.inner.step_batch(actions)


class Dream:
    "Judges as the world does, but in the lying types it calls everything a success."

    grammar, retrieve = PageGrammar(), None

    def __init__(self, lies=()):
        self.lies = lies

    def forget(self):
        pass

    def imagine(self, queries):
        return [Imagined("It ends.", END_STATE, float(q.action == "click 1" or q.task.kind in self.lies), True)
                for q in queries]


class Skilled:
    "An agent that solves the first tasks of each type, as many as its skill says; its skills are its adapter."

    grammar = PageGrammar()

    def __init__(self, **skills):
        self.skills, self.model = skills, self

    def prompt(self, task, state, history=()):
        return [KINDS.index(task.kind), task.seed % 100]

    def act(self, prompts, temperature=1.0, seed=0):
        return [(f"click {1 + (number >= self.skills[KINDS[kind]])}", Sample([7], [-0.5])) for kind, number in prompts]

    def save_adapter(self, folder):
        folder.mkdir(parents=True)
        atomic_write_json(folder / "skills.json", self.skills)

    def load_adapter(self, folder):
        self.skills = read_json(folder / "skills.json")


class Teacher:
    "Adds what is said to the skill of each type that was played."

    def __init__(self, agent, lessons):
        self.agent, self.lessons, self.anchors, self.updates = agent, lessons, [], 0

    def update(self, rollouts, seed=0, watch=None):
        self.updates += 1
        for kind in {r.trajectory.task.kind for r in rollouts}:
            self.agent.skills[kind] = min(16, max(0, self.agent.skills[kind] + self.lessons[kind]))
        self.anchors.append(list(getattr(self, "anchor", [])))
        return {"return": 0.5}

    def save(self, folder):
        atomic_write_json(folder / "learner.json", {"updates": self.updates})

    def load(self, folder):
        self.updates = read_json(folder / "learner.json")["updates"]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    "A function that trains in a dream with these lies, lessons and sizes; it returns the run, the adapter and the teacher."
    World.starts = World.steps = 0

    def train(name="run", lies=(), skills=(8, 8), lessons=(2, -8), at=None, **sizes):
        usual = {"iterations": 4, "tasks_per_iteration": 4, "group_size": 2, "synthetic_share": 0.0}
        scale = Scale.named("quick", **usual | sizes)
        run, dream, skills = Run.open(tmp_path / name, scale, 0), Dream(lies), dict(zip(KINDS, skills, strict=True))

        def first_gate(run):
            make = lambda path: atomic_write_json(path, measure_fidelity(  # noqa: E731
                Skilled(**skills), dream, World(), DEVELOPMENT).row())
            return read_json(run.build("gate.json", make))

        agent = Skilled(**skills)
        teacher = Teacher(agent, dict(zip(KINDS, lessons, strict=True)))
        state = LoopState(agent, teacher, None, known=[Example([kind, 0], [1]) for kind in range(2)])
        monkeypatch.setattr(module, "first_gate", first_gate)
        monkeypatch.setattr(module, "simulator_of", lambda run: (dream, ReplayBuffer(WordEmbedder(), 1, PageGrammar())))
        monkeypatch.setattr(module, "first_state", lambda run, buffer: setattr(state, "buffer", buffer) or state)
        monkeypatch.setattr(module, "start_tasks", lambda run: STARTS)
        monkeypatch.setattr(module, "development_tasks", lambda run: DEVELOPMENT)
        monkeypatch.setattr(module, "real_environment", lambda run, purpose: World(at))
        return run, dream_training(run), teacher

    return train


def played(folder) -> set[str]:
    return {t.task.kind for t in read_trajectories(folder / "rollouts.jsonl")}


# ---------------------------------------------------------------- rules


def test_the_difference_of_two_rates():
    assert rate_difference(wilson(48, 80), wilson(56, 70)) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)  # Newcombe, 1998
    for first, second in ((wilson(0, 5), wilson(5, 5)), (wilson(3, 9), wilson(2, 4))):
        difference, low, high = rate_difference(first, second)
        assert -1 <= low <= difference <= high <= 1
        assert rate_difference(second, first) == pytest.approx((-difference, -high, -low))


def test_few_tasks_need_a_large_difference():
    def trusted(*counts):
        return bool(trusted_kinds({"by_kind": {"a": counts}}))

    assert trusted(2, 3, 4) and trusted(2, 1, 4) and not trusted(1, 3, 4) and not trusted(4, 2, 4)
    assert trusted(8, 11, 16) and not trusted(8, 12, 16) and not trusted(8, 4, 16), "gloom counts like flattery"
    assert not trusted(0, 0, 0) and trusted_kinds({}) == (), "what the gate has not seen is not trusted"


def test_a_fall_must_be_more_than_chance():
    outcomes = lambda *solved: {str(n): float(n in solved) for n in range(12)}  # noqa: E731
    everything = outcomes(*range(12))
    assert not has_fallen(everything, outcomes(*range(8))) and has_fallen(everything, outcomes(*range(7))), "1/16 and 1/32"
    assert not has_fallen(outcomes(), everything) and not has_fallen(everything, everything) and not has_fallen({}, everything)
    assert not has_fallen({"a": 1.0, **everything}, {"b": 0.0, **everything}), "tasks of one side say nothing"


def test_the_course_of_several_gates():
    def gate(folders, tabs, dreamed=None):
        outcomes = {f"{kind}/{n}": float(n < k) for kind, k in (("folders", folders), ("tabs", tabs)) for n in range(16)}
        return {"outcomes": outcomes, "real": {"mean": (folders + tabs) / 32},
                "by_kind": {"folders": (folders, folders, 16), "tabs": (tabs, tabs if dreamed is None else dreamed, 16)}}

    scale = Scale.named("quick", trusted_types=True, gate_every=2, keep_best=True)
    both = ("folders", "tabs")
    assert course_of({0: gate(8, 8)}, scale) == Course(both, 0, 0)
    assert course_of({0: gate(8, 8), 2: gate(10, 8)}, scale) == Course(both, 2, 2)
    assert course_of({0: gate(8, 8), 2: gate(10, 8), 4: gate(10, 6)}, scale) == Course(both, 4, 2), "chance is no loss"
    slow = {0: gate(8, 8), 2: gate(10, 8), 4: gate(10, 5), 6: gate(10, 2, dreamed=9)}
    assert course_of(slow, scale) == Course(("folders",), 2, 2, (3, 4, 5, 6), ("tabs",)), "many small losses are one"
    again = slow | {8: gate(2, 8)}
    assert course_of(again, scale) == Course(("folders",), 2, 2, (3, 4, 5, 6, 7, 8), ("tabs",)), "two losses"
    better = slow | {8: gate(12, 8)}
    assert course_of(better, scale) == Course(("folders",), 8, 8, (3, 4, 5, 6), ("tabs",)), "what took part in a loss stays out"
    doubted = {0: gate(8, 8), 2: gate(10, 8, dreamed=16), 4: gate(10, 8)}
    assert [course_of({n: doubted[n] for n in range(0, last + 1, 2)}, scale).kinds for last in (0, 2, 4)] == [
        both, ("folders",), both], "without a loss each gate decides anew"
    plain = course_of(slow, Scale.named("quick"))
    assert plain == Course(None, 6, 2), "nothing is asked of the gates"


# ---------------------------------------------------------------- training


def test_a_type_in_which_the_dream_lies_is_never_played(trained):
    run, adapter, teacher = trained(lies=("tabs",), trusted_types=True, anchor_weight=0.3)
    assert len(run.iterations()) == 4 and {kind for path in run.iterations() for kind in played(path)} == {"folders"}
    assert read_json(adapter / "skills.json") == {"folders": 16, "tabs": 8}
    assert all([example.prompt[0] for example in anchor] == [0, 1] for anchor in teacher.anchors), "yet it is held in place"
    run, adapter, _ = trained("plain", lies=("tabs",))
    assert all(played(path) == set(KINDS) for path in run.iterations()), "the plain method plays it"
    assert read_json(adapter / "skills.json")["tabs"] == 0
    assert sorted(path.name for path in (run.path / "iterations").iterdir()) == ["0001", "0002", "0003", "0004"]


def test_invented_tasks_of_a_type_without_trust_are_left_out(trained, monkeypatch):
    run, _, _ = trained(lies=("tabs",), trusted_types=True, iterations=1)
    guard = module.Guard(run, LoopState(None, None, None), None)
    invented = [task.model_copy(update={"id": f"{task.id}~1", "synthetic": True}) for task in STARTS]
    assert {task.kind for task in guard.allowed(invented)} == {"folders"}


def test_an_update_that_loses_is_undone(trained):
    run, adapter, teacher = trained(lies=("tabs",), lessons=(0, -8), iterations=3, gate_every=1, keep_best=True)
    kept = read_json(run.path / "iterations" / "kept.json")
    assert kept == {"kinds": None, "kept": 0, "best": 0, "undone": [1, 2, 3], "barred": [], "iterations": 3}
    assert adapter == run.path / "iterations" / "start" / "agent" and read_json(adapter / "skills.json")["tabs"] == 8
    assert [read_json(path / "agent" / "skills.json")["tabs"] for path in run.iterations()] == [0, 0, 0], "they stay readable"
    updates = [read_json(path / "learner.json")["updates"] for path in run.iterations()]
    assert updates == [1, 1, 1], "the optimiser goes back, too"


def test_trust_ends_a_loss(trained):
    "The lie shows only when the agent has followed it: one gate undoes the update and takes the type out."
    run, adapter, _ = trained(lies=("tabs",), skills=(8, 15), lessons=(2, -8), gate_every=2, trusted_types=True, keep_best=True)
    assert [played(path) for path in run.iterations()] == [set(KINDS)] * 2 + [{"folders"}] * 2
    kept = read_json(run.path / "iterations" / "kept.json")
    assert (kept["kept"], kept["undone"]) == (4, [1, 2]) and adapter.parent.name == "0004"
    assert read_json(adapter / "skills.json") == {"folders": 12, "tabs": 15}
    assert read_json(run.path / "iterations" / "0002" / "gate.json")["by_kind"]["tabs"] == [0, 16, 16]


def test_real_steps_of_all_gates_are_counted_and_told(trained, tmp_path):
    run, _, _ = trained(lies=("tabs",), skills=(8, 15), lessons=(2, -12), gate_every=1, trusted_types=True, keep_best=True)
    during = sorted((run.path / "iterations").glob("*/gate.json"))
    gates = [read_json(path) for path in [run.path / "gate.json", *during]]
    assert len(gates) == 5 and World.steps == sum(gate["transitions"] for gate in gates) == 5 * 32
    assert real_steps(run, VARIANTS["dream_trusted"])["gate"] == World.steps
    rows = {row["when"]: row for row in fidelity_rows(run)}
    assert list(rows) == ["before", "iteration 0001", "iteration 0002", "iteration 0003", "iteration 0004"]
    assert rows["iteration 0001"]["real_successes"] == gates[1]["real"]["successes"]
    assert [row["undone"] for row in curve_rows(run)] == [1, 0, 0, 0], "an iteration that was undone stays in the curves"
    plain, _, _ = trained("plain")
    assert [row["undone"] for row in curve_rows(plain)] == [""] * 4
    assert real_steps(plain, VARIANTS["dream"])["gate"] == 32


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_kill_in_a_gate_changes_no_number(trained, at):
    sizes = dict(lies=("tabs",), skills=(8, 15), lessons=(2, -12), gate_every=1, iterations=3,
                 trusted_types=True, keep_best=True)
    whole, adapter, _ = trained("whole", **sizes)
    World.starts = 0
    with pytest.raises(KeyboardInterrupt):
        trained("cut", at=at, **sizes)
    cut = Run.open(whole.path.with_name("cut"), whole.scale, 0)
    assert len(cut.iterations()) == at - 1 and not (cut.iterations()[-1] / "gate.json").exists(), "between iteration and gate"
    World.starts = 0
    _, again, teacher = trained("cut", **sizes)
    assert World.starts == 3 - (at - 2), "gates that are there are not repeated"
    clocks = ("stages.jsonl", "progress.json")
    files = [path.relative_to(whole.path) for path in whole.path.rglob("*.json*") if path.name not in clocks]
    assert len(files) > 20 and again.relative_to(cut.path) == adapter.relative_to(whole.path)
    for file in files:
        assert (cut.path / file).read_bytes() == (whole.path / file).read_bytes(), file
    stages = cut.stages()
    assert dream_training(cut) == again and cut.stages() == stages, "nothing is built again"


def test_where_nothing_is_trusted_nothing_is_trained(trained):
    with pytest.warns(UserWarning, match="In no task type .* ended after 0 of 4 iterations"):
        run, adapter, teacher = trained(lies=KINDS, skills=(8, 4), trusted_types=True, gate_every=2, keep_best=True)
    assert run.iterations() == [] and teacher.updates == 0
    assert read_json(adapter / "skills.json") == {"folders": 8, "tabs": 4} and World.steps == 32
    with pytest.warns(UserWarning, match="In no task type"):
        assert dream_training(run) == adapter, "told again with every use"


def test_sizes_that_cannot_be_are_told(trained):
    with pytest.raises(DreamgymError, match="keep_best needs gates that tell"):
        trained(keep_best=True)
    run, _, _ = trained("old")
    row = read_json(run.path / "gate.json")
    row.pop("outcomes")
    atomic_write_json(run.path / "gate.json", row)
    view = run.variant("v", ["iterations"], gate_every=1, keep_best=True)
    with pytest.raises(DreamgymError, match="delete a gate.json of an older version"):
        dream_training(view)


# ---------------------------------------------------------------- the whole method


def test_the_variant_goes_through_a_real_world_and_a_kill(tiny_model_folder, tmp_path, monkeypatch):
    "With a real learner: killed in the second gate, it ends with the numbers of an unbroken run."
    for patched in (experience_model, replay_buffer):
        monkeypatch.setattr(patched, "Embedder", WordEmbedder)
    name, measured = "dream_trusted+trusted_types=false+gate_every=1", module.measure_fidelity
    sizes = TINY | {"log_episodes": 3, "model": str(tiny_model_folder)}
    opened = [open_experiment(cafe, run=str(tmp_path / part), **sizes) for part in ("whole", "cut")]
    run_variants(opened[0], [name])
    calls = []

    def cut_off(*rest):
        calls.append(rest)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measured(*rest)

    monkeypatch.setattr(module, "measure_fidelity", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run_variants(opened[1], [name])
    monkeypatch.setattr(module, "measure_fidelity", measured)
    run_variants(opened[1], [name])
    views = [variant_run(run, name) for run in opened]
    for file in ("gate.json", "iterations/0001/gate.json", "iterations/0002/gate.json", "iterations/0002/metrics.json",
                 "iterations/kept.json", "gate_after.json"):
        assert views[0].place(file).read_bytes() == views[1].place(file).read_bytes(), file
    clocks = ("minutes", "peak_megabytes", "commit")
    drop = lambda row: {key: value for key, value in row.items() if key not in clocks}  # noqa: E731
    rows = [next(row for row in result_rows(run) if row["variant"] == name) for run in opened]
    assert drop(rows[0]) == drop(rows[1])
    names = ("gate.json", "iterations/0001/gate.json", "iterations/0002/gate.json", "gate_after.json")
    assert rows[0]["steps_gate"] == sum(read_json(views[0].place(file))["transitions"] for file in names)
