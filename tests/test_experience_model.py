"The experience model: its prompt, its strict answers, grounding, the two losses, and the dream as an environment."

import json
import re

import numpy as np
import pytest
from conftest import ScriptedModel
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

import dreamgym.experience_model as module
from dreamgym.environments import ANY_TEXT, Grammar, InvalidAction
from dreamgym.experience_model import (
    Demonstration,
    DreamBatch,
    DreamEnvironment,
    ExperienceExample,
    ExperienceModel,
    Imagined,
    Query,
    annotated_steps,
    choose_steps,
    demonstration_of,
    experience_prompt,
    ground,
    judge_answers,
    judgement_examples,
    nearest_rows,
    parse_answer,
    remembered_page,
    render_answer,
    repeated_steps,
    split_steps,
    variation_examples,
    variation_prompt,
)
from dreamgym.fast_model import LanguageModel
from dreamgym.language_model import choose_placement
from dreamgym.pages import Element, PageGrammar, explain_transition, mask_quoted, quote, render_state
from dreamgym.trajectories import END_STATE, FAILURE_STATE, DreamgymError, Task, Trajectory, Transition

START = "[1] button 'Knock'\n[2] button 'Open'\n[3] button 'Sing'"
DOOR = Task(id="door/0", kind="door", goal="Get in.", start_state=START)
PAGES = PageGrammar()
PAGE = "text Name\n[1] input ''\n[2] checkbox 'Rr' off\n[3] button 'Submit'"


def door(prompt):
    touched = prompt.rpartition("clicks button ")[2]
    if touched.startswith("Open"):
        return " The door opens.\n=> success"
    return " Nobody hears.\n=> goes on\nsame" if touched.startswith("Knock") else "Hm."


def step(state=PAGE, action="click 3", next_state=END_STATE, reward=0.0, done=True, reasoning="It clicks."):
    return Transition(state=state, action=action, next_state=next_state, reward=reward, done=done, reasoning=reasoning)


def make_examples(kinds=("a", "b"), tasks=6):
    "Per task a step that goes on, then a success or a failure."
    output = []
    for kind in kinds:
        for seed in range(tasks):
            filled = PAGE.replace("''", f"'n{seed}'")
            task = Task(id=f"{kind}/{seed}", kind=kind, seed=seed, goal=f'Enter "n{seed}" in {kind}.', start_state=PAGE)
            output.append(Trajectory(task=task, transitions=(
                step(PAGE, f"type 1 n{seed}", filled, 0.0, False, "It types. A field changes."),
                step(filled, "click 3", reward=float(seed % 2), reasoning=f"It clicks. This ends the task {seed}."))))
    return annotated_steps(output, PAGES)


@pytest.fixture
def tiny(tiny_model, tiny_tokenizer):
    network = tiny_model.requires_grad_(False)
    return ExperienceModel(LanguageModel(network, tiny_tokenizer, choose_placement("cpu", "float32")).add_adapter(4),
                           grammar=PAGES)


# ---------------------------------------------------------------- the question


def test_what_questions_share_stands_first():
    query = Query(DOOR, START, "click 1", ("one", "two", "three"), (Demonstration("g1", "a1", "o1"), Demonstration("g2", "a2", "o2")))
    text = experience_prompt(query, history_length=2, grammar=PAGES)
    assert text.startswith(f"Task: Get in.\nPage:\n{START}\n") and text.endswith("Think:")
    assert "two; three" in text and "one" not in text.replace("goes on", "")
    assert text.index("g2") < text.index("g1") < text.index("click 1"), "the most similar one stands next to the action"
    assert "three" not in experience_prompt(query, history_length=0)
    assert experience_prompt(query, reasoning=False).endswith("-\n")


def test_demonstrations_say_how_it_ended():
    outcomes = [demonstration_of(DOOR, t, PAGES).outcome for t in (
        step(next_state=PAGE, done=False), step(reward=1.0), step(reward=0.0))]
    assert outcomes == ["goes on", "success", "failure"]


def test_steps_are_distinct_and_know_their_past():
    examples = make_examples(("a",), 2)
    assert [e.query.history for e in examples] == [(), ("types n0 into 1st input",), (), ("types n1 into 1st input",)]
    twice = [Trajectory(task=DOOR, transitions=(step(START, "click 2"),))] * 2
    slip = Trajectory(task=DOOR, transitions=(Transition(
        state=START, action="sing", next_state=FAILURE_STATE, reward=0.0, done=True, invalid=True),))
    failed = Trajectory(task=DOOR, transitions=(slip.transitions[0].model_copy(update={"invalid": False, "broken": True}),))
    assert len(annotated_steps([*twice, slip, failed], PAGES)) == 1, "the grammar refuses the slip without a model"
    free = annotated_steps([*twice, slip, failed])
    assert [e.query.action for e in free] == ["click 2", "sing"], "where any text is an action, the world's refusal is learned"
    assert render_answer(free[1].transition)[1] == "=> failure" and not parse_answer(" No.\n=> failure", START).reward
    unread = slip.model_copy(update={"real": False})  # an answer of a dream that could not be read
    assert not annotated_steps([unread]) and not annotated_steps([unread], PAGES)


# ---------------------------------------------------------------- the answer


def random_page(random):
    words = ["", "a", "It's", "b \\ c", "=> success", "same", "edit", "Zoë", "[1]"]
    elements = []
    for number in range(random.integers(1, 6)):
        word = str(random.choice(words))
        tag = str(random.choice(["text", "button", "input", "checkbox", "select"]))
        if tag == "text":
            elements.append(Element(None, "text", word or "x"))
        else:
            on = bool(random.integers(2)) if tag == "checkbox" else None
            elements.append(Element(number + 1, tag, word, on, ("u", "v'w") if tag == "select" else ()))
    return render_state(elements)


