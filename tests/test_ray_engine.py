"The engine ray: what its queue does without Ray, and two nodes on this machine, one of which dies in the middle."

import os
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from test_any_world import TINY, cafe

from dreamgym import command_line, experiments
from dreamgym.command_line import run_command
from dreamgym.experiments import Cell, open_experiment, result_rows, run_cell, run_cells, run_variants
from dreamgym.runs import Run
from dreamgym.sim_to_real import read_rows
from dreamgym.trajectories import DreamgymError

CELLS = [Cell("a", 0, "imitation"), Cell("a", 0, "dream"), Cell("b", 1, "imitation")]
NODES = [{"NodeID": name, "Alive": name != "dead", "Resources": {"CPU": 4.0, "GPU": 1.0} if name != "empty" else {}}
         for name in ("one", "two", "dead", "empty")]


# ---------------------------------------------------------------- without Ray


class RayError(Exception):
    "As Ray's own."


class FakeRay:
    "A cluster by rules: what each cell does when it is started for the nth time."

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, rule, nodes=NODES):
        self.rule, self.alive, self.begun, self.open, self.most = rule, nodes, [], {}, Counter()

    def start(self, ray, cell, node, cores, variables, output, panel):
        assert not any(other.run == cell.run for other, _ in self.open.values()), "two cells of a run at once"
        self.begun.append((cell, node["NodeID"]))
        task = object()
        self.open[task] = (cell, node["NodeID"])
        for name, count in Counter(name for _, name in self.open.values()).items():
            self.most[name] = max(self.most[name], count)
        return task

    def nodes(self):
        return self.alive

    def wait(self, tasks, timeout):
        assert set(tasks) == set(self.open)
        return tasks[:1], tasks[1:]

    def get(self, task):
        cell, _ = self.open.pop(task)
        found = self.rule(cell, sum(other == cell for other, _ in self.begun))
        if isinstance(found, Exception):
            raise found
        return found

    def shutdown(self):
        self.open = None


@pytest.fixture
def fake(monkeypatch):
    def make(rule, nodes=NODES):
        ray = FakeRay(rule, nodes)
        monkeypatch.setattr(experiments, "_connected", lambda address: ray)
        monkeypatch.setattr(experiments, "_start", ray.start)
        return ray

    return make


def test_cells_of_a_run_follow_each_other_and_runs_go_side_by_side(fake):
    ray, told = fake(lambda cell, times: ""), []
    assert run_cells(CELLS, "rows", tell=told.append) == dict.fromkeys(CELLS, "")
    assert [cell for cell, _ in ray.begun] == [CELLS[0], CELLS[2], CELLS[1]]
    assert {name for _, name in ray.begun} <= {"one", "two"} and set(ray.most.values()) == {1} and ray.open is None
    assert sorted(line for line in told if line.endswith("done")) == sorted(f"{cell}: done" for cell in CELLS)
    packed = fake(lambda cell, times: "", NODES[:1])
    many = [Cell(name, 0, "dream") for name in "abcdef"]
    run_cells(many, "rows", cores=2, tell=told.append)
    assert packed.most == {"one": 2}, "two cores of four each"


def test_what_dies_comes_again_and_what_fails_stops_nobody(fake):
    def rule(cell, times):
        if cell == CELLS[0] and times == 1 or cell == CELLS[2]:
            return RayError("the node is gone")
        return "The moon is missing." if cell == CELLS[1] else ""

    ray, told = fake(rule), []
    results = run_cells(CELLS, "rows", tell=told.append, tries=2)
    assert results == {CELLS[0]: "", CELLS[1]: "The moon is missing.", CELLS[2]: "Its process died 2 times, at last with RayError."}
    assert Counter(cell for cell, _ in ray.begun) == {CELLS[0]: 2, CELLS[1]: 1, CELLS[2]: 2}
    assert "seed 0, imitation: its process died (RayError); it goes on" in told and "seed 0, dream: The moon is missing." in told


def test_a_node_where_something_died_rests_unless_it_is_the_only_one(fake):
    first = lambda cell, times: RayError() if times == 1 else ""  # noqa: E731
    ray = fake(first)
    run_cells(CELLS[:1], "rows", tell=len)
    assert [name for _, name in ray.begun] == ["one", "two"]
    ray = fake(first, NODES[:1])
    run_cells(CELLS[:1], "rows", tell=len)
    assert [name for _, name in ray.begun] == ["one", "one"]


def test_a_cluster_without_a_node_is_told(fake, monkeypatch):
    fake(lambda cell, times: "", NODES[2:])
    monkeypatch.setattr(experiments, "_REST", 0.01)
    with pytest.raises(DreamgymError, match="No node of the Ray cluster has 1 cores"):
        run_cells(CELLS, "rows")


def test_an_address_where_nobody_listens_is_told_at_once(monkeypatch):
    monkeypatch.setattr(experiments, "require_ray", lambda: SimpleNamespace(init=lambda *_, **__: pytest.fail("Ray was asked")))
    with pytest.raises(DreamgymError, match="No Ray cluster answers at 127.0.0.1:1 .*; name one"):
        run_cells(CELLS, "rows", address="127.0.0.1:1")


def test_a_cell_says_what_went_wrong_and_leaves_the_patience_of_runs(tmp_path):
    run, before = Run.open(tmp_path / "run", suite="test_any_world:cafe"), Run.patience
    assert run_cell(Cell(str(tmp_path / "nowhere"), 0, "dream"), tmp_path).startswith("The file config.json in nowhere is damaged")
    assert "no variant 'dreams'" in run_cell(Cell(str(run.path), 0, "dreams"), tmp_path)
    assert Run.patience == before and not (tmp_path / "agents.csv").exists()


