"The contract of every world, grammars, batches of guests, and suites."

import json
import re
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamgym import runs
from dreamgym.environments import (
    ANY_TEXT,
    PANELS,
    BatchOf,
    Grammar,
    InvalidAction,
    StateError,
    Suite,
    TextEnvironment,
    WorldFailed,
    make_task,
    play_episodes,
    start_episodes,
    start_tasks,
    step_episodes,
    suite_of,
    training_kinds,
    transition_of,
    waves,
)
from dreamgym.runs import Run, load_suite
from dreamgym.trajectories import (
    END_STATE,
    FAILURE_STATE,
    DreamgymError,
    Task,
    Transition,
    read_trajectories,
    write_trajectories,
)


def complaint_of(action, *arguments, **options) -> str:
    "The one sentence of the error that a call raises."
    with pytest.raises(DreamgymError) as error:
        action(*arguments, **options)
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.isprintable(), sentence
    return sentence


# ---------------------------------------------------------------- grammars


LETTERS = st.characters(exclude_categories=["Cs"])
LINES = st.lists(st.sampled_from(["a door", "a lamp, lit", "same", "edit", "page", "2= x", "1-", "0+", "", " "]), max_size=7)
TEXTS = st.one_of(LINES.map("\n".join), st.text(LETTERS, max_size=40), st.text(st.sampled_from("ab\n \r\u2028\x85"), max_size=12))


@given(TEXTS, TEXTS)
def test_a_change_is_undone_by_apply(before, after):
    change = ANY_TEXT.change(before, after)
    if after not in (END_STATE, FAILURE_STATE) or before == after:
        assert ANY_TEXT.apply(before, change) == after
    assert len(change) <= len(f"page\n{after}") or change == "same"
    if not after[-1:].isspace():
        assert change.rstrip() == change or change == "page\n", "whoever strips an answer loses nothing"


@given(LINES, st.integers(0, 6), st.sampled_from(["a new line", "2= x", "a door"]))
def test_one_line_of_many_is_an_edit(lines, place, line):
    room = [f"{number}: {text} and so much more that nobody wants to write it twice" for number, text in enumerate(lines)]
    after = [*room[:place], line, *room[place + 1:]] if place < len(room) else [*room, line]
    change = ANY_TEXT.change("\n".join(room), "\n".join(after))
    assert ANY_TEXT.apply("\n".join(room), change) == "\n".join(after)
    assert len(room) < 2 or len(change) < 30


def test_what_changed_is_told_in_few_letters():
    room = "You are in the hall.\nThere is a chest.\nA lamp burns."
    assert ANY_TEXT.change(room, room) == "same"
    assert ANY_TEXT.change(room, room.replace("There is a chest.", "The chest is open.")) == "edit\n2= The chest is open."
    assert ANY_TEXT.change(room, f"Night.\n{room}") == "edit\n0+ Night."
    assert ANY_TEXT.change(room, f"{room}\nA cat.") == "edit\n3+ A cat."
    assert ANY_TEXT.change(room, room.replace("There is a chest.\n", "")) == "edit\n2-"
    assert ANY_TEXT.change(room, "A cellar.") == "page\nA cellar."


def test_a_long_state_is_edited_too():
    old = [str(number) for number in range(12_000)]
    after = "\n".join([*old[:11_500], "x", *old[11_501:]])
    assert ANY_TEXT.change("\n".join(old), after) == "edit\n11501= x"
    assert ANY_TEXT.apply("\n".join(old), "edit\n11501= x") == after


@pytest.mark.parametrize("change", [
    "", "Same", "same ", "same\n", "same\nsame", "edit", "edit\n", "edit\nx", "edit\n= x", "edit\n1 = x", "edit\n1=x",
    "edit\n4= x", "edit\n4-", "edit\n4+ x", "edit\n0= x", "edit\n0-", "edit\n1- x", "edit\n1= x\n1= y", "edit\n1-\n1-",
    "edit\n1-\n1= x", "edit\n2= x\n\n3= y", "edit\n-1= x", "edit\n01= x", "edit\n\u0661= x", "edit\n1\u00b2= x", "edit\n1= x\n ",
    "edit\n9999999999= x", "page", "page x", "Page\nx", " page\nx", f"page\n{END_STATE}", f"page\n{FAILURE_STATE}",
    "edit\n1= (end)\n2-\n3-",
])
def test_what_is_no_change_is_refused(change):
    with pytest.raises(StateError) as error:
        ANY_TEXT.apply("one\ntwo\nthree", change)
    assert "\n" not in str(error.value) and len(str(error.value)) < 150