def test_every_answer_is_read_back():
    random = np.random.default_rng(0)
    for _ in range(400):
        before, after = random_page(random), random_page(random)
        if random.random() < 0.3:
            after = before
        done = bool(random.integers(2))
        transition = step(before, "click 1", END_STATE if done else after, float(done and random.integers(2)), done)
        answer = parse_answer("".join(render_answer(transition, PAGES)), before, PAGES)
        assert (answer.state, answer.reward, answer.done, answer.valid, answer.reasoning) == (
            transition.next_state, transition.reward, done, True, "It clicks.")


@pytest.mark.parametrize("after, form", [
    (PAGE, "same"), (PAGE.replace("off", "on"), "edit\n[2] checkbox 'Rr' on"),
    (PAGE.replace("Name", "Names"), "page\n" + PAGE.replace("Name", "Names")), ("text Bye", "page\ntext Bye"),
])
def test_only_what_changes_is_spelled_out(after, form):
    assert render_answer(step(next_state=after, done=False), PAGES) == (" It clicks.\n", "=> goes on\n" + form)


@pytest.mark.parametrize("text", [
    "", "\n", "It clicks.", "=> success", "It ends.\n=> victory", "It ends.\n=>success", "It ends.\n=> success\nsame",
    "It ends.\nIt ends.\n=> success", "On.\n=> goes on", "On.\n=> goes on\n", "On.\n=> goes on\nedit", "On.\n=> goes on\npage",
    "On.\n=> goes on\nsame\nsame", "On.\n=> goes on\nedit\n[9] input 'x'", "On.\n=> goes on\nedit\ntext Name",
    "On.\n=> goes on\nedit\n[1] input x", "On.\n=> goes on\npage\n<b>Hi</b>", "On.\n=> goes on\npage\n[1] link 'a'\n[1] link 'b'",
    f"On.\n=> goes on\npage\n{END_STATE}", f"On.\n=> goes on\npage\n{FAILURE_STATE}", "On.\n=> goes on\nnew\n[1] link 'a'",
    "__import__('os').remove('x')",
])
def test_a_malformed_answer_is_a_failure(text):
    answer = parse_answer(text, PAGE, PAGES)
    assert answer == Imagined("", FAILURE_STATE, 0.0, True, False, text)


def test_no_text_breaks_the_parser():
    random, pieces = np.random.default_rng(1), ["=> ", "success", "goes on", "\n", "same", "edit", "page", "[1] input 'x'", "é'", " "]
    for _ in range(500):
        answer = parse_answer("".join(random.choice(pieces, size=random.integers(0, 12))), PAGE, PAGES)
        assert answer.reward in (0.0, 1.0) and (answer.done or answer.valid)


