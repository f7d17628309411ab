"The replay buffer: exact retrieval, what may enter and leave, and files that survive a kill."

import json
import os
import zlib

import numpy as np
import pytest

import dreamgym.replay_buffer as module
from dreamgym.environments import Grammar, InvalidAction
from dreamgym.experience_model import DreamBatch, Query, annotated_steps, transition_text
from dreamgym.pages import PageGrammar
from dreamgym.replay_buffer import BufferError, Entry, ReplayBuffer, RuleModel, entries_of, is_informative, simulator_of
from dreamgym.runs import Run, Scale
from dreamgym.trajectories import END_STATE, FAILURE_STATE, Task, Trajectory, Transition, write_trajectories

PAGE = "[1] input ''\n[2] button 'Submit'"


class HashEmbedder:
    "A text's own random direction; equal texts have equal vectors."

    width = 16

    def embed(self, texts):
        rows = [np.random.default_rng(zlib.crc32(t.encode())).normal(size=self.width) for t in texts]
        vectors = np.array(rows, np.float32).reshape(-1, self.width)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def episode(number, typed="Ada", won=True, real=True, kind="enter-text"):
    task = Task(id=f"{kind}/{number}", kind=kind, goal='Enter "Ada".', start_state=PAGE)
    filled = PAGE.replace("''", f"'{typed}'")
    return Trajectory(task=task, real=real, transitions=(
        Transition(state=PAGE, action=f"type 1 {typed}", next_state=filled, reward=0.0, done=False),
        Transition(state=filled, action="click 2", next_state=END_STATE, reward=float(won), done=True)))


def query(number, action="click 2", kind="enter-text"):
    return Query(Task(id=f"{kind}/{number}", kind=kind, goal='Enter "Ada".', start_state=PAGE), PAGE, action)


@pytest.fixture
def buffer():
    full = ReplayBuffer(HashEmbedder(), k=3)
    full.add([episode(i, f"name{i}", won=i % 2 == 0) for i in range(20)])
    return full


# ---------------------------------------------------------------- retrieval


def test_retrieval_is_the_matrix_product(buffer):
    queries = [query(i, f"type 1 Name{i + 1}") for i in range(20)]
    vectors = buffer.embedder.embed([transition_text(q.task.goal, q.state, q.action) for q in queries])
    product = vectors @ buffer.vectors.T
    for row, q, found in zip(product, queries, buffer.nearest(queries, 5), strict=True):
        allowed = [i for i, e in enumerate(buffer.entries) if e.task != q.task.id]
        best = np.sort(row[allowed])[::-1][:5]
        np.testing.assert_allclose([score for score, _ in found], best, atol=1e-5)


def test_a_query_never_gets_its_own_task():
    buffer = ReplayBuffer(HashEmbedder())
    buffer.add([episode(1, f"name{i}") for i in range(50)] + [episode(2, "Bob")])  # 100 entries are the query's own
    (found,) = buffer.nearest([query(1)], k=3)
    assert [e.task for _, e in found] == ["enter-text/2", "enter-text/2"]


def test_a_query_never_gets_its_own_words_from_another_task():
    buffer = ReplayBuffer(HashEmbedder())
    buffer.add([episode(i, "Ada") for i in range(2, 60)] + [episode(70, "Bob")])  # 58 tasks, equal to the letter
    (found,) = buffer.nearest([query(1, "type 1 Ada")], k=59)
    same = transition_text('Enter "Ada".', PAGE, "type 1 Ada")
    assert len(found) == 59 and not [e for _, e in found if e.text == same]
    (found,) = buffer.nearest([query(1, " type 1 Ada")], k=1)
    assert found and found[0][1].text != same, "spaces around an action change nothing"


def test_retrieval_from_nothing(buffer):
    empty = ReplayBuffer(HashEmbedder())
    assert empty.nearest([query(1)]) == [[]] and empty.demonstrations([query(1)]) == [()]
    assert buffer.nearest([]) == [] and buffer.nearest([query(1)], k=0) == [[]]
    assert len(buffer.nearest([query(1)], k=1000)[0]) == len(buffer) - 2


def test_equal_steps_of_a_task_are_kept_once(buffer):
    assert buffer.add([episode(1, "name1")]) == 0
    assert buffer.add([episode(99, "name1")]) == 2  # another task
    assert len(buffer) == len(buffer.vectors) == buffer.index.ntotal == 42


def test_invalid_steps_are_left_out():
    slip = Transition(state=PAGE, action="click 9", next_state=FAILURE_STATE, reward=0.0, done=True, invalid=True)
    failed = slip.model_copy(update={"invalid": False, "broken": True})
    for step in (slip, failed):
        assert entries_of(Trajectory(task=episode(1).task, transitions=(step,)), PageGrammar()) == []
        assert entries_of(Trajectory(task=episode(1).task, transitions=(step,), real=False)) == []
    (entry,) = entries_of(Trajectory(task=episode(1).task, transitions=(slip,)))
    assert entry.outcome == "failure", "a grammar that takes any text learns what the world refuses"