@given(TEXTS, TEXTS)
def test_any_text_is_read_as_a_change_or_refused(before, change):
    try:
        after = ANY_TEXT.apply(before, change)
    except StateError:
        return
    assert change == "same" and after == before or change.startswith(("edit\n", "page\n"))


def test_a_state_of_another_world_is_no_next_state():
    class Lower(Grammar):
        def check_state(self, state):
            if state != state.lower():
                raise StateError("Capitals are no letters here.")

    assert Lower().apply("a\nb", "edit\n1= c") == "c\nb"
    for change in ("edit\n1= C", "page\nC"):
        with pytest.raises(StateError, match="Capitals"):
            Lower().apply("a\nb", change)


@pytest.mark.parametrize(("action", "sound"), [
    ("go north", True), (" look ", True), ("look\n", True), ("", False), (" \n", False), ("go\nnorth", False)])
def test_an_action_is_one_line_of_text(action, sound):
    if sound:
        assert ANY_TEXT.check_action(action, "a hall") is None and ANY_TEXT.describe(action, "a hall") == action.strip()
    else:
        with pytest.raises(InvalidAction, match="one line of text"):
            ANY_TEXT.check_action(action, "a hall")
    assert "\n" not in ANY_TEXT.describe(action, "a hall") and ANY_TEXT.show("a\nhall") == "a\nhall"


@given(TEXTS, TEXTS, TEXTS, TEXTS, st.sampled_from([(0.0, False), (0.0, True), (1.0, True)]))
def test_every_step_of_every_world_is_explained_in_one_line(goal, before, action, after, end):
    reward, done = end
    task = Task(id="a/0", kind="a", goal=goal, start_state=before)
    trace = ANY_TEXT.explain(task, Transition(state=before, action=action, next_state=after, reward=reward, done=done))
    assert len(trace.split("\n")) == 1 and len(trace) <= 400 + len(" ".join(goal.split())), "teachers may write as much"
    place = ANY_TEXT.judgement(trace)
    verdict = trace[place:].strip() if done else trace
    assert not done or verdict == ("This ends the task well." if reward else "This ends the task badly.")


def test_a_trace_names_what_came_and_went():
    task = Task(id="a/0", kind="a", goal="Open the red chest with the key.", start_state="A chest, shut.\nA lamp.")
    step = Transition(state=task.start_state, action="open chest", next_state="A chest, open.\nA lamp.", reward=0.0, done=False)
    trace = ANY_TEXT.explain(task, step)
    assert trace == ("It does: open chest. The task names Open, chest. Gone: 'A chest, shut.'. New: 'A chest, open.'. "
                     "It goes on.")
    waits = step.model_copy(update={"action": "wait", "next_state": task.start_state})
    assert ANY_TEXT.explain(task, waits) == "It does: wait. The task names nothing of it. Nothing changes."


def test_a_world_that_says_nothing_doubts_and_forbids_nothing():
    task = Task(id="a/0", kind="a", goal="Go.", start_state="a hall")
    assert ANY_TEXT.doubt("This ends the task well.", task, "a hall") == "" == ANY_TEXT.variation_problem(task, task)
    assert ANY_TEXT.practice("x This ends the task well.\n=> success") is None and ANY_TEXT.trials(task, 3) == []
    assert ANY_TEXT.judgement("no form") == len("no form") and ANY_TEXT.hint == ""


# ---------------------------------------------------------------- the contract


class Counter(TextEnvironment):
    "Count down from the number of the seed; a guest that does the least it may."

    maximum_steps = 3

    def reset(self, *, seed=None, options=None):
        self.left = seed
        return f"{self.left} to go", {}

    def step(self, action):
        if action != "count":
            raise InvalidAction("Only counting counts.")
        self.left -= 1
        return (END_STATE, 1, True, False, {}) if not self.left else (f"{self.left} to go", 0, False, False, {})