LINES = st.lists(st.sampled_from(["a door", "a lamp, lit", "same", "edit", "page", "=> success", "2= x", "", " ", "Zoë"]), max_size=6)
TEXTS = st.one_of(LINES.map("\n".join), st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
STATES = TEXTS.map(lambda text: text.strip("\n").rstrip()).filter(bool)  # as an environment of one's own may write them


@given(STATES, STATES)
def test_every_answer_of_a_world_of_free_text_is_read_back(before, after):
    told = "".join(render_answer(step(before, "go north", after, 0.0, False)))
    answer = parse_answer(told, before)
    assert (answer.state, answer.reward, answer.done, answer.valid) == (after, 0.0, False, True)


class Remembering(Grammar):
    "A world of long states: another page is told by a remembered one."

    remembers = True

    def change(self, before, after):
        change = super().change(before, after)
        return change if change.count("\n") <= 1 else f"page\n{after}"


LONG, ROOM = Remembering(), "a hall\na door\na lamp\na cat\na rug"


@given(STATES, STATES, STATES)
def test_every_answer_is_read_back_with_a_remembered_page(before, after, remembered):
    told = "".join(render_answer(step(before, "go north", after, 0.0, False), LONG, remembered))
    answer = parse_answer(told, before, LONG, remembered)
    assert (answer.state, answer.reward, answer.done, answer.valid) == (after, 0.0, False, True)
    assert len(told) <= len("".join(render_answer(step(before, "go north", after, 0.0, False), LONG)))


def test_another_page_is_told_by_what_differs_from_the_remembered_one():
    told = lambda after, like: render_answer(step(ROOM, "go", after, 0.0, False), LONG, like)[1].removeprefix("=> goes on\n")  # noqa: E731
    cellar = "a cellar\na barrel\na rat\na hatch above"
    assert told(cellar, cellar) == "like"
    assert told(cellar, cellar.replace("a rat", "a bat")) == "like\n3= a rat"
    assert told(cellar, "") == told(cellar, "one\ntwo\nthree") == f"page\n{cellar}"
    assert told(ROOM.replace("a lamp", "a lamp, lit"), cellar) == "edit\n3= a lamp, lit", "a small change stays one"


@pytest.mark.parametrize("change", ["like\n\n1= x", "like\n5= x", "like\n1= x\n1-", "like\nx", "like like", "Like"])
def test_a_malformed_use_of_a_remembered_page_fails(change):
    assert not parse_answer(f"On.\n=> goes on\n{change}", ROOM, LONG, "a cellar\na rat").valid
    assert not parse_answer("On.\n=> goes on\nlike", ROOM, LONG).valid, "nothing is remembered"
    assert not parse_answer("On.\n=> goes on\nlike", ROOM, LONG, END_STATE).valid
    assert parse_answer("On.\n=> goes on\nlike", ROOM, LONG, "a cellar").state == "a cellar"


def test_a_question_shows_the_page_that_the_most_similar_step_opened():
    task = Task(id="t/0", kind="t", goal="Find the rat.", start_state=ROOM)
    opened = demonstration_of(task, step(ROOM, "go down", "a cellar\na rat\na hatch", 0.0, False), LONG)
    lit = demonstration_of(task, step(ROOM, "light", ROOM.replace("a lamp", "a lamp, lit"), 0.0, False), LONG)
    assert opened.page == "a cellar\na rat\na hatch" and not lit.page
    assert not demonstration_of(task, step(ROOM, "go down", "a cellar", 0.0, False), ANY_TEXT).page
    assert not demonstration_of(task, step(ROOM, "go down", END_STATE, 1.0, True), LONG).page
    query = Query(task, ROOM, "go down", (), (lit, opened, opened._replace(page="another")))
    assert remembered_page(query) == opened.page and not remembered_page(query._replace(demonstrations=(lit,)))
    prompt = experience_prompt(query, grammar=LONG)
    assert "Page:\n1= a hall\n2= a door\n" in prompt and prompt.endswith("\nLike:\n1= a cellar\n2= a rat\n3= a hatch\nAction: go down\nThink:")
    assert "1= " not in experience_prompt(query._replace(demonstrations=()))


def test_a_model_answers_with_a_remembered_page():
    model = ExperienceModel(ScriptedModel(lambda prompt: " Down.\n=> goes on\nlike\n2= a bat"), grammar=LONG)
    model.retrieve = lambda queries: [(Demonstration("g", "go down", "goes on", "a cellar\na rat"),)] * len(queries)
    task = Task(id="t/0", kind="t", goal="Find the bat.", start_state=ROOM)
    assert model.imagine([Query(task, ROOM, "go down")])[0].state == "a cellar\na bat"
    example = model.example(ExperienceExample(
        Query(task, ROOM, "go down", (), model.retrieve([0])[0]), step(ROOM, "go down", "a cellar\na bat", 0.0, False), 0))
    assert model.model.decode(example.completion[:-1]).endswith("=> goes on\nlike\n2= a bat")


@pytest.mark.parametrize("change", [
    "", "edit", "edit\n", "edit\n3= x", "edit\n0= x", "edit\n1= x\n1-", "edit\nx", "page", f"page\n{END_STATE}", "two\nlines",
])
def test_a_malformed_answer_fails_in_a_world_of_free_text_too(change):
    assert not parse_answer(f"On.\n=> goes on\n{change}", "a door\na lamp").valid


# ---------------------------------------------------------------- grounding


def test_nearest_rows_are_the_best_of_other_groups():
    random = np.random.default_rng(2)
    vectors = random.normal(size=(40, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = [f"g{i}" for i in random.integers(0, 10, size=40)]
    for i, found in enumerate(nearest_rows(vectors, groups, 4)):
        others = [j for j in range(40) if groups[j] != groups[i]]
        assert found == sorted(others, key=lambda j: -(vectors[i] @ vectors[j]))[:4]


def test_a_row_never_retrieves_its_own_group_even_when_others_run_out():
    vectors = np.eye(4, 3) + 0.1
    assert nearest_rows(vectors, ["a", "a", "a", "b"], 3)[:3] == [[3], [3], [3]]
    assert nearest_rows(vectors, ["a"] * 4, 2) == [[]] * 4
    found = nearest_rows(vectors, list("abcd"), 3, ["x", "x", "y", "x"])
    assert [sorted(row) for row in found] == [[2], [2], [0, 1, 3], [2]]


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.sampled_from("abc"), st.sampled_from("xyz")), max_size=40),
       st.integers(0, 5), st.booleans())
def test_nearest_rows_are_those_of_the_matrix_product_also_among_equals(rows, k, with_texts):
    vectors = np.array([row[:2] for row in rows], float).reshape(-1, 2)  # small whole numbers: many products are equal
    groups, texts = [row[2] for row in rows], [row[3] for row in rows] if with_texts else []
    expected = []
    for i, scores in enumerate(vectors @ vectors.T):
        others = [j for j in range(len(rows)) if groups[j] != groups[i] and not (texts and texts[j] == texts[i])]
        expected.append(sorted(others, key=lambda j: (-scores[j], j))[:k])
    assert nearest_rows(vectors, groups, k, texts) == expected


@pytest.mark.parametrize("copies", [30, 300])
def test_of_many_equal_rows_the_first_are_taken(copies):
    "Many steps read alike; which of them are shown must not depend on how the search breaks a tie."
    random = np.random.default_rng(0)
    kinds = random.normal(size=(5, 16)).astype(np.float32)
    kinds /= np.linalg.norm(kinds, axis=1, keepdims=True)
    order = np.arange(5 * copies) % 5
    found = nearest_rows(kinds[order], [f"task/{i}" for i in range(len(order))], 4, [f"text {i}" for i in order])
    nearest = np.argsort(-(kinds @ kinds.T) + 9 * np.eye(5))[:, 0]
    assert found == [[int(nearest[kind]) + 5 * n for n in range(4)] for kind in order]


def test_an_equal_step_of_another_task_is_no_demonstration():
    class Alike:
        def embed(self, texts):
            return np.ones((len(texts), 1), np.float32)

    examples = make_examples()
    first = examples[0].query
    twin = examples[0]._replace(query=first._replace(task=first.task.model_copy(update={"id": "other/1"})))
    every = len(examples) + 1
    grounded = ground([*examples, twin], Alike(), k=every)
    assert len(grounded[-1].query.demonstrations) == every - 2, "neither itself nor its equal"
    assert len(grounded[0].query.demonstrations) == every - 3, "nor the other step of its task"