def test_entries_carry_words_and_outcomes():
    first, last = entries_of(episode(1, "Bob", won=False), PageGrammar())
    assert (first.action, first.outcome) == ("types Bob into 1st input", "goes on")
    assert (last.action, last.outcome) == ("clicks button Submit", "failure")
    assert [e.action for e in entries_of(episode(1, "Bob"))] == ["type 1 Bob", "click 2"], "any text is its own words"
    assert tuple(last.demonstration) == ('Enter "Ada".', "clicks button Submit", "failure", "")


# ---------------------------------------------------------------- enrich, prune, freeze


def test_only_mixed_groups_enter(buffer):
    won, lost = episode(30, "a", True, False), episode(30, "b", False, False)
    assert [is_informative(g) for g in ([won, won], [lost, lost], [won, lost], [])] == [False, False, True, False]
    assert buffer.enrich([[won, won], [lost]]) == 0
    assert buffer.enrich([[won, lost]]) == 4


def test_pruning_forgets_solved_then_oldest_and_never_real(buffer):
    for number in range(40, 45):
        buffer.add([episode(number, real=False)])
    assert buffer.prune({"enter-text/42", "enter-text/3"}) == 2  # task 3 is real and stays
    assert buffer.prune(maximum=len(buffer) - 3) == 3
    assert [e.task for e in buffer.entries if not e.real] == ["enter-text/41"] + ["enter-text/43"] * 2 + ["enter-text/44"] * 2
    assert buffer.prune(maximum=0) == 5 and len(buffer) == 40 and buffer.prune(maximum=0) == 0
    assert buffer.index.ntotal == len(buffer.vectors) == 40
    assert buffer.add([episode(44, real=False)]) == 2, "what was forgotten may come back"


def test_pruning_keeps_rows_and_entries_together(buffer):
    buffer.add([episode(50 + i, f"x{i}", real=False) for i in range(5)])
    buffer.prune({"enter-text/51", "enter-text/53"})
    np.testing.assert_array_equal(buffer.vectors, buffer.embedder.embed([e.text for e in buffer.entries]))


def test_a_frozen_buffer_refuses_changes(buffer):
    buffer.freeze()
    for change in (lambda: buffer.add([episode(60)]), buffer.prune,
                   lambda: buffer.enrich([[episode(60), episode(60, "b", False)]])):
        with pytest.raises(BufferError, match="frozen"):
            change()
    assert len(buffer.nearest([query(1)])[0]) == 3, "reading goes on"
    assert buffer.thaw().add([episode(60)]) == 2


# ---------------------------------------------------------------- the nearest neighbour as a simulator


def rule_model(episodes, grammar=None):
    buffer = ReplayBuffer(HashEmbedder(), grammar=grammar or Grammar())
    buffer.add(episodes)
    return RuleModel(annotated_steps(episodes, buffer.grammar), buffer)


def test_what_the_world_has_answered_is_answered_again():
    model = rule_model([episode(1, "Bob", won=True)], PageGrammar())  # no rule would call this a success
    filled = PAGE.replace("''", "'Bob'")
    (same, other) = model.imagine([query(7)._replace(state=filled), query(7)._replace(state=PAGE.replace("''", "'Cy'"))])
    assert (same.reward, same.done, same.state, same.doubt) == (1.0, True, END_STATE, "")
    assert (other.reward, other.done) == (0.0, True), "by a rule: Cy is not Ada"
    assert "Check: Cy for Ada no, not complete" in other.reasoning and model.asked == 2 and model.doubted == 0


def test_rules_know_nothing_of_an_imagined_step_or_a_held_out_one():
    shown, dreamed = episode(1, "Bob", won=True), episode(2, "Ada", won=False, real=False)
    buffer = ReplayBuffer(HashEmbedder())
    buffer.add([shown, dreamed, episode(3, "Cy")])
    model = RuleModel(annotated_steps([shown, dreamed]), buffer)
    assert {step.query.task.id for step in model.steps} == {"enter-text/1"} and len(model.vectors) == 2


