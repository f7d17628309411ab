"Variants of one run: what they share, what they cost, what they have read, and how their rows are kept."

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from test_any_world import TINY, WordEmbedder, cafe, run_until

from dreamgym import experience_model, replay_buffer
from dreamgym.evaluation import page_digest
from dreamgym.experiments import (
    STAGES,
    VARIANTS,
    command_of,
    episode_rows,
    named_variant,
    paired_outcomes,
    read_episodes,
    result_rows,
    run_variants,
    save_results,
    split_seen,
    stages_changed,
    variant_run,
)
from dreamgym.experiments import open_experiment
from dreamgym.replay_buffer import grounded_model
from dreamgym.runs import Run, Scale
from dreamgym.sim_to_real import read_rows, real_budget
from dreamgym.trajectories import DreamgymError, read_json, read_trajectories

CHOSEN = ("warm_start", "dpo_from_imitation", "no_retrieval", "no_curriculum", "no_doubt", "dream_from_imitation",
          "sim_to_real_from_imitation", "real_few", "dream_imitation", "dream_from_imitation+minibatches=3+kl_guard=true",
          "real_from_imitation", "rules_only")
SMALL = TINY | {"log_episodes": 3, "iterations": 1}


@pytest.fixture(autouse=True, scope="module")
def no_weights_are_fetched():
    with pytest.MonkeyPatch.context() as patch:
        for module in (experience_model, replay_buffer):
            patch.setattr(module, "Embedder", WordEmbedder)
        yield


@pytest.fixture(scope="module")
def played(tmp_path_factory, tiny_model_folder, no_weights_are_fetched) -> Run:
    "A café in which all variants of `CHOSEN` were trained and measured."
    run = open_experiment(cafe, run=str(tmp_path_factory.mktemp("experiments") / "run"), **SMALL, model=str(tiny_model_folder))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process
    run_variants(run, CHOSEN)
    torch.set_num_threads(threads)
    return run


# ---------------------------------------------------------------- stages


def test_shared_stages_are_built_once(played):
    built = Counter(row["stage"] for row in played.stages())
    assert set(built.values()) == {1}
    assert built["offline.jsonl"] == built["agent/imitation"] == built["starts.jsonl"] == built["buffer"] == 1
    own = {stage.split("/")[1] for stage in built if stage.startswith("variants/")}
    assert own == {"dpo_from_imitation", "no_retrieval", "no_curriculum", "no_doubt", "dream_from_imitation", "real_few",
                   "dream_imitation", "dream_from_imitation+minibatches=3+kl_guard=true", "real_from_imitation", "rules_only"}
    models = {stage for stage in built if stage.endswith("experience_model")}
    assert models == {"experience_model", "variants/no_retrieval/experience_model"}, "retrained where it must be"
    stages = played.stages()
    run_variants(played, CHOSEN)
    assert played.stages() == stages, "nothing is built again"


def test_a_variant_differs_in_what_it_says(played):
    assert all(variant_run(played, name).scale == played.scale for name in ("warm_start", "dream", "sim_to_real", "real"))
    model, buffer = grounded_model(variant_run(played, "no_retrieval"))
    assert buffer.k == 0 and len(buffer) > 0 and buffer.nearest([], None) == []
    assert not grounded_model(variant_run(played, "no_doubt"))[0].suspicious and model.suspicious
    assert not experience_model.new_experience_model(variant_run(played, "no_reasoning")).reasoning
    alike = variant_run(played, "no_curriculum")
    assert all(json.loads((folder / "judged.json").read_text()) == [] for folder in alike.iterations())
    assert all(read_json(folder / "metrics.json")["synthetic_tasks"] == 0 for folder in alike.iterations())
    steps = [read_json(folder / "metrics.json").get("steps", 0) for folder in
             variant_run(played, "dream_from_imitation+minibatches=3+kl_guard=true").iterations()]
    assert max(steps) <= 3


def some_variants(model: Path, folder: Path, names: list[str]) -> Run:
    "An experiment in the café, named as any process can find it."
    run = open_experiment("test_any_world:cafe", run=str(folder), **SMALL, model=str(model))
    run_variants(run, names)
    return run