def test_grounding_gives_each_query_demonstrations_of_other_tasks():
    class Embedder:
        def embed(self, texts):
            rows = np.array([[t.count("types"), t.count(" a."), t.count(" b."), 0.1] for t in texts], np.float32)
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    examples = make_examples()
    grounded = ground(examples, Embedder(), k=2)
    for example in grounded:
        assert len(example.query.demonstrations) == 2
        assert all(d.goal != example.query.task.goal for d in example.query.demonstrations)
        assert all(d.goal.endswith(f"{example.query.task.kind}.") for d in example.query.demonstrations)
    assert all(not e.query.demonstrations for e in ground(examples, Embedder(), k=2, keep=0.0))
    some = [bool(e.query.demonstrations) for e in ground(examples, Embedder(), k=2, keep=0.5, seed=1)]
    assert 0 < sum(some) < len(some)
    assert some == [bool(e.query.demonstrations) for e in ground(examples, Embedder(), k=2, keep=0.5, seed=1)]


# ---------------------------------------------------------------- losses


def test_an_example_is_the_answer_with_heavier_verdict_tokens(tiny):
    for item in make_examples(("a",), 2):
        example = tiny.example(item, outcome_weight=3.0)
        trace, result = render_answer(item.transition, PAGES)
        assert tiny.model.decode(example.completion[:-1]) == trace + result
        assert example.completion[-1] == tiny.model.end and len(example.weights) == len(example.completion)
        heavy = tiny.model.decode([t for t, w in zip(example.completion, example.weights, strict=True) if w == 3.0])
        assert result.split("\n")[0] in heavy and not heavy.startswith(" It")
        bare = tiny.example(item, 3.0, reasoning=False)
        assert tiny.model.decode(bare.completion[:-1]) == result


def test_the_two_losses_are_means_over_their_own_tokens(tiny):
    examples = make_examples(("a",), 3)
    parts = tiny.loss_parts(examples)
    rows = tiny.model.log_probabilities([tiny.example(e) for e in examples])
    cuts = [len(tiny.model.encode(render_answer(e.transition, PAGES)[0])) for e in examples]
    first = np.concatenate([row[:cut] for row, cut in zip(rows, cuts, strict=True)])
    second = np.concatenate([row[cut:] for row, cut in zip(rows, cuts, strict=True)])
    assert parts == pytest.approx({"reasoning": -first.mean(), "next_state_and_reward": -second.mean()}, abs=1e-5)


def test_fitting_lowers_the_loss_and_forgets_old_answers(tiny):
    examples = make_examples()
    before = tiny.loss_parts(examples)
    tiny.answers[("old",)] = Imagined("", "", 0.0, True)
    losses = tiny.fit(examples, epochs=4, budget=60_000, learning_rate=1e-2, seed=3)
    after = tiny.loss_parts(examples)
    assert losses[-1] < losses[0] and all(after[part] < before[part] for part in before) and not tiny.answers


def test_the_tokens_of_an_optimiser_step_are_a_size(tiny):
    examples = make_examples()
    many, few = (len(tiny.fit(examples, epochs=1, budget=60_000, seed=3, step_tokens=tokens)) for tokens in (1, 100_000))
    assert (many, few) == (len(examples), 1), "the same tokens, in small steps and in one"


def test_fitting_leaves_templates_of_many_outcomes_to_guess_from(tiny):
    assert tiny.model.templates == []
    tiny.fit(make_examples(("a", "b", "c"), 12), epochs=1, budget=60_000, learning_rate=1e-2, seed=3)
    told = [tiny.model.decode(template) for template in tiny.model.templates]
    assert len(told) == 16 and all(template[-1] == tiny.model.end for template in tiny.model.templates)
    for outcome in ("=> success", "=> failure", "=> goes on"):
        assert any(outcome in text for text in told[:9]), "each outcome of each task type has its turn"


# ---------------------------------------------------------------- what is trained on


def test_the_budget_is_filled_evenly():
    examples = make_examples(("a", "b", "c"), 12)
    lengths = [10 + i % 7 for i in range(len(examples))]
    chosen = choose_steps(examples, lengths, budget=300, seed=1)
    assert len(set(chosen)) == len(chosen) and sum(lengths[i] for i in chosen) <= 300
    counts = {}
    for i in chosen:
        key = examples[i].query.task.kind, examples[i].transition.done, examples[i].transition.reward
        counts[key] = counts.get(key, 0) + 1
    wrong, others = ([n for key, n in counts.items() if (key[1:] == (True, 0.0)) is lost] for lost in (True, False))
    assert len(counts) == 9 and max(wrong) - min(wrong) <= 1 and max(others) - min(others) <= 1
    assert 1.2 < (sum(wrong) / 3) / (sum(others) / 6) < 1.9, "wrong endings get three turns for two"
    assert choose_steps(examples, lengths, 300, 1) == chosen != choose_steps(examples, lengths, 300, 2)
    assert choose_steps(examples, lengths, 0) == [] and choose_steps([], [], 100) == []