# ---------------------------------------------------------------- the command


@pytest.fixture
def command(elsewhere, monkeypatch):
    "Run the experiment command; what its cells come to is decided here."
    monkeypatch.setattr(command_line, "_prepare_machine", lambda: None)
    monkeypatch.setattr(experiments, "require_ray", lambda: None)
    for name in ("OMP_NUM_THREADS", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)

    def make(outcome):
        asked = []
        monkeypatch.setattr(experiments, "run_cells", lambda cells, *more: asked.append((cells, *more))
                            or {cell: outcome(cell) for cell in cells})
        words = ["experiment", "--engine", "ray", "--suite", "test_any_world:cafe", "--seeds", "0-1", "--variants",
                 "imitation,dream", "--set", "iterations=1", "--ray-address", "10.0.0.1:6379", "--cores", "2"]
        return run_command(words), asked[0]

    return make


def test_the_command_hands_over_each_seed_and_variant(command):
    code, (cells, output, panel, address, cores, variables, _) = command(lambda cell: "")
    assert code == 0 and [(cell.seed, cell.variant) for cell in cells] == [
        (seed, name) for seed in (0, 1) for name in ("imitation", "dream")]
    assert (panel, address, cores) == ("test", "10.0.0.1:6379", 2) and output.parts[:2] == ("results", "main")
    assert all(Path(cell.run).is_absolute() and Run.open(cell.run, **experiments.read_config(Path(cell.run))).scale.iterations == 1
               for cell in cells)
    assert variables["TQDM_DISABLE"] == "1" and "OMP_NUM_THREADS" not in variables, "Ray counts the cores of a cell"


def test_the_command_fails_where_a_cell_has_failed(command, capsys):
    code, _ = command(lambda cell: "The moon is missing." if cell.seed else "")
    told = capsys.readouterr().err
    assert code == 1 and told.count("\n") == 1 and "2 of the agents failed" in told
    assert "seed 1, imitation: The moon is missing." in told and "seed 1, dream: The moon is missing." in told


@pytest.mark.usefixtures("elsewhere")
def test_without_ray_one_sentence_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_command(["experiment", "--engine", "ray"]) == 1
    assert "pip install 'dreamgym[ray]'" in capsys.readouterr().err and not Path("runs").exists()
    assert run_command(["experiment", "--engine", "slurm"]) == 1
    assert "The engine 'slurm' is unknown here; choose local or ray." in capsys.readouterr().err


# ---------------------------------------------------------------- two nodes


@pytest.fixture
def cluster(monkeypatch):
    "A head and a second node on this machine, one core each."
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    size = dict(num_cpus=1, object_store_memory=80 * 2**20, include_log_monitor=False)
    found = Cluster(initialize_head=True, head_node_args=size | {"include_dashboard": False, "no_monitor": True})
    try:
        found.second = found.add_node(**size)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


def kill_in_the_middle(cluster, told: list[str], stop: threading.Event) -> None:
    "Take the second node away as soon as a stage of its cell is finished."
    mark = f"node {cluster.second.node_id[:8]}"
    while not stop.wait(0.05):
        for line in list(told):
            folder = cluster.runs[int(line.split(",")[0].removeprefix("seed "))] if mark in line else None
            if folder and (folder / "stages.jsonl").exists():
                cluster.remove_node(cluster.second, allow_graceful=False)
                return


@pytest.mark.slow
def test_a_node_dies_and_the_rows_are_those_of_the_local_engine(cluster, tiny_model_folder, tmp_path):
    sizes = TINY | {"model": str(tiny_model_folder)}
    runs = {seed: open_experiment(cafe, seed=seed, run=str(tmp_path / f"ray-{seed}"), **sizes) for seed in (0, 1)}
    cluster.runs = {seed: run.path for seed, run in runs.items()}
    cells = [Cell(str(run.path), seed, name) for seed, run in runs.items() for name in ("imitation", "dpo+start=cold")]
    told, stop = [], threading.Event()
    killer = threading.Thread(target=kill_in_the_middle, args=(cluster, told, stop), daemon=True)
    killer.start()
    results = run_cells(cells, tmp_path / "rows", address=cluster.address, tell=told.append)
    stop.set()
    killer.join()
    died = [line for line in told if "its process died" in line]
    assert len(died) == 1 and died[0].split(":")[0].endswith("imitation"), told
    assert {cell.variant: sentence for cell, sentence in results.items()} == {
        "imitation": "", "dpo+start=cold": "The start 'cold' is unknown; choose one of warm_start, imitation."}
    assert sum("unknown" in line for line in told) == 2, "the failing cell of each seed is told"
    for run in runs.values():
        built = Counter(row["stage"] for row in run.stages())
        assert set(built.values()) == {1} and built["demonstrations.jsonl"] == 1, "what was there was not made again"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as on a node of one core
    rows = []
    for seed in (0, 1):
        alone = open_experiment(cafe, seed=seed, run=str(tmp_path / f"local-{seed}"), **sizes)
        run_variants(alone, ["imitation"])
        rows += [{name: str(value) for name, value in row.items()} for row in result_rows(alone)]
    torch.set_num_threads(threads)
    found = sorted(read_rows(tmp_path / "rows" / "agents.csv", ("seed", "variant")), key=lambda row: row["seed"])
    times = ("minutes", "peak_megabytes", "commit")
    drop = lambda row: {name: value for name, value in row.items() if name not in times}  # noqa: E731
    assert list(map(drop, found)) == list(map(drop, rows))