def test_a_killed_experiment_in_another_order_ends_with_the_same_numbers(played, tiny_model_folder, tmp_path):
    "The variant that is asked first builds the shared stages, and it is killed in between."
    names = ["sim_to_real_from_imitation", "no_retrieval", "dpo_from_imitation", "warm_start"]
    for mark in ("variants/dream_from_imitation/iterations/0001", "variants/no_retrieval/experience_model"):
        run_until(tmp_path / "run" / mark, some_variants, tiny_model_folder, tmp_path / "run", names)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other processes
    again = some_variants(tiny_model_folder, tmp_path / "run", names)
    torch.set_num_threads(threads)
    drop = lambda row: {key: value for key, value in row.items() if key != "commit"}  # noqa: E731
    for name in names:
        assert drop(again.evaluations()[name]) == drop(played.evaluations()[name]), name
    for file in ("offline.jsonl", "starts.jsonl", "variants/dream_from_imitation/gate.json"):
        assert (again.path / file).read_bytes() == (played.path / file).read_bytes()


def test_rules_alone_train_no_experience_model(tiny_model_folder, tmp_path):
    run = open_experiment(cafe, run=str(tmp_path / "run"), **SMALL, model=str(tiny_model_folder))
    run_variants(run, ["rules_only"])
    assert not list(run.path.rglob("experience_model")) and run.evaluations()["rules_only"]["episodes"]
    view = variant_run(run, "rules_only")
    (folder,) = view.iterations()
    dreamed = read_trajectories(folder / "rollouts.jsonl")
    assert dreamed and not any(t.real or t.task.synthetic for t in dreamed)
    assert {step.reasoning.rpartition(". ")[2] for t in dreamed for step in t.transitions if not step.invalid} <= {
        "This ends the task well.", "This ends the task badly.", "Nothing changes.", "It goes on."}
    (row,) = result_rows(run)
    assert row["steps_dreamed"] == sum(map(len, dreamed)) and row["minutes"] != "" and read_json(view.place("gate.json"))["verdict"]
    assert "--variants rules_only" in row["command"]


def test_every_size_belongs_to_a_stage_or_to_all():
    inputs = {name for stage, _ in STAGES.values() for name in stage.split()}
    assert inputs <= set(STAGES) and all(size in vars(Scale()) for _, sizes in STAGES.values() for size in sizes.split())
    for name, variant in VARIANTS.items():
        assert stages_changed(list(variant.sizes)) is not None and variant.within in ("", *VARIANTS), name
        assert {"iterations", "real", "agent/dpo"} & set(stages_changed(list(variant.sizes))) or not variant.sizes


@pytest.mark.parametrize("name", ["dreams", "dream+", "dream+lora_rank=3", "dream+kl_guard=1", "dream+minibatches=true",
                                  "dream+minibatches=1.5", "dream+maximum_kl=[]", "dream+nothing=1", "dream+algorithm"])
def test_a_name_that_is_no_variant_is_told(name):
    with pytest.raises(DreamgymError) as error:
        named_variant(name)
    assert len(str(error.value)) < 900


def test_a_change_for_the_last_stage_shares_the_dream(played):
    view = variant_run(played, "sim_to_real_from_imitation+transfer_epochs=2")
    before = variant_run(played, "dream_from_imitation")
    assert view.place("iterations") == before.place("iterations") and view.place("transfer") != before.place("transfer")
    assert (view.scale.transfer_epochs, view.scale.start) == (2, "imitation")


# ---------------------------------------------------------------- costs


def steps_in(path) -> int:
    return sum(len(t) for t in read_trajectories(path))