def test_what_takes_more_effort_is_practised_more():
    examples = make_examples(("a",), 60)
    effort = [9.0 if e.transition.done else 1.0 for e in examples]
    chosen = choose_steps(examples, [10] * len(examples), budget=700, seed=1, effort=effort)
    ended = sum(examples[i].transition.done for i in chosen)
    assert len(chosen) == 70 and abs(ended - 60) <= 2, "two piles of endings at the root of nine, one of other steps at one"
    # a pile that runs out leaves its share to the others
    few = [e for e in examples if not e.transition.done] + [e for e in examples if e.transition.done][:4]
    assert len(choose_steps(few, [10] * len(few), 10_000, effort=[1.0] * len(few))) >= len(few) - 4


def told_by(model, example):
    "The words of an example that carry loss."
    return model.decode([t for t, w in zip(example.completion, example.weights, strict=True) if w > 1]).strip()


def test_judgements_alone_carry_loss_on_their_verdicts_only(tiny):
    page, goal = "[1] input '{}'\n[2] button 'Go'", 'Enter "no" and press Go.'
    steps = []
    for number, (typed, reward) in enumerate([("no", 1.0), ("yes", 0.0), ("", 0.0), ("no", 1.0)]):
        task = Task(id=f"a/{number}", kind="a", seed=number, goal=goal, start_state=page.format(""))
        step = Transition(state=page.format(typed), action="click 2", next_state=END_STATE, reward=reward, done=True)
        step = step.model_copy(update={"reasoning": explain_transition(task, step)})
        steps.append(ExperienceExample(Query(task, step.state, step.action), step, number))
    found = judgement_examples(tiny.model, steps, 3, weight=3.0, seed=1, grammar=PAGES)
    assert len({tuple(e.completion) for e in found}) == 3
    heads = [tiny.model.decode(e.completion).split(" for ")[0].removeprefix(" Check: ") for e in found]
    told = {head: told_by(tiny.model, e) for head, e in zip(heads, found, strict=True)}
    assert {tiny.model.decode(e.prompt) for e in found} == {"Think: Task names no. It clicks button Go."}
    assert told["no"] == "yes complete. This ends the task well.\n=> success"
    assert told["yes"] == told["nothing"] == "no not complete. This ends the task badly.\n=> failure"
    assert all("badly" in words for name, words in told.items() if name != "no")
    assert all(set(e.weights) <= {0.0, 1.0, 3.0} and len(e.weights) == len(e.completion) for e in found)
    two = judgement_examples(tiny.model, steps, 2, seed=1, grammar=PAGES)
    assert [e.completion for e in two] == [e.completion for e in found[:2]]
    assert judgement_examples(tiny.model, steps, 0, grammar=PAGES) == []
    assert judgement_examples(tiny.model, [], 5, grammar=PAGES) == []
    assert judgement_examples(tiny.model, steps, 3) == [], "in a world of free text there is nothing to compare"
    lost = [step for step in steps if not step.transition.reward]
    assert len(judgement_examples(tiny.model, 9 * lost, 99, grammar=PAGES)) == 8, "equal ones come four times at most"
    assert len(judgement_examples(tiny.model, lost, 10, grammar=PAGES)) == 2, "only right comparisons are varied"


def test_where_comparisons_run_out_others_with_a_true_verdict_are_made(tiny):
    page, goal = "[1] input '{}'\n[2] input '{}'\n[3] button 'Go'", 'Enter the name "jess" and the password "XYdmf", press Go.'
    task = Task(id="a/0", kind="a", goal=goal, start_state=page.format("", ""))
    step = Transition(state=page.format("jess", "XYdmf"), action="click 3", next_state=END_STATE, reward=1.0, done=True)
    step = step.model_copy(update={"reasoning": explain_transition(task, step)})
    example = ExperienceExample(Query(task, step.state, step.action), step, 0)
    found = judgement_examples(tiny.model, [example], 41, seed=1, grammar=PAGES)
    texts = [tiny.model.decode(e.completion).removesuffix("<end>").strip() for e in found]
    assert len(texts) == 41 and len(set(texts)) > 30
    for text, example in zip(texts, found, strict=True):
        pairs = re.findall(r"(\S+) for (\S+) (yes|no)", text)
        assert f"names {pairs[0][1]}, {pairs[1][1]}. It clicks button Go." in tiny.model.decode(example.prompt)
        assert len(pairs) == 2 and all((held == named) == (verdict == "yes") for held, named, verdict in pairs), text
        good = all(verdict == "yes" for *_, verdict in pairs)
        assert ("not complete" not in text) == ("well.\n=> success" in text) == good
    assert sum("success" in text for text in texts) == 21


@pytest.mark.parametrize("name, secret", [
    ("wait for me", "a, complete. This ends the task well."), ("no", "say no"), ("x Check: y for y yes, z", "'tis"),
    ("a for a yes", "a"), ("nothing", "nothing for nothing yes"), ("b. It clicks button Go. Check: b", "b"),
])
def test_practice_reads_texts_that_look_like_a_trace(tiny, name, secret):
    page, goal = "[1] input {}\n[2] password {}\n[3] button 'Go'", f'Enter "{name}" and "{secret}" and press Go.'
    task = Task(id="a/0", kind="a", goal=goal, start_state=page.format("''", "''"))
    step = Transition(state=page.format(quote(name), quote(secret)), action="click 3", next_state=END_STATE, reward=1.0, done=True)
    step = step.model_copy(update={"reasoning": explain_transition(task, step)})
    example = ExperienceExample(Query(task, step.state, step.action), step, 0)
    whole = tiny.example(example, 3.0)
    heavy = tiny.model.decode([t for t, w in zip(whole.completion, whole.weights, strict=True) if w == 3.0])
    assert heavy.startswith(" Check: ") and heavy.endswith("=> success") and mask_quoted(heavy).count(" Check: ") == 1
    for drill in judgement_examples(tiny.model, [example], 12, 3.0, seed=1, grammar=PAGES):
        facts, clause = tiny.model.decode(drill.prompt), tiny.model.decode(drill.completion).removesuffix("<end>")
        check, _, result = mask_quoted(clause).rpartition(" This ends the task ")
        pairs = re.finditer(r"(?<=[:,] )(\S.*?) for (\S.*?) (yes|no)(?=,)", check)
        pairs = [(clause[slice(*m.span(1))], clause[slice(*m.span(2))], m[3]) for m in pairs]
        assert len(pairs) == 2 and all((held == named) == (said == "yes") for held, named, said in pairs), clause
        good = all(said == "yes" for *_, said in pairs)
        assert (check.endswith(", complete."), result == "well.\n=> success") == (good, good), clause
        assert [f"Task names {pairs[0][1]}, {pairs[1][1]}. It clicks button Go."] == [facts.removeprefix("Think: ")]
        paid = tiny.model.decode([t for t, w in zip(drill.completion, drill.weights, strict=True) if w == 3.0])
        assert paid.startswith(f" {pairs[0][2]} {pairs[1][2]} {'complete' if good else 'not complete'}. This ends")