def test_any_environment_can_be_batched():
    environment = BatchOf(Counter)
    tasks = environment.reset_batch([make_task("count", n) for n in (1, 2, 9, 5)])
    assert [t.start_state for t in tasks] == ["1 to go", "2 to go", "9 to go", "5 to go"]
    first = environment.step_batch(["count", "count", "count", "jump"])
    assert first[0] == (END_STATE, 1.0, True, False, {}) and first[3][:4] == (FAILURE_STATE, 0.0, True, False)
    assert "invalid" in first[3][4]
    second = environment.step_batch([None, "count", "count", None])
    assert second[0] is None and second[1][2] and second[2][2:4] == (False, False)
    assert environment.step_batch([None, None, "count", None])[2][2:4] == (False, True), "cut at its own limit"
    assert environment.transitions == 7 and environment.maximum_steps == 3
    for actions in ([], ["count"], ["count"] * 5):
        with pytest.raises(DreamgymError, match=f"{len(actions)} actions for 4 episodes: reset first"):
            environment.step_batch(actions)
    assert environment.transitions == 7


def test_play_episodes_records_any_environment():
    tasks = [make_task("count", n) for n in (2, 9)]
    solved, cut = play_episodes(BatchOf(Counter), tasks, lambda *_: "count", "test")
    assert (solved.success, solved.truncated, len(solved), solved.source) == (True, False, 2, "test")
    assert (cut.success, cut.truncated, len(cut), cut.real) == (False, True, 3, False)
    none, stopped = play_episodes(BatchOf(Counter), tasks, lambda i, task, page, past: "count" if i and not past else None)
    assert none is None and stopped.truncated and len(stopped) == 1


STRANGE = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"  # all that `str.splitlines` takes for the end of a line


def test_strange_white_space_in_a_goal_splits_no_record(quick_run, tmp_path):
    tasks = [make_task("enter-text", n).model_copy(update={"goal": STRANGE, "start_state": "a hall"}) for n in (0, 1)]
    (quick_run.path / "starts.jsonl").write_text("".join(t.model_dump_json() + "\n" for t in tasks), encoding="utf-8")
    assert start_tasks(quick_run) == tasks

    class Strange(Counter):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)[0], {"goal": STRANGE}

    played = play_episodes(BatchOf(Strange), [make_task("count", 2)], lambda *_: "count")
    write_trajectories(tmp_path / "one.jsonl", played)
    assert read_trajectories(tmp_path / "one.jsonl") == played and played[0].task.goal == STRANGE


@pytest.mark.parametrize("rest", ["", "\n", '{"id": "a", "kind": "a"}\n\n'])
def test_a_list_of_first_pages_with_empty_lines_is_damaged(quick_run, rest):
    (quick_run.path / "starts.jsonl").write_text(rest)
    with pytest.raises(DreamgymError, match="is damaged"):
        start_tasks(quick_run)


def test_a_damaged_list_of_first_pages_is_named(quick_run):
    (quick_run.path / "starts.jsonl").write_text('{"id": "a"}\n{"id')
    with pytest.raises(DreamgymError, match="starts.jsonl is damaged; delete it"):
        start_tasks(quick_run)


# ---------------------------------------------------------------- guests that break the contract


TASK = make_task("go", 7)
END = (END_STATE, 1.0, True, False, {})


class Told:
    "A guest that does what a test tells it: a reset or a step is a value, an error to raise, or a function of the task."

    def __init__(self, reset=("a hall", {"goal": "Go."}), step=END):
        self.replies, self.task = {"reset": reset, "step": step}, None

    def reply(self, name):
        reply = self.replies[name]
        reply = reply(self.task) if callable(reply) else reply
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def reset(self, seed, options):
        self.task = options["task"]
        return self.reply("reset")

    def step(self, action):
        return self.reply("step")


def batch_of(options=None, **replies) -> BatchOf:
    return BatchOf(lambda: Told(**replies), **(options or {}))


def by_seed(bad, good=END, wrong=lambda seed: seed % 2):
    "A reply that is bad for the tasks whose seed is odd."
    return lambda task: bad if wrong(task.seed) else good