def test_the_nearest_step_is_carried_over():
    "One with the same page and action first, else the most similar; its change where that fits, else its page."
    one = Task(id="room/1", kind="room", goal="Open the door.", start_state="A hall.\nThe door is shut.")
    moved = Transition(state=one.start_state, action="open", next_state="A hall.\nThe door is open.", reward=0.0, done=False)
    lost = Transition(state=moved.next_state, action="jump", next_state=END_STATE, reward=0.0, done=True)
    model = rule_model([Trajectory(task=one, transitions=(moved, lost))])
    other = one.model_copy(update={"id": "room/2", "goal": "Go."})
    ask = lambda state, action: model.imagine([Query(other, state, action)])[0]  # noqa: E731
    assert ask(one.start_state, " open").state == moved.next_state, "the same page and action, another goal"
    near = max(range(2), key=lambda i: float(model.embedder.embed([transition_text("Go.", "A cave.\nIt is dark.", "open")])
                                             [0] @ model.vectors[i]))
    answer = ask("A cave.\nIt is dark.", "open")
    assert (answer.state, answer.done) == ([("A cave.\nThe door is open.", False), (END_STATE, True)][near])
    model.steps, model.vectors, model.alike = model.steps[:1], model.vectors[:1], {}
    assert ask("A cave.\nIt is wet.", "open").state == "A cave.\nThe door is open.", "the change of the second line"
    assert ask("A cave.", "open").state == moved.next_state, "there is no second line: the page as it was"


def test_a_borrowed_success_is_held_against_its_own_trace():
    class Strict(Grammar):
        def doubt(self, trace, task, state):
            return "no" if "Bob" in task.goal else ""

    model = rule_model([episode(1)], Strict())
    asked = query(5)._replace(state=PAGE.replace("''", "'Ada'"))
    other = asked._replace(task=asked.task.model_copy(update={"goal": "Enter Bob."}))
    assert [a.reward for a in model.imagine([asked, other])] == [1.0, 0.0] and model.doubted == 1
    assert model.imagine([other])[0].doubt == "no" and len(model.answers) == 2
    model.forget()
    model.suspicious = False
    assert model.imagine([other])[0].reward == 1.0 and model.doubted == 2


def test_rules_dream_whole_episodes_with_nothing_remembered():
    model = RuleModel([], ReplayBuffer(HashEmbedder(), grammar=PageGrammar()))
    dream = DreamBatch(model, 3)
    dream.reset_batch([episode(1).task] * 3)
    first = dream.step_batch(["type 1 Ada", "type 1 ada", "click 9"])
    assert [r[0] for r in first] == [PAGE.replace("''", "'Ada'"), PAGE.replace("''", "'ada'"), FAILURE_STATE]
    assert [r[1:3] for r in dream.step_batch(["click 2", "click 2", None])[:2]] == [(1.0, True), (0.0, True)]
    assert model.imagine([]) == [] and model.invent([episode(1).task] * 2) == [None, None]
    empty = RuleModel([], ReplayBuffer(HashEmbedder()))
    (answer,) = empty.imagine([query(1)])
    assert (answer.state, answer.done, answer.valid) == (PAGE, False, True), "nothing is known to happen"


def test_a_run_says_who_answers_in_its_dream(tmp_path, monkeypatch):
    write_trajectories(tmp_path / "annotated.jsonl", [episode(i) for i in range(7)])
    for name in ("dreamgym.replay_buffer.annotated_data", "dreamgym.experience_model.annotated_data"):
        monkeypatch.setattr(name, lambda run: tmp_path / "annotated.jsonl")
    monkeypatch.setattr(module, "Embedder", HashEmbedder)
    monkeypatch.setattr(module, "load_experience_model", lambda run: pytest.fail("a model was loaded"))
    run = Run.open(tmp_path / "run", Scale.named("quick", simulator="rules"), 0)
    model, buffer = simulator_of(run)
    assert len(buffer) == 14 and len(model.steps) == 12, "one task of six is held out"
    with pytest.raises(InvalidAction):
        model.imagine([query(1, "click 9")])
    with pytest.raises(module.DreamgymError, match="simulator 'dice' is unknown; choose one of model, rules"):
        simulator_of(run.variant("x", ["gate.json"], simulator="dice"))


# ---------------------------------------------------------------- files


def test_a_saved_buffer_is_the_same(buffer, tmp_path):
    buffer.add([episode(70, "Zoë\u2028x")])
    buffer.save(tmp_path / "buffer")
    again = ReplayBuffer.load(tmp_path / "buffer", buffer.embedder, k=3)
    assert again.entries == buffer.entries and again.nearest([query(1)]) == buffer.nearest([query(1)])
    assert again.add([episode(70, "Zoë\u2028x")]) == 0
    assert not list((tmp_path / "buffer").rglob("*.pkl")) and len(list(tmp_path.iterdir())) == 1


def test_a_buffer_remembers_pages_where_the_grammar_does(tmp_path):
    class Long(PageGrammar):
        remembers = True

    opened, task = "text Bye\n[9] link 'Back'", Task(id="a/0", kind="a", goal="Go.", start_state=PAGE)
    walk = Trajectory(task=task, real=True, transitions=(
        Transition(state=PAGE, action="click 2", next_state=opened, reward=0.0, done=False),))
    for grammar, page in ((Long(), opened), (PageGrammar(), "")):
        kept = ReplayBuffer(HashEmbedder(), grammar=grammar)
        kept.add([walk])
        assert kept.demonstrations([query(5)])[0][0].page == page
        kept.save(tmp_path / "buffer")
        assert ("page" in json.loads((tmp_path / "buffer" / "entries.jsonl").read_text())) == bool(page)
        assert ReplayBuffer.load(tmp_path / "buffer", HashEmbedder(), grammar=grammar).entries == kept.entries