def test_real_steps_are_those_that_were_taken(played):
    rows = {row["variant"]: row for row in result_rows(played)}
    offline, shown = steps_in(played.path / "offline.jsonl"), steps_in(played.path / "demonstrations.jsonl")
    starts = len((played.path / "starts.jsonl").read_text().splitlines())
    folder = played.path / "variants" / "dream_from_imitation"
    gates = sum(read_json(folder / name)["transitions"] for name in ("gate.json", "gate_after.json"))
    real = steps_in(folder / "transfer" / "0001" / "rollouts.jsonl")
    assert rows["warm_start"]["steps_real"] == shown
    assert rows["dpo_from_imitation"]["steps_real"] == offline, "demonstrations lie in it"
    assert rows["dream_from_imitation"]["steps_real"] == offline + starts + gates
    assert rows["sim_to_real_from_imitation"]["steps_real"] == offline + starts + gates + real
    assert rows["sim_to_real_from_imitation"]["steps_rl"] == real > 0
    few = steps_in(played.path / "variants" / "real_few" / "transfer" / "0001" / "rollouts.jsonl")
    assert rows["real_few"]["steps_real"] == shown + starts + few and 0 < few <= real_budget(played)
    assert rows["real_few"]["steps_dreamed"] == 0 < rows["dream_from_imitation"]["steps_dreamed"]
    more = steps_in(played.path / "variants" / "real_from_imitation" / "real" / "0001" / "rollouts.jsonl")
    assert rows["real_from_imitation"]["steps_real"] == offline + starts + more
    assert all(row["steps_evaluation"] > 0 and len(row["settings"]) == 12 for row in rows.values())
    assert rows["warm_start"]["settings"] != rows["no_doubt"]["settings"]


def test_minutes_are_those_of_the_stages_that_a_variant_needs(played, monkeypatch):
    log = [dict(row, seconds=60.0) for row in played.stages()]
    monkeypatch.setattr(Run, "stages", lambda self: log)
    minutes = {row["variant"]: row["minutes"] for row in result_rows(played)}
    assert minutes["warm_start"] == 2.0, "demonstrations and warm start"
    assert minutes["dpo_from_imitation"] == 5.0, "also logs, imitation, preferences"
    assert minutes["dream_from_imitation"] == 2 + 2 + 3 + 1 + 1 + 1  # logs, RFT; annotation, buffer, model; gate, starts, update
    assert minutes["sim_to_real_from_imitation"] == minutes["dream_from_imitation"] + 1
    assert minutes["no_doubt"] == minutes["dream_from_imitation"] - 1, "without imitation"
    assert minutes["rules_only"] == minutes["no_doubt"] - 1, "without an experience model"


def test_a_command_says_what_differs_from_its_scale(tmp_path):
    run = open_experiment(cafe, run=str(tmp_path / "run"), iterations=2, maximum_kl=0.5, kinds=())
    command = command_of(run, "dream+minibatches=3", "development")
    assert command == ("dreamgym experiment --suite test_any_world:cafe --scale quick --seeds 0 --variants dream+minibatches=3 "
                       "--panel development --set iterations=2 --set maximum_kl=0.5")


# ---------------------------------------------------------------- seen and unseen


def test_seen_and_unseen_are_recounted(played):
    "With other code, from the files that training has read."
    texts = [json.loads(line)["task"] for name in ("offline.jsonl", "demonstrations.jsonl")
             for line in (played.path / name).read_text().splitlines()]
    texts += [json.loads(line) for line in (played.path / "starts.jsonl").read_text().splitlines()]
    goals, pages = {t["goal"] for t in texts}, {page_digest(t["start_state"]) for t in texts}
    rows, episodes = {row["variant"]: row for row in result_rows(played)}, episode_rows(played)
    for name, found in played.evaluations().items():
        seen = [e["success"] for e in found["episodes"] if e["goal"] in goals and e["page"] in pages]
        assert (rows[name]["seen_episodes"], rows[name]["seen_successes"]) == (len(seen), sum(seen))
        assert rows[name]["unseen_episodes"] == len(found["episodes"]) - len(seen)
        mine = [e for e in episodes if e["variant"] == name]
        assert [e["seen_goal"] for e in mine] == [e["goal"] in goals for e in found["episodes"]]
        assert sum(e["success"] for e in mine) == rows[name]["successes"]
    assert len(episodes) == 3 * len(CHOSEN)


def test_half_seen_is_unseen_and_what_is_not_known_is_empty():
    row = {"held_out": False, "success": True}
    rows = [row | {"seen_goal": goal, "seen_page": page} for goal in (True, False) for page in (True, False)]
    held = row | {"held_out": True, "seen_goal": True, "seen_page": True}
    assert split_seen([*rows, held]) == {"seen_successes": 1, "seen_episodes": 1, "unseen_successes": 3, "unseen_episodes": 3}
    unknown = row | {"seen_goal": None, "seen_page": None}
    assert set(split_seen([unknown, *rows]).values()) == set(split_seen([]).values()) == {""}


# ---------------------------------------------------------------- rows