@pytest.mark.parametrize(("reset", "complaint"), [
    ("a hall", "must return (state, info), not 'a hall'"), (("a hall",), "must return (state, info)"),
    (["a hall", {}], "must return (state, info)"), (("a hall", None), "must return (state, info)"), (None, "not 'None'"),
    ((1, {}), "must return a state as text, not int"), ((b"x", {}), "as text, not bytes"), (("x\ud83d", {}), "UTF-8 can hold"),
    (("a hall", {"task": "go/7"}), "a Task into info['task'], not str"), (("a hall", {"goal": 3}), "a goal as text, not int"),
    (("a hall", {"task": TASK.model_copy(update={"seed": 1.5})}), "a whole number as seed, not 1.5"),
])
def test_a_wrong_reset_is_told_in_one_sentence(reset, complaint):
    batch = batch_of(reset=reset)
    sentence = complaint_of(batch.reset_batch, [TASK])
    assert sentence.startswith("In task 'go/7' Told.reset ") and complaint in sentence
    with pytest.raises(WorldFailed):
        batch.reset_batch([TASK])
    assert "reset first" in complaint_of(batch.step_batch, ["go"]), "nothing can be stepped after it"


@pytest.mark.parametrize(("step", "complaint"), [
    (END[:4], "must return (state, reward, terminated, truncated, info)"), (list(END), "must return (state"),
    ((*END[:4], None), "must return (state"), (None, "must return (state"), ((None, *END[1:]), "a state as text, not NoneType"),
    ((END_STATE, 3, True, False, {}), "returned reward 3 with terminated=True: a reward is an outcome, between 0 and 1"),
    ((END_STATE, -0.1, True, False, {}), "reward -0.1"), ((END_STATE, float("nan"), True, False, {}), "reward nan"),
    ((END_STATE, "1", True, False, {}), "reward 1"), ((END_STATE, 1j, True, False, {}), "reward 1j"),
    ((END_STATE, np.array([0, 1]), True, False, {}), "reward [0 1]"), (("x", 0.5, False, False, {}), "terminated=False"),
    ((END_STATE, 1.0, "yes", False, {}), "terminated 'yes': it is True or False"), (("x", 0, 2, False, {}), "terminated '2'"),
    (("x", 0, False, None, {}), "truncated 'None'"),
])
def test_a_wrong_step_is_told_in_one_sentence(step, complaint):
    batch = batch_of({"name": "halls"}, step=step)
    batch.reset_batch([TASK])
    sentence = complaint_of(batch.step_batch, ["go"])
    assert sentence.startswith("In task 'go/7' of suite 'halls', step 1, Told.step ") and complaint in sentence


def test_a_state_outside_the_grammar_is_the_worlds_fault():
    class Lower(Grammar):
        def check_state(self, state):
            if state != state.lower():
                raise StateError("Capitals are no letters here.")

    options = {"grammar": Lower()}
    assert "cannot be read: Capitals" in complaint_of(batch_of(options, reset=("A hall", {})).reset_batch, [TASK])
    batch = batch_of(options, step=("A hall", 0, False, False, {}))
    batch.reset_batch([TASK])
    assert "step 1, Told.step returned a state that cannot be read" in complaint_of(batch.step_batch, ["go"])
    for state in (END_STATE, FAILURE_STATE):
        batch = batch_of(options, step=(state, 0, True, False, {}))
        batch.reset_batch([TASK])
        assert batch.step_batch(["go"])[0][0] == state


@given(TEXTS)
def test_empty_lines_around_a_state_and_space_behind_it_are_taken_off(text):
    batch = batch_of(reset=(f"\n{text} \n\n", {}))
    (started,) = batch.reset_batch([TASK])
    assert started.start_state == f"\n{text} ".strip("\n").rstrip()
    batch.close()


@pytest.mark.parametrize("error", [ValueError("the\nline"), KeyError("x"), OSError(5, "no"), AssertionError()])
def test_what_a_guest_raises_comes_through(error):
    with pytest.raises(type(error)) as caught:
        batch_of(reset=error).reset_batch([TASK])
    assert caught.value is error
    batch = batch_of(step=error)
    batch.reset_batch([TASK])
    with pytest.raises(type(error)):
        batch.step_batch(["go"])


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_guest_does_not_end_the_program(error):
    batch = batch_of({"forgiving": True}, step=by_seed(error))
    batch.reset_batch([make_task("go", n) for n in (1, 2)])
    broken, sound = batch.step_batch(["go", "go"])
    assert sound == END and type(error).__name__ in broken[4]["broken"]


def test_a_guest_that_cannot_be_made_is_told():
    def make():
        raise ImportError("no such game")

    with pytest.raises(ImportError, match="no such game"):
        BatchOf(make).reset_batch([TASK])
    assert "no such game" in complaint_of(BatchOf(make, forgiving=True).reset_batch, [TASK, TASK])