def test_an_empty_buffer_is_saved_too(tmp_path):
    ReplayBuffer(HashEmbedder()).save(tmp_path / "buffer")
    assert len(ReplayBuffer.load(tmp_path / "buffer", HashEmbedder())) == 0


@pytest.mark.parametrize("moment", ["entries", "vectors", "first rename", "second rename"])
def test_a_kill_while_saving_leaves_the_old_buffer(buffer, tmp_path, monkeypatch, moment):
    folder, before = tmp_path / "buffer", list(buffer.entries)
    buffer.save(folder)
    buffer.add([episode(80)])
    renames = []

    def killed(*_, **__):
        raise KeyboardInterrupt

    def replace(source, target, real=os.replace):
        if os.path.isdir(source):
            renames.append(target)
            if len(renames) == {"first rename": 1, "second rename": 2}.get(moment):
                raise KeyboardInterrupt
        return real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        if moment in ("entries", "vectors"):
            patched.setattr(module, {"entries": "atomic_write_text", "vectors": "save_file"}[moment], killed)
        with pytest.raises(KeyboardInterrupt):
            buffer.save(folder)
    assert ReplayBuffer.load(folder, buffer.embedder).entries == before
    buffer.save(folder)
    assert ReplayBuffer.load(folder, buffer.embedder).entries == buffer.entries
    assert [path.name for path in tmp_path.iterdir()] == ["buffer"], "nothing is left lying about"


def damage_cut_entries(folder):
    path = folder / "entries.jsonl"
    path.write_bytes(path.read_bytes()[:-40])


def damage_lost_line(folder):
    path = folder / "entries.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def damage_foreign_line(folder):
    (folder / "entries.jsonl").write_text(json.dumps({"name": "Ada"}) + "\n")


def damage_binary_entries(folder):
    (folder / "entries.jsonl").write_bytes(b"\xff\xfe\x00")


def damage_cut_vectors(folder):
    path = folder / "vectors.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def damage_missing_vectors(folder):
    (folder / "vectors.safetensors").unlink()


def damage_other_width(folder):
    module.save_file({"vectors": np.zeros((40, 5), np.float32)}, folder / "vectors.safetensors")


@pytest.mark.parametrize("damage", [v for k, v in sorted(globals().items()) if k.startswith("damage_")])
def test_a_damaged_buffer_says_so_in_one_sentence(buffer, tmp_path, damage):
    folder = tmp_path / "buffer"
    buffer.save(folder)
    damage(folder)
    with pytest.raises(BufferError, match="delete that folder and run again") as caught:
        ReplayBuffer.load(folder, buffer.embedder)
    assert str(folder) in str(caught.value)


def test_a_missing_buffer_says_so(tmp_path):
    with pytest.raises(BufferError, match="damaged"):
        ReplayBuffer.load(tmp_path / "nowhere", HashEmbedder())


def test_the_stage_seeds_the_buffer_once(quick_run, tmp_path, monkeypatch):
    write_trajectories(tmp_path / "annotated.jsonl", [episode(i) for i in range(3)])
    monkeypatch.setattr(module, "annotated_data", lambda run: tmp_path / "annotated.jsonl")
    monkeypatch.setattr(module, "Embedder", HashEmbedder)
    path = module.replay_buffer(quick_run)
    assert len(ReplayBuffer.load(path, HashEmbedder())) == quick_run.metrics()["buffer"]["seeded"] == 6
    monkeypatch.setattr(module, "annotated_data", None)
    assert module.replay_buffer(quick_run) == path


def test_the_grounded_model_retrieves_from_the_buffer(quick_run, tmp_path, monkeypatch):
    class Model:
        retrieve, grammar = None, PageGrammar()

    write_trajectories(tmp_path / "annotated.jsonl", [episode(i) for i in range(3)])
    monkeypatch.setattr(module, "annotated_data", lambda run: tmp_path / "annotated.jsonl")
    monkeypatch.setattr(module, "Embedder", HashEmbedder)
    monkeypatch.setattr(module, "load_experience_model", lambda run: Model())
    model, buffer = module.grounded_model(quick_run)
    assert model.retrieve == buffer.demonstrations and buffer.k == quick_run.scale.retrieved
    assert all(isinstance(e, Entry) for e in buffer.entries)
    assert buffer.grammar is Model.grammar and buffer.entries[0].action == "types Ada into 1st input"