def test_rows_are_replaced_and_others_stay(played, tmp_path):
    for _ in range(2):
        save_results(played, tmp_path)
    rows = read_rows(tmp_path / "agents.csv", ("suite", "scale", "variant", "seed"))
    assert [row["variant"] for row in rows] == sorted(CHOSEN) and len({row["panel"] for row in rows}) == 1
    episodes = read_episodes(tmp_path / "episodes.jsonl.gz")
    assert Counter(row["variant"] for row in episodes) == dict.fromkeys(CHOSEN, 3)
    wanted = {"suite", "scale", "variant", "seed", "task", "kind", "seen_goal", "seen_page", "success", "steps", "broken"}
    assert wanted <= set(episodes[0])
    lines = gzip.compress("".join(json.dumps(row | {"seed": 7}) + "\n" for row in episodes).encode(), mtime=0)
    (tmp_path / "episodes.jsonl.gz").write_bytes(lines)
    save_results(played, tmp_path)
    assert Counter(row["seed"] for row in read_episodes(tmp_path / "episodes.jsonl.gz")) == {0: 36, 7: 36}
    (tmp_path / "episodes.jsonl.gz").write_bytes(lines[:50])
    with pytest.raises(DreamgymError, match="episodes.jsonl.gz cannot be read"):
        save_results(played, tmp_path)
    curves = read_rows(tmp_path / "curves.csv", ("variant", "where", "iteration"))
    assert {(row["variant"], row["where"]) for row in curves} >= {("dream", "dream"), ("real_few", "transfer"),
                                                                  ("dream_from_imitation", "transfer"), ("no_doubt", "dream")}
    gates = read_rows(tmp_path / "fidelity.csv", ("variant", "when"))
    assert ("no_retrieval", "before") in {(row["variant"], row["when"]) for row in gates}


def test_older_rows_are_read_and_filled_up(played, tmp_path):
    (tmp_path / "agents.csv").write_text("scale,seed,agent,success,policy_real_steps\nquick,3,rejection_sampling,0.5,12\n"
                                         "quick,0,warm_start,0.25,12\n")
    save_results(played, tmp_path)
    rows = list(csv.DictReader((tmp_path / "agents.csv").read_text().splitlines()))
    old = [row for row in rows if row["seed"] == "3"]
    assert [(row["variant"], row["suite"], row["success"], row["policy_real_steps"], row["minutes"]) for row in old] == [
        ("imitation", "test_any_world:cafe", "0.5", "12", "")]
    assert len(rows) == len(CHOSEN) + 1, "the old row of this seed is replaced"


def test_a_panel_for_choices_has_files_of_its_own(played, tmp_path):
    run_variants(played, ["warm_start"], "development")
    (row,) = result_rows(played, "development")
    assert (row["variant"], row["episodes"], row["measured_on"]) == ("warm_start", played.scale.development_per_kind, "development")
    tested, chosen = ({e["task"] for e in played.evaluations(panel)["warm_start"]["episodes"]} for panel in ("test", "development"))
    assert not tested & chosen and len(played.evaluations()) == len(CHOSEN)


def test_variants_are_paired_by_seed_and_task():
    rows = [{"suite": "s", "scale": "q", "seed": seed, "task": task, "held_out": task == "c", "seen_goal": True,
             "seen_page": task != "b", "variant": name, "success": name == "dream" and seed == 1}
            for name in ("dream", "imitation") for seed in (1, 2) for task in "abc" if (name, seed, task) != ("dream", 2, "a")]
    first, second = paired_outcomes(rows, "imitation", "dream")
    assert list(first) == list(second) == ["s/q/1/a", "s/q/1/b", "s/q/2/b"] and list(second.values()) == [1.0, 1.0, 0.0]
    assert list(paired_outcomes(rows, "imitation", "dream", unseen=True)[0]) == ["s/q/1/b", "s/q/2/b"]
    with pytest.raises(DreamgymError, match="share no episode"):
        paired_outcomes(rows, "imitation", "real")


def test_an_unknown_start_is_told(played):
    from dreamgym.rollouts import start_agent

    with pytest.raises(DreamgymError, match="start 'cold' is unknown; choose one of warm_start, imitation"):
        start_agent(played.variant("x", ["iterations"], start="cold"))