# ---------------------------------------------------------------- partial credit


@pytest.mark.parametrize(("reward", "success_at", "won"), [
    (1, 1.0, True), (0.99, 1.0, False), (0.5, 1.0, False), (0, 1.0, False), (0.5, 0.5, True), (0.49, 0.5, False),
    (1, 0.5, True), (0, 0.5, False), (np.float32(0.75), 0.75, True)])
def test_a_suite_says_what_counts_as_solved(reward, success_at, won):
    environment = batch_of({"success_at": success_at}, step=(END_STATE, reward, True, False, {}))
    (played,) = play_episodes(environment, [TASK], lambda *_: "go")
    assert played.success is won and played.total_reward == float(reward)
    assert type(played.transitions[0].reward) is float


@pytest.mark.parametrize("word", ["invalid", "broken", "success"])
@pytest.mark.parametrize("value", [True, False, None, "yes"])
def test_a_guest_may_use_our_words_for_its_own_ends(word, value):
    for ended in (True, False):
        step = (END_STATE if ended else "on", float(ended), ended, False, {word: value, "score": 7})
        environment = batch_of(step=step)
        (played,) = play_episodes(environment, [TASK], lambda i, task, state, past: None if past else "go")
        (transition,) = played.transitions
        assert (transition.invalid, transition.broken, transition.won) == (False, False, ended)
        environment.reset_batch([TASK])
        assert environment.step_batch(["go"])[0][4] == {"score": 7}


# ---------------------------------------------------------------- capacity


def test_a_world_with_little_room_is_played_in_waves():
    tasks, made = [make_task("count", n) for n in (1, 2, 3, 1, 2)], []
    environment = BatchOf(lambda: made.append(1) or Counter(), capacity=2)
    assert [list(wave) for wave in waves(environment, tasks)] == [[0, 1], [2, 3], [4]]
    seen = []
    played = play_episodes(environment, tasks, lambda i, task, state, past: seen.append((i, task.id)) or "count")
    assert [t.task.seed for t in played] == [1, 2, 3, 1, 2] and all(t.success for t in played) and len(made) == 2
    assert {number: name for number, name in seen} == {i: task.id for i, task in enumerate(tasks)}
    sentence = complaint_of(environment.reset_batch, tasks[:3])
    assert "3 episodes are too many for a world with room for 2" in sentence
    assert [list(wave) for wave in waves(BatchOf(Counter), tasks)] == [[0, 1, 2, 3, 4]] and waves(environment, []) == []


# ---------------------------------------------------------------- worlds that fail


def test_a_forgiving_batch_goes_on_without_what_broke():
    environment = batch_of({"forgiving": True}, reset=by_seed(RuntimeError("no level"), ("a hall", {}), lambda seed: seed == 0),
                           step=by_seed(OSError("the line is dead"), ("on", 0, False, False, {}), lambda seed: seed == 1))
    started = environment.reset_batch([make_task("go", n) for n in range(4)])
    assert [t.start_state for t in started] == [FAILURE_STATE, "a hall", "a hall", "a hall"]
    first = environment.step_batch(["go"] * 4)
    assert [r[:4] for r in first[:2]] == [(FAILURE_STATE, 0.0, True, False)] * 2
    assert "Told.reset failed (RuntimeError: no level)" in first[0][4]["broken"].replace("environment.", "Told.")
    assert "step 1, Told.step failed (OSError: the line is dead)" in first[1][4]["broken"]
    assert [r[0] for r in first[2:]] == ["on", "on"] and environment.failures == {"RuntimeError": 1, "OSError": 1}
    step = transition_of("a hall", "go", first[1])
    assert step.broken and not step.invalid and not step.won, "the agent is not to blame"
    assert [r and r[0] for r in environment.step_batch([None, None, "go", "go"])] == [None, None, "on", "on"]


def test_where_every_episode_breaks_there_is_nothing_to_forgive():
    environment = batch_of({"forgiving": True}, step=lambda task: RuntimeError(f"no luck with {task.seed}"))
    environment.reset_batch([make_task("go", n) for n in range(3)])
    sentence = complaint_of(environment.step_batch, ["go"] * 3)
    assert sentence.startswith("The world failed in all of 3 episodes; first: In task 'go/0'") and "no luck with 0" in sentence
    alone = batch_of({"forgiving": True}, step=RuntimeError("no luck"))
    alone.reset_batch([TASK])
    assert "no luck" in alone.step_batch(["go"])[0][4]["broken"], "one episode is no sample"