def test_no_ending_prevails():
    examples = make_examples(("a",), 12)
    won = [e for e in examples if e.transition.reward]
    crowd = examples + [e._replace(episode=100 + i) for e in won for i in range(20)]
    chosen = [crowd[i].transition for i in choose_steps(crowd, [1] * len(crowd), 10_000)]
    wins, losses = (sum(t.done and t.reward == r for t in chosen) for r in (1.0, 0.0))
    assert losses == 6 and wins <= 1.25 * losses


def test_whole_tasks_are_held_out():
    training, held = split_steps(make_examples(tasks=12), every=6)
    assert {e.query.task.seed for e in held} == {5, 11} and not {e.query.task.id for e in training} & {e.query.task.id for e in held}


def test_variations_stay_within_their_type(tiny):
    tasks = [e.query.task for e in make_examples()]
    pairs = variation_examples(tiny.model, tasks, 8, seed=1)
    assert len(pairs) == 8
    for pair in pairs:
        asked, answer = tiny.model.decode(pair.prompt), tiny.model.decode(pair.completion)
        assert asked in {variation_prompt(t) for t in tasks} and "\nPage:\n" in answer
        goal = answer.split("\n")[0].strip()
        assert goal[-2:] == asked.split("\n")[0][-2:] and goal not in asked, "another task of the same type"
    assert variation_examples(tiny.model, tasks[:1], 8) == []


def test_an_invented_task_that_was_cut_off_is_none():
    model = ExperienceModel(ScriptedModel(lambda prompt: prompt.split("\n")[0]), grammar=PAGES, maximum_tokens=14)
    assert model.invent([DOOR, DOOR.model_copy(update={"goal": "Sing aloud."})]) == ["Task: Get in.", None]


def test_invented_tasks_come_one_a_parent():
    model = ExperienceModel(ScriptedModel(lambda prompt: prompt.split("\n")[0]), grammar=PAGES)
    assert model.invent([DOOR, DOOR.model_copy(update={"goal": "Sing."})]) == ["Task: Get in.", "Task: Sing."]


# ---------------------------------------------------------------- imagining


def test_equal_questions_are_asked_once():
    model = ExperienceModel(ScriptedModel(door), grammar=PAGES)
    knock, enter = Query(DOOR, START, "click 1"), Query(DOOR, START, "click 2")
    answers = model.imagine([knock, enter, knock])
    assert [a.reward for a in answers] == [0.0, 1.0, 0.0] and len(model.model.prompts) == 2
    assert model.imagine([enter]) == [answers[1]] and len(model.model.prompts) == 2
    model.imagine([knock._replace(history=("sings",))])
    assert len(model.model.prompts) == 3, "another history is another question"
    model.forget()
    model.imagine([enter])
    assert len(model.model.prompts) == 4 and model.imagine([]) == []


def test_unreadable_answers_are_counted():
    model = ExperienceModel(ScriptedModel(door), grammar=PAGES)
    answers = model.imagine([Query(DOOR, START, f"click {i}") for i in (1, 2, 3)])
    assert [a.valid for a in answers] == [True, True, False] and (model.asked, model.unparsable) == (3, 1)
    assert (answers[2].state, answers[2].reward, answers[2].done, answers[2].text) == (FAILURE_STATE, 0.0, True, "Hm.")


LOGIN = "[1] input 'Ada'\n[2] button 'Submit'"
SIGN = Task(id="sign/0", kind="sign", seed=0, goal='Enter "ada" and press Submit.', start_state=LOGIN)


@pytest.mark.parametrize("compared, suspicious, reward, doubt", [
    ("Ada for ada yes", True, 0.0, "'Ada' for 'ada': a wrong verdict"), ("Ada for ada yes", False, 1.0, ""),
    ("ada for ada yes", True, 0.0, "the page does not hold 'ada'"),
])
def test_a_success_that_its_trace_denies_is_a_failure(compared, suspicious, reward, doubt):
    claim = f" Task names ada. It clicks button Submit. Check: {compared}, complete. This ends the task well.\n=> success"
    model = ExperienceModel(ScriptedModel(lambda prompt: claim), grammar=PAGES)
    model.suspicious = suspicious
    dream = DreamBatch(model, 4)
    dream.reset_batch([SIGN])
    state, paid, ended, truncated, info = dream.step_batch(["click 2"])[0]
    assert (state, paid, ended, truncated) == (END_STATE, reward, True, False)
    assert "invalid" not in info and info.get("doubt", "") == doubt and model.doubted == bool(doubt)
    assert info["reasoning"].endswith(f" Refused: {doubt}." if doubt else "This ends the task well.")
    assert model.unparsable == 0 and model.imagine([Query(SIGN, LOGIN, "click 2")])[0].reward == reward


