"The replay buffer: exact retrieval, what may enter and leave, and files that survive a kill."

import json
import os
import zlib

import numpy as np
import pytest

import dreamgym.replay_buffer as module
from dreamgym.experience_model import Query, transition_text
from dreamgym.pages import PageGrammar
from dreamgym.replay_buffer import BufferError, Entry, ReplayBuffer, entries_of, is_informative
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
    assert (last.action, last.outcome) == ("clicks button Submit", "failure", "")
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