@pytest.mark.parametrize("method", ["reset", "step"])
def test_a_guest_that_hangs_is_given_up_and_replaced(method):
    awake, closed = threading.Event(), []

    class Sleepy(Told):
        def close(self):
            closed.append(self)

    def hang(task):
        if task.seed == 1 and not awake.is_set():
            awake.wait(600)
        return ("a hall", {}) if method == "reset" else END

    def play(forgiving):
        environment = BatchOf(lambda: Sleepy(**{method: hang}), time_limit=1.0, forgiving=forgiving)
        tasks = [make_task("go", n) for n in (1, 2)]
        environment.reset_batch(tasks)
        return environment, environment.step_batch(["go", "go"])

    start = time.monotonic()
    sentence = complaint_of(play, False)
    assert f"'go/1'{', step 1,' if method == 'step' else ''}" in sentence and "TimeoutError: no answer in 1 seconds" in sentence
    environment, (lost, sound) = play(True)
    assert "no answer" in lost[4]["broken"] and sound == END and environment.failures == {"TimeoutError": 1}
    assert time.monotonic() - start < 300  # a hanging guest would sleep for 600
    awake.set()
    environment.reset_batch([make_task("go", n) for n in (1, 2)])
    assert environment.step_batch(["go", "go"]) == [END, END], "no late answer of the guest before is taken for its own"
    deadline = time.monotonic() + 120
    while not closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(closed) == 1, "who wakes up late goes home"
    environment.close()


def test_an_interrupt_leaves_no_answer_behind(monkeypatch):
    from dreamgym.environments import _Slot

    environment = BatchOf(Counter)
    environment.reset_batch([make_task("count", n) for n in (2, 3)])

    def interrupted(self, limit):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Slot, "answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            environment.step_batch(["count", "count"])
    started = environment.reset_batch([make_task("count", n) for n in (5, 6)])
    assert [t.start_state for t in started] == ["5 to go", "6 to go"]
    assert [r[0] for r in environment.step_batch(["count", "count"])] == ["4 to go", "5 to go"]


def test_every_guest_lives_in_a_thread_of_its_own():
    threads, closed = {}, threading.Semaphore(0)

    class Homely(Told):
        def __init__(self):
            super().__init__(step=("on", 0, False, False, {}))
            self.note()

        def note(self):
            threads.setdefault(id(self), set()).add(threading.get_ident())

        def reply(self, name):
            self.note()
            return super().reply(name)

        def close(self):
            self.note()
            closed.release()

    environment = BatchOf(Homely, maximum_steps=3)
    for _ in range(2):
        environment.reset_batch([make_task("go", n) for n in range(4)])
        results = [environment.step_batch(["go"] * 4) for _ in range(3)]
        assert [r[3] for r in results[-1]] == [True] * 4, "cut where the batch says so"
    environment.close()
    assert all(closed.acquire(timeout=120) for _ in range(4))
    assert [len(found) for found in threads.values()] == [1] * 4 and len(set.union(*threads.values())) == 4
    assert threading.get_ident() not in set.union(*threads.values())


def test_guests_step_at_the_same_time():
    together = threading.Barrier(3, timeout=120)
    environment = batch_of(step=lambda task: together.wait() and END or END)
    environment.reset_batch([make_task("go", n) for n in range(3)])
    assert environment.step_batch(["go"] * 3) == [END] * 3


def test_what_the_grammar_refuses_is_not_asked():
    environment = batch_of(step=RuntimeError("it was asked"))
    environment.reset_batch([TASK])
    (result,) = environment.step_batch(["go\nnorth"])
    assert result[:4] == (FAILURE_STATE, 0.0, True, False) and "one line of text" in result[4]["invalid"]
    assert environment.transitions == 1 and environment.failures == {}


# ---------------------------------------------------------------- batches of one's own


class Loose:
    "A batch that answers what it is told to."

    def __init__(self, started=None, results=None):
        self.started, self.results = started, results

    def reset_batch(self, tasks):
        return [t.model_copy(update={"start_state": "a hall"}) for t in tasks] if self.started is None else self.started

    def step_batch(self, actions):
        return self.results