def test_a_failure_is_never_doubted():
    claim = " Task names Bob. It clicks button Submit. Check: x for Bob yes, complete. This ends the task badly.\n=> failure"
    model = ExperienceModel(ScriptedModel(lambda prompt: claim), grammar=PAGES)
    answer = model.imagine([Query(SIGN, LOGIN, "click 2")])[0]
    assert (answer.reward, answer.doubt, model.doubted) == (0.0, "", 0)


def test_an_answer_that_was_cut_is_unreadable():
    rule = lambda prompt: " On.\n=> goes on\npage\ntext one\ntext two"  # noqa: E731
    whole, cut = (ExperienceModel(ScriptedModel(rule), grammar=PAGES, maximum_tokens=most) for most in (200, 35))
    query = Query(DOOR, START, "click 1")
    assert whole.imagine([query])[0].state == "text one\ntext two" and not cut.imagine([query])[0].valid


def test_a_page_that_never_ends_is_drawn_once_more():
    def rule(prompt):
        return "\npage\ntext two" if prompt.endswith("=> goes on") else " On.\n=> goes on\npage" + "\ntext one" * 9

    queries = [Query(DOOR, START, "click 1"), Query(DOOR, START, "click 2")]
    model = ExperienceModel(ScriptedModel(rule), grammar=PAGES, maximum_tokens=60)
    answers = model.imagine(queries)
    assert [(a.reasoning, a.state, a.valid) for a in answers] == [("On.", "text two", True)] * 2
    (_, greedy, _), (prompts, temperature, seeds) = model.model.calls
    assert greedy == 0 < temperature and all(p.endswith(" On.\n=> goes on") for p in prompts)
    assert len(set(seeds)) == 2, "every question has its own chance"
    alone = ExperienceModel(ScriptedModel(rule), grammar=PAGES, maximum_tokens=60)
    alone.imagine(queries[1:])
    assert alone.model.calls[1][2] == seeds[1:], "whoever else is asked"
    bare = ExperienceModel(ScriptedModel(rule), grammar=PAGES, maximum_tokens=60)
    bare.reasoning = False
    assert bare.imagine(queries)[0].valid is False, "nothing is drawn where no page was begun"


def test_retrieval_fills_what_is_missing():
    model, shown = ExperienceModel(ScriptedModel(door), grammar=PAGES), Demonstration("An old goal.", "knocks", "failure")
    model.retrieve = lambda queries: [(shown,)] * len(queries)
    own = Demonstration("My own.", "waits", "goes on")
    model.imagine([Query(DOOR, START, "click 1"), Query(DOOR, START, "click 2", (), (own,))])
    assert "An old goal." in model.model.prompts[0]
    assert "My own." in model.model.prompts[1] and "An old goal." not in model.model.prompts[1]


def test_answers_without_a_trace():
    model = ExperienceModel(ScriptedModel(lambda prompt: "=> success"), grammar=PAGES)
    model.reasoning = False
    (answer,) = model.imagine([Query(DOOR, START, "click 2")])
    assert answer.valid and answer.reward == 1.0 and model.model.prompts[0].endswith("-\n")


# ---------------------------------------------------------------- quality


def test_quality_is_balanced():
    query, won, lost = Query(DOOR, PAGE, "click 3"), step(reward=1.0), step()
    goes = step(next_state=PAGE.replace("off", "on"), done=False)
    steps = [ExperienceExample(query, t, 0) for t in (won, won, won, lost, goes, goes)]
    right = [Imagined("", t.transition.next_state, t.transition.reward, t.transition.done) for t in steps]
    best = judge_answers(steps, right)
    assert best["balanced_reward_accuracy"] == best["termination_accuracy"] == best["state_exact"] == best["state_lines"] == 1.0
    flattering = [*right[:3], Imagined("", END_STATE, 1.0, True), Imagined("", PAGE, 0.0, False),
                  Imagined("", FAILURE_STATE, 0.0, True, False)]
    worse = judge_answers(steps, flattering)
    assert (worse["success_recognised"], worse["failure_recognised"], worse["balanced_reward_accuracy"]) == (1.0, 0.0, 0.5)
    assert (worse["state_exact"], worse["state_lines"], worse["unparsable"]) == (0.0, 3 / 8, 1 / 6)
    assert (best["steps"], best["successes"], best["failures"]) == (6, 3, 1)


def test_what_no_step_shows_is_not_measured():
    won = ExperienceExample(Query(DOOR, PAGE, "click 3"), step(reward=1.0), 0)
    found = judge_answers([won], [Imagined("", END_STATE, 1.0, True)])
    assert (found["success_recognised"], found["failure_recognised"], found["balanced_reward_accuracy"]) == (1.0, None, None)
    assert found["state_exact"] is found["state_lines"] is None and found["termination_accuracy"] == 1.0
    assert set(judge_answers([], []).values()) == {0, None}
    json.dumps([found, judge_answers([], [])], allow_nan=False)


def test_repeated_steps_are_counted():
    training, held = split_steps(make_examples(tasks=12), every=6)
    assert repeated_steps(training, training) == len(training) and repeated_steps(held, []) == 0
    twin = held[0]._replace(query=held[0].query._replace(task=held[0].query.task.model_copy(update={"id": "other/1"})))
    other = held[0]._replace(query=held[0].query._replace(state=PAGE + "\ntext more"))
    assert repeated_steps([twin, other], held) == 1, "another task, the same goal, page and action"