@pytest.mark.parametrize(("started", "results", "complaint"), [
    ([], None, "Loose.reset_batch must return one task for each of 1 tasks"), (["x"], None, "a Task for each task, not str"),
    ([TASK.model_copy(update={"goal": None})], None, "must return a goal as text"),
    (None, None, "Loose.step_batch must return one result for each of 1 actions"), (None, [], "one result for each of 1"),
    (None, [END[:4]], "must return (state, reward"), (None, [(END_STATE, 3, True, False, {})], "returned reward 3"),
    (None, [("x\ud83d", 0, True, False, {})], "UTF-8 can hold"),
    (None, [(*END[:4], {"success": "yes"})], "info['success'] 'yes': it is True or False"),
    (None, [(*END[:4], {"success": None})], "info['success'] 'None'"), (None, [(*END[:4], {"reasoning": 3})], "as text, not int"),
])
def test_a_batch_of_ones_own_is_checked(started, results, complaint):
    batch = Loose(started, results)

    def play():
        step_episodes(batch, start_episodes(batch, [TASK]), ["go"])

    assert complaint in complaint_of(play)


@pytest.mark.parametrize("solved", [True, np.False_])
def test_a_batch_of_ones_own_says_what_is_solved(solved):
    batch = Loose(results=[(END_STATE, 0.5, True, False, {"success": solved})])
    (result,) = step_episodes(batch, start_episodes(batch, [TASK]), ["go"])
    assert transition_of("a hall", "go", result).won is bool(solved)


# ---------------------------------------------------------------- suites


def task(kind, number, goal="Go."):
    return make_task(kind, number).model_copy(update={"goal": goal, "start_state": f"hall {number}"})


class Halls(Suite):
    "Two types of tasks, and a third that is held out."

    name = "halls"

    def panel(self, name):
        kinds = {"train": "ab", "development": "ab", "test": "ab", "held_out": "c"}[name]
        return [task(kind, 100 * PANELS.index(name) + n) for n in range(4) for kind in kinds]


class Played(Halls):
    "The same with a world, which counts how often it is closed."

    opened, closed = [], []

    def environment(self, parallel, maximum_steps):
        self.opened.append((parallel, maximum_steps))
        outer = self

        class World(BatchOf):
            def close(self):
                outer.closed.append(self)
                super().close()

        return World(lambda: Told(reset=lambda task: (f"room {task.seed}", {"goal": "Get out."})), capacity=3)


def test_tasks_of_a_panel():
    suite = Halls()
    assert [t.id for t in suite.tasks("train", per_kind=2)] == ["a/0", "a/1", "b/0", "b/1"]
    assert [t.id for t in suite.tasks("test", "ba", 1, offset=1)] == ["b/201", "a/201"]
    assert [t.id for t in suite.tasks("test", ["a", "a"], 1)] == ["a/200"] and suite.tasks("test", "a", 0) == []
    assert len(suite.tasks("held_out")) == 4 and len(suite.tasks("train", "a", 99, offset=3)) == 1
    assert complaint_of(suite.tasks, "exam") == "No panel named 'exam'; the panels are train, development, test, held_out."
    assert "The test panel of halls has no task type 'c'; it has a, b." == complaint_of(suite.tasks, "test", ["a", "c"])

    class Empty(Suite):
        name = "empty"

        def panel(self, name):
            return []

    assert Empty().tasks("test") == [] and "it has no tasks" in complaint_of(Empty().tasks, "test", ["a"])


def test_the_number_of_a_panel_tells_what_is_measured():
    class Other(Halls):
        name = "other"

    class Longer(Halls):
        panels = ("test",)

        def panel(self, name):
            return [*super().panel(name), *([task("a", 999)] if name in self.panels else [])]

    class Apart(Longer):
        panels = ("held_out",)

    class Trained(Longer):
        panels = ("train", "development")

    class Goals(Halls):
        def panel(self, name):
            return [t.model_copy(update={"goal": "Stay."}) for t in super().panel(name)]

    plain = Halls().panel_hash()
    assert plain == Halls().panel_hash() == Trained().panel_hash() and re.fullmatch("[0-9a-f]{64}", plain)
    others = [suite.panel_hash() for suite in (Other(), Longer(), Apart(), Goals())] + [Halls().panel_hash("a")]
    assert len({plain, *others}) == 6


def test_a_suite_says_little_unless_it_wants_to():
    suite = Halls()
    assert suite.environment(3, 8) is None and not suite.playable() and Played().playable()
    assert suite.random_action(TASK, "x", None) is suite.oracle(TASK, "x", ()) is None
    assert (*suite.recordings(), *suite.demonstrations(), *suite.missing()) == () and suite.sizes("quick") == {}
    assert repr(suite) == "Halls('halls')"
    with pytest.raises(NotImplementedError):
        Suite().panel("train")


def test_task_types_of_a_run(open_suite):
    run = open_suite(Halls())
    assert training_kinds(run) == ["a", "b"] and isinstance(suite_of(run), Halls)
    assert training_kinds(Run(run.path, run.scale.named("quick", kinds=("b",)), 0, "halls")) == ["b"]


def test_first_states_come_from_the_world_or_from_the_panel(open_suite):
    Played.opened.clear(), Played.closed.clear()
    run = open_suite(Played(), start_seeds_per_kind=2, offline_seeds_per_kind=1, parallel=5)
    starts = start_tasks(run)
    assert [t.id for t in starts] == ["a/1", "a/2", "b/1", "b/2"], "what no offline trajectory has seen"
    assert {(t.goal, t.start_state) for t in starts} == {("Get out.", f"room {n}") for n in (1, 2)}
    assert Played.opened == [(5, 8)] and len(Played.closed) == 1 and start_tasks(run) == starts and len(Played.opened) == 1


def test_first_states_of_a_small_panel_and_of_recordings(open_suite):
    run = open_suite(Halls(), start_seeds_per_kind=2, offline_seeds_per_kind=80)
    assert [(t.id, t.start_state) for t in start_tasks(run)] == [(f"{kind}/{n}", f"hall {n}") for kind in "ab" for n in (0, 1)]


@pytest.mark.parametrize("lost", [{"goal": ""}, {"start_state": ""}, {"start_state": FAILURE_STATE}])
def test_a_suite_without_first_states_is_told(open_suite, lost):
    class Bare(Halls):
        def panel(self, name):
            return [t.model_copy(update=lost) for t in super().panel(name)]

    assert "The suite 'halls' gives no first state with a goal" in complaint_of(start_tasks, open_suite(Bare()))


@pytest.mark.parametrize(("name", "complaint"), [
    ("golf", "There is no suite 'golf'; installed are"), ("no_such_module:Suite", "cannot be loaded (ModuleNotFoundError"),
    ("json:Golf", "cannot be loaded (AttributeError"), ("json:loads", "cannot be loaded (TypeError"), (":x", "cannot be loaded"),
    ("no such/place.jsonl", "no such"),
])
def test_a_suite_that_cannot_be_loaded_is_told(name, complaint):
    sentence = complaint_of(load_suite, name)
    assert complaint in sentence and name in sentence and name not in runs._SUITES, "it may be mended meanwhile"


@pytest.mark.parametrize(("made", "kind"), [(json.decoder, "module"), (3, "int"), (TextEnvironment(), "TextEnvironment")])
def test_what_is_no_suite_is_told(open_suite, monkeypatch, made, kind):
    run = open_suite(Halls())
    monkeypatch.setitem(runs._SUITES, "halls", made)
    assert complaint_of(suite_of, run) == (f"'halls' is no suite but a {kind}; make it from dreamgym.environments.Suite.")


def test_a_suite_of_ones_own_is_named_by_its_place(tmp_path, monkeypatch):
    (tmp_path / "my_worlds.py").write_text(
        "from dreamgym.environments import Suite\nfrom dreamgym.trajectories import DreamgymError\n\n\n"
        "class Maze(Suite):\n    name = 'maze'\n\n\nmade = Maze()\n\n\n"
        "def broken():\n    raise DreamgymError('The maze needs a map; draw one.')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(runs, "_SUITES", {})
    assert load_suite("my_worlds:Maze").name == load_suite("my_worlds:made").name == "maze"
    assert load_suite("my_worlds:Maze") is load_suite("my_worlds:Maze"), "loaded once"
    assert complaint_of(load_suite, "my_worlds:broken") == "The maze needs a map; draw one."
    monkeypatch.setenv("DREAMGYM_SUITE", "my_worlds:Maze")
    assert load_suite().name == "maze"