def test_an_unreadable_answer_is_no_recognised_failure():
    steps = [ExperienceExample(Query(DOOR, PAGE, "click 3"), step(), 0)]
    assert judge_answers(steps, [Imagined("", FAILURE_STATE, 0.0, True, False)])["failure_recognised"] == 0.0


# ---------------------------------------------------------------- the dream


def test_the_dream_keeps_the_contract():
    dream = DreamBatch(ExperienceModel(ScriptedModel(door), grammar=PAGES), maximum_steps=2)
    assert dream.reset_batch([DOOR] * 5) == [DOOR] * 5 and not dream.real
    first = dream.step_batch(["click 2", " click 1 ", "click 9", "sing", "click 3"])
    assert [r[1:4] for r in first] == [(1.0, True, False), (0.0, False, False)] + [(0.0, True, False)] * 3
    assert [r[0] for r in first] == [END_STATE, START, FAILURE_STATE, FAILURE_STATE, FAILURE_STATE]
    assert ["invalid" in r[4] for r in first] == [False, False, True, True, True]
    assert len(dream.model.model.prompts) == 3, "what the page does not offer is not asked"
    second = dream.step_batch([None, "click 1", None, None, None])
    assert second[0] is None and second[1][2:4] == (False, True), "out of steps: truncated, not terminated"
    assert "clicks button Knock" in dream.model.model.prompts[-1].split("Past")[1], "the history is shown"
    assert dream.transitions == 6 and dream.step_batch([None] * 5) == [None] * 5


def test_a_world_of_free_text_is_dreamed_too():
    class Lock(Grammar):
        def check_action(self, action, state):
            if "jump" in action:
                raise InvalidAction("Nobody jumps here.")

        def doubt(self, trace, task, state):
            return "the door is shut" if "shut" in state else ""

    def rule(prompt):
        return " It opens.\n=> success" if "go in" in prompt else " It turns.\n=> goes on\nedit\n2= open"

    def story(grammar):
        dream = DreamBatch(ExperienceModel(ScriptedModel(rule), grammar=grammar), maximum_steps=3)
        dream.reset_batch([DOOR.model_copy(update={"start_state": "a door\nshut"})] * 3)
        first = dream.step_batch(["turn the key", "jump over", "go in"])
        assert dream.model.model.prompts[0].endswith("Action: turn the key\nThink:")
        second = dream.step_batch(["go  in", None, None])
        assert dream.model.model.prompts[-1].count("Past: turn the key\n") == 1
        return [(state, reward, ended) for state, reward, ended, *_ in (*first, second[0])]

    open_door, won = ("a door\nopen", 0.0, False), (END_STATE, 1.0, True)
    assert story(ANY_TEXT) == [open_door, open_door, won, won]
    assert story(Lock()) == [open_door, (FAILURE_STATE, 0.0, True), (END_STATE, 0.0, True), won]


def test_a_dream_needs_goal_and_first_page():
    dream = DreamBatch(ExperienceModel(ScriptedModel(door), grammar=PAGES))
    for change in ({"goal": ""}, {"start_state": ""}):
        with pytest.raises(DreamgymError, match="door/0"):
            dream.reset_batch([DOOR, DOOR.model_copy(update=change)])
    with pytest.raises(DreamgymError, match="Pass the task to reset"):
        DreamEnvironment(ExperienceModel(ScriptedModel(door), grammar=PAGES)).reset()


def test_one_episode_is_a_gymnasium_environment():
    class OneDoor(DreamEnvironment):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed, options={"task": DOOR})

    check_env(OneDoor(ExperienceModel(ScriptedModel(door), grammar=PAGES)), skip_render_check=True)
    environment = DreamEnvironment(ExperienceModel(ScriptedModel(door), grammar=PAGES), maximum_steps=3)
    state, info = environment.reset(seed=5, options={"task": DOOR})
    assert (state, info["task"]) == (START, DOOR)
    results = [environment.step("click 1") for _ in range(3)]
    assert [r[3] for r in results] == [False, False, True]


def test_dreams_repeat(tiny):
    def episode():
        dream = DreamBatch(tiny, 2)
        dream.reset_batch([DOOR] * 3)
        return dream.step_batch(["click 1", "click 2", "click 3"])

    tiny.maximum_tokens = 8
    first = episode()
    tiny.forget()
    assert episode() == first


# ---------------------------------------------------------------- the stage


def test_the_stage_trains_once_and_loads(quick_run, tiny_tokenizer, make_tiny_model, monkeypatch):
    def fresh(run):
        network = make_tiny_model().requires_grad_(False)
        model = LanguageModel(network, tiny_tokenizer, choose_placement("cpu", "float32")).add_adapter(4, run.seed)
        return ExperienceModel(model, run.scale.history_length)

    monkeypatch.setattr(module, "new_experience_model", fresh)
    monkeypatch.setattr(module, "training_steps", lambda run: split_steps(make_examples())[0])
    path = module.experience_model(quick_run)
    record = quick_run.metrics()["experience_model"]
    assert (path / "adapter_model.safetensors").exists() and record["training_steps"] == 20 and record["losses"]
    again = module.load_experience_model(quick_run)
    examples = make_examples(("c",), 2)
    assert again.loss_parts(examples) != fresh(quick_run).loss_parts(examples)
    monkeypatch.setattr(module, "training_steps", None)
    assert module.experience_model(quick_run) == path
