"Web pages as text, actions on them, the traces of the rules, and the grammar that holds them together."

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dreamgym import pages
from dreamgym.environments import InvalidAction, StateError
from dreamgym.pages import (
    Action,
    Element,
    PageGrammar,
    check_action,
    describe_action,
    explain_transition,
    ids_last,
    mask_quoted,
    named_texts,
    one_line,
    parse_action,
    parse_state,
    quote,
    render_element,
    render_state,
    sample_trajectories,
    text_of_trace,
    trace_fault,
    trace_text,
    unquote,
)
from dreamgym.runs import data_folder
from dreamgym.suites.miniwob import TRAINING_KINDS, load_panel
from dreamgym.trajectories import END_STATE, FAILURE_STATE, Task, Transition
PAGE = "text Username\n[1] input ''\n[2] password 'x'\n[3] select 'a' of 'a' | 'it\\'s'\n[4] checkbox 'b' off\n[5] button 'Go'"


# ---------------------------------------------------------------- pages as text


def random_text(random) -> str:
    letters = list("ab'\\[]|\"19() é中") + ["on", " of ", "text "]
    return " ".join("".join(random.choice(letters, size=random.integers(0, 9))).split())


def random_element(random, number: int) -> Element:
    text = random_text(random)
    match random.integers(4):
        case 0:
            return Element(None, "text", text or "x")
        case 1:
            return Element(number, "checkbox", text, on=bool(random.integers(2)))
        case 2:
            return Element(number, "select", text, options=tuple(random_text(random) for _ in range(1 + number % 4)))
    return Element(number, "button", text)


def test_a_page_can_be_read_back():
    random = np.random.default_rng(0)
    for _ in range(500):
        elements = [random_element(random, number) for number in range(1, 2 + random.integers(8))]
        assert parse_state(render_state(elements)) == elements
    for state in (PAGE, ""):
        assert render_state(parse_state(state)) == state


PLAIN = st.text(st.characters(codec="utf-8")).map(one_line)
QUOTED = PLAIN.map(str.strip)
TAGS = st.sampled_from(["button", "link", "input", "checkbox", "select", "text", "icon"])
TEXTS = PLAIN.map(lambda text: Element(None, "text", text))
THINGS = st.builds(Element, st.integers(0, 9999), TAGS, QUOTED, st.sampled_from([None, True, False]),
                   st.lists(QUOTED, max_size=3).map(tuple))


@given(st.lists(TEXTS | THINGS, max_size=6, unique_by=lambda e: e if e.id is None else e.id))
def test_whatever_a_page_can_hold_survives(elements):
    assert parse_state(render_state(elements)) == elements


@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=3))
def test_white_space_is_the_only_thing_that_a_page_changes(texts):
    page = render_state([Element(None, "text", text) for text in texts])
    assert parse_state(page) == [Element(None, "text", one_line(text)) for text in texts]
    assert len(page.split("\n")) == max(1, len(texts))
    button = parse_state(render_element(Element(1, "select", " ".join(texts), None, tuple(texts))))[0]
    assert (button.text, button.options) == (one_line(" ".join(texts)).strip(), tuple(one_line(t).strip() for t in texts))


def test_every_end_of_a_line_becomes_a_space():
    strange = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"  # all that `str.splitlines` takes for the end of a line
    assert render_element(Element(None, "text", strange)) == "text a b c d e f g"


def test_empty_texts_are_texts():
    elements = [Element(None, "text", ""), Element(1, "select", "", options=("", "a")), Element(None, "text", "")]
    assert parse_state(render_state(elements)) == elements and parse_state(render_state(elements[:1])) == elements[:1]
    assert parse_state(render_state([])) == []


def test_quotes_are_escaped_and_white_space_is_one_space():
    for text in ("it's", "\\", "\\'", "''", "'", "a\\"):
        assert unquote(quote(text)) == text
    assert quote(" a\n\t b\u2028c ") == "'a b c'"


@pytest.mark.parametrize("line", [
    "Login", "text", "texts ", "[1] button", "[1] button Go", "[1] button 'Go", "[1] button 'it's'", "[1]button 'a'",
    "[a] button 'a'", "[12345] button 'a'", "[-1] button 'a'", "[١] button 'a'", "[1] Button 'a'", "[1] button 'a' ",
    "[1] checkbox 'a' yes", "[1] select 'a' of", "[1] select 'a' of b", "[1] select 'a' of 'a' |", "goal: [1] a 'b'",
    "[1] button 'a'\n\n[2] button 'b'", "[1] button 'a'\n[1] button 'b'", "<b>bold</b>",
])
def test_anything_else_is_no_page(line):
    with pytest.raises(StateError):
        parse_state(line)


def test_the_two_special_pages_have_no_elements():
    assert parse_state(END_STATE) == parse_state(FAILURE_STATE) == []


def test_ids_move_behind_their_words_and_nothing_is_lost():
    pages = {s.state for t in sample_trajectories() for s in t.transitions}
    for page in pages:
        for line, turned in zip(page.split("\n"), ids_last(page).split("\n"), strict=True):
            number, _, words = line.partition(" ")
            assert turned == (f"{words} {number}" if line.startswith("[") else line)
    assert sum(page.count("\n[") for page in pages) > 100


@pytest.mark.parametrize("state", ["", "go north", "[x] door", "[1]", "[1]door", "text [1] door", " [1] door", "[-1] door"])
def test_what_is_no_element_line_stays(state):
    assert ids_last(state) == state


# ---------------------------------------------------------------- actions


def test_actions_are_parsed():
    assert parse_action("click 12") == Action("click", 12)
    assert parse_action("type 3 two  words '") == Action("type", 3, "two  words '")
    assert parse_action("select 4 it's\n") == Action("select", 4, "it's")


@pytest.mark.parametrize("text", [
    "", "click", "click one", "click 1 2", "click  1", "Click 1", "click 12345", "click -1", "click 1.0", "click ١",
    "type 1", "type 1 ", "type 1  x", "select 2", "press 1", "click 1\nclick 2", "type 1 a\nb", "click(1)", "[click 1]",
])
def test_anything_else_is_no_action(text):
    with pytest.raises(InvalidAction) as error:
        parse_action(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text, allowed", [
    ("click 1", True), ("click 4", True), ("click 5", True), ("click 6", False), ("click 0", False),
    ("type 1 a", True), ("type 2 a", True), ("type 4 a", False), ("type 5 a", False), ("type 3 a", False),
    ("select 3 a", True), ("select 3 it's", True), ("select 3 b", False), ("select 1 a", False),
])
def test_the_page_decides_what_can_be_done(text, allowed):
    if allowed:
        assert check_action(parse_action(text), PAGE).id == int(text.split()[1])
    else:
        with pytest.raises(InvalidAction):
            check_action(parse_action(text), PAGE)
    with pytest.raises(InvalidAction):
        check_action(parse_action(text), END_STATE)


# ---------------------------------------------------------------- traces


@pytest.fixture(scope="module")
def sample():
    return sample_trajectories()


def explain(goal, state, action, reward=0.0, next_state=END_STATE):
    task = Task(id="a/1", kind="a", seed=1, goal=goal, start_state=state)
    step = Transition(state=state, action=action, next_state=next_state, reward=reward, done=next_state == END_STATE)
    return explain_transition(task, step)


def test_what_was_typed_changes_nothing_in_what_a_quoting_task_names():
    page = "[1] input '{}'\n[2] button 'Submit'"
    goal = 'Enter "Ada" into the text field and press Submit.'
    for typed in ("", "Ada", "and", "field", "Submit"):
        assert explain(goal, page.format(typed), "click 2").startswith("Task names Ada. ")


@pytest.mark.parametrize("goal, page, action, reward, said", [
    ('Click on the "next" button.', "[1] button 'next'\n[2] button 'Next'", "click 1", 1.0, "next for next yes"),
    ('Click on the "next" button.', "[1] button 'next'\n[2] button 'Next'", "click 2", 0.0, "Next for next no"),
    ('Click the button labeled "x".', "[1] button 'Close'\n[2] button 'OK'", "click 1", 1.0, "Close for x yes"),
    ('Click the button labeled "x".', "[1] button 'Close'\n[2] button 'OK'", "click 2", 0.0, "OK for x no"),
    ("Focus into the 2nd input textbox.", "[1] input ''\n[2] input ''", "click 1", 0.0, "1st for 2nd no"),
    ("Focus into the 2nd input textbox.", "[1] input ''\n[2] input ''", "click 2", 1.0, "2nd for 2nd yes"),
    ('Click on a "button" widget.', "[1] button 'no'\n[2] input ''", "click 1", 1.0, "button for button yes"),
    ('Enter the password "p1" into both text fields and press submit.',
     "[1] password 'p1'\n[2] password ''\n[3] button 'Submit'", "click 3", 0.0,
     "p1 for p1 yes, nothing for p1 no, not complete"),
    ('Enter the username "al" and the password "bo" into the text fields and press login.',
     "[1] input 'bo'\n[2] password 'al'\n[3] button 'Login'", "click 3", 0.0,
     "bo for al no, al for bo no, not complete"),
    ("Select qK and click Submit.", "[1] radio 'qK' off\n[2] radio 'Rr' on\n[3] button 'Submit'", "click 3", 0.0,
     "qK is off no, extra Rr, not complete"),
    ("Select al, bo and click Submit.",
     "[1] checkbox 'al' on\n[2] checkbox 'bo' on\n[3] checkbox 'cy' off\n[4] button 'Submit'", "click 4", 1.0,
     "al is on yes, bo is on yes, complete"),
    ("Select al, bo and click Submit.",
     "[1] checkbox 'al' off\n[2] checkbox 'bo' on\n[3] button 'Submit'", "click 3", 0.0,
     "al is off no, bo is on yes, not complete"),
])
def test_a_click_is_compared_with_what_the_task_names(goal, page, action, reward, said):
    assert f" Check: {said}. " in explain(goal, page, action, reward)


def test_only_clicks_that_decide_are_compared():
    page = "[1] input ''\n[2] button 'Login'"
    goal = 'Enter the username "al" and press login.'
    assert " Check: only a field. " in explain(goal, page, "click 1", next_state=page)
    for action, after in (("type 1 al", page.replace("''", "'al'", 1)), ("press login", END_STATE)):
        assert "Check" not in explain(goal, page, action, next_state=after)
    assert "Check" not in explain("Press login.", page.replace("Login", "Go"), "click 2"), "the task names nothing"


def test_only_the_outcome_makes_a_difference_too(sample):
    for trajectory in sample:
        step = trajectory.transitions[-1]
        if step.done:
            turned = step.model_copy(update={"reward": 1.0 - step.reward})
            assert explain_transition(trajectory.task, step) != explain_transition(trajectory.task, turned)


# ---------------------------------------------------------------- traces that give themselves away


def test_no_earned_success_is_doubted(sample):
    steps = [(t.task, t.transitions[-1]) for t in sample if t.success]
    assert len(steps) > 20 and not [f for task, step in steps
                                    if (f := trace_fault(explain_transition(task, step), task.goal, step.state))]


GOAL = 'Enter the username "vina" and the password "US" into the text fields and press login.'
FORM = "[1] input '{}'\n[2] password '{}'\n[3] button 'Login'"


def won_trace(held="vina", kept="US", names="vina, US", checked="{held} for vina yes, {kept} for US yes, complete"):
    check = checked.format(held=held, kept=kept)
    return f"Task names {names}. It clicks button Login. Check: {check}. This ends the task well."


@pytest.mark.parametrize("held, kept, trace, fault", [
    ("vina", "US", won_trace(), ""),
    ("Vina", "US", won_trace(held="Vina"), "'Vina' for 'vina': a wrong verdict"),
    ("Vina", "US", won_trace(), "the page does not hold 'vina'"),
    ("Vina", "US", won_trace(held="Vina", names="Vina, US", checked="{held} for Vina yes, {kept} for US yes, complete"),
     "the task names 'vina, US', not 'Vina, US'"),
    ("", "US", won_trace(held="nothing"), "'nothing' for 'vina': a wrong verdict"),
    ("US", "US", won_trace(held="US", names="US, US", checked="{held} for US yes, {kept} for US yes, complete"),
     "the task names 'vina, US', not 'US, US'"),
    ("Bob", "US", won_trace(checked="Bob for vina no, {kept} for US yes, complete"),
     "complete, although something is missing"),
    ("vina", "US", won_trace(checked="{held} for vina no, {kept} for US yes, not complete"),
     "'vina' for 'vina': a wrong verdict"),
    ("vina", "US", won_trace().replace("well", "badly"), "it does not end well"),
    ("Bob", "US", "The login worked because all fields were filled in.", ""),  # a teacher's words: nothing is known
    ("Bob", "US", "", ""),
    ("Bob", "US", "-", ""),
])
def test_a_trace_gives_its_slips_away(held, kept, trace, fault):
    assert trace_fault(trace, GOAL, FORM.format(held, kept)) == fault


@pytest.mark.parametrize("check, fault", [
    ("a is on yes, b is on yes, complete", ""),
    ("a is on yes, b is off no, complete", "'b' is not off"),
    ("a is off yes, b is on yes, complete", "'a' is not off"),
    ("a is on no, b is on yes, not complete", "a wrong verdict"),
    ("z is on yes, b is on yes, complete", "'z' is not on"),
    ("a is on yes, b is on yes, extra c, complete", "complete, although something is missing"),
])
def test_marks_are_looked_up(check, fault):
    page = "[1] checkbox 'a' on\n[2] checkbox 'b' on\n[3] checkbox 'c' off\n[4] button 'Submit'"
    trace = f"Task names a, b, Submit. It clicks button Submit. Check: {check}. This ends the task well."
    assert trace_fault(trace, "Select a, b and click Submit.", page) == fault


def test_what_wins_may_be_meant_otherwise():
    trace = "Task names x. It clicks button Close. Check: Close for x yes. This ends the task well."
    assert trace_fault(trace, 'Click the button labeled "x".', "[1] button 'Close'\n[2] button 'OK'") == ""
    page = "[1] button 'Close'\n[2] button 'x'"
    assert trace_fault(trace, 'Click the button labeled "x".', page) == "the page holds 'x', which is not 'Close'"


# Whatever a page can hold: any letters, and above all the words and marks of which traces are made.
OWN_WORDS = st.lists(st.sampled_from([
    "wait", "for", "me", "yes", "no", "is", "on", "off", "or", "extra", "complete", "not", "nothing", "into", "wrong",
    "order", "Check:", "Task", "names", "It", "clicks", "This", "ends", "the", "task", "well.", "a,", "b.", "'", "'c'",
    "d'e", "\\", "\\'", ";", "2nd", "Submit", "button", "input", "(end)", "\u2028", "\x85",
]), min_size=1, max_size=5).map(" ".join)
ANY_TEXT = st.one_of(OWN_WORDS, st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
TEXT = ANY_TEXT.map(lambda text: " ".join(text.split())).filter(bool)
PRESS = Element(9, "button", "Submit")
often = settings(max_examples=150, deadline=None)


def filled(*texts):
    "A form whose fields hold texts."
    tags = ("input", "password")
    return render_state([Element(i, tags[i - 1], text) for i, text in enumerate(texts, 1)] + [PRESS])


def login_goal(*texts):
    return "Enter the username {} and the password {} and press Submit.".format(*(f'"{text}"' for text in texts))


@often
@given(TEXT, TEXT)
@example("wait for me", "yes, complete. This ends")
@example("a is on yes", "nothing")
def test_an_earned_login_is_not_doubted(name, password):
    page, goal = filled(name, password), login_goal(name, password)
    trace = explain(goal, page, "click 9", 1.0)
    assert trace_fault(trace, goal, page) == "" and len(trace.split("\n")) == 1
    if '"' not in name + password and "Submit" not in (name, password) and "button" not in (name, password):
        assert trace.endswith("yes, complete. This ends the task well."), "and it is called complete"


@often
@given(TEXT, st.sampled_from(["input", "password", "textarea"]))
@example("wait for me", "input")
@example("Cancel", "input")
def test_an_earned_text_is_not_doubted(text, tag):
    page = render_state([Element(1, tag, text), PRESS, Element(3, "button", "Cancel")])
    goal = f'Enter "{text}" into the text field and press Submit.'
    assert trace_fault(explain(goal, page, "click 9", 1.0), goal, page) == ""


@often
@given(st.lists(TEXT, min_size=2, max_size=4, unique=True), st.sampled_from(["checkbox", "radio"]))
@example(["wait for me", "me", "wait"], "checkbox")
@example(["a is on yes", "extra, complete"], "checkbox")
def test_earned_boxes_and_options_are_not_doubted(texts, tag):
    *wanted, other = texts
    boxes = [Element(i, tag, text, text in wanted) for i, text in enumerate(texts, 1)]
    for goal in (f"Select {', '.join(wanted)} and click Submit.",
                 "Select {} and click Submit.".format(", ".join(f'"{text}"' for text in wanted))):
        page = render_state([*boxes, PRESS])
        assert trace_fault(explain(goal, page, "click 9", 1.0), goal, page) == ""
        page = render_state([Element(1, "select", wanted[0], None, tuple(texts)), PRESS])
        assert trace_fault(explain(f'Select "{wanted[0]}" and submit.', page, "click 9", 1.0),
                           f'Select "{wanted[0]}" and submit.', page) == ""


@often
@given(TEXT, TEXT, st.sampled_from(["button", "link", "tab"]))
@example("wait for me", "me", "button")
@example("no", "yes", "button")
def test_an_earned_button_is_not_doubted(text, other, tag):
    page, goal = render_state([Element(1, tag, text), Element(2, tag, other)]), f'Click on the "{text}" {tag}.'
    assert trace_fault(explain(goal, page, "click 1", 1.0), goal, page) == ""


@often
@given(TEXT, TEXT, TEXT)
@example("wait for me", "me", "wait")
@example("Ada", "Ada'", "x")
def test_a_wrong_text_is_still_spoken_against(name, password, held):
    "The trace of the right page, held against a page whose field holds something else, gives itself away."
    if held in (name, password, "Submit") or '"' in name + password or {"Submit", "button"} & {name, password}:
        return
    goal = login_goal(name, password)
    trace = explain(goal, filled(name, password), "click 9", 1.0)
    assert trace_fault(trace, goal, filled(held, password)) != "" or name == password
    assert trace_fault(trace, login_goal(held, password), filled(held, password)) != "", "another task"
    lost = explain(goal, filled(held, password), "click 9").replace("badly.", "well.")
    end = len(lost) - len("not complete. This ends the task well.")
    assert mask_quoted(lost)[end:].startswith("not complete")
    assert trace_fault(lost[:end] + lost[end:].removeprefix("not "), goal, filled(held, password)) != ""


@often
@given(TEXT)
def test_a_text_in_a_trace_can_be_read_back(text):
    assert text_of_trace(trace_text(text)) == text
    assert trace_text(" " + text.replace(" ", "\n") + " ") == trace_text(text), "one line, as on a page"
    assert pages._cut(f"{trace_text(text)}, {trace_text(text)}", ", ") == [trace_text(text)] * 2


def test_plain_texts_stand_bare():
    bare = ["vina", "Yes", "no", "Section #3", "Tab #2", "don't", "Jo.n", "10:30", "x", "a@b.org", "Ella's", "wait"]
    assert [text for text in bare if trace_text(text) != text] == []
    quoted = ["wait for me", "yes, no", "libero.", "'a", "nothing", "say no", "this is on", "a or b"]
    assert [text for text in quoted if not trace_text(text).startswith("'")] == []


@pytest.mark.parametrize("goal, page, named", [
    ("Select Papua New Guinea from the list.", "[1] select '' of 'Guinea' | 'New Guinea' | 'Papua New Guinea'",
     ["Papua New Guinea"]),
    ("Select a b, b and click Submit.", "[1] checkbox 'b' on\n[2] checkbox 'a b' on\n[3] button 'Submit'",
     ["a b", "b", "Submit"]),
    ('Enter "the  5th\tday" and press Go.', "[1] input ''", ["the 5th day"]),
    ('Enter "a 5th" in the 21st field.', "[1] input ''", ["a 5th", "21st"]),
])
def test_what_a_goal_names(goal, page, named):
    assert named_texts(goal, page) == named


@pytest.mark.parametrize("number, word", [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"),
                                          (13, "13th"), (21, "21st"), (22, "22nd"), (101, "101st"), (111, "111th")])
def test_places_are_said_as_people_say_them(number, word):
    page = render_state([Element(i, "link", "") for i in range(1, number + 1)])
    assert describe_action(f"click {number}", page) == f"clicks {word} link"


# ---------------------------------------------------------------- the sample


def test_the_sample_covers_all_training_kinds_with_both_outcomes():
    sample = sample_trajectories()
    assert (data_folder() / "sample_trajectories.jsonl").stat().st_size <= 300_000
    assert {t.task.kind for t in sample} == set(TRAINING_KINDS)
    assert 0.35 < np.mean([t.success for t in sample]) < 0.65
    train = {task.id for task in load_panel("train")}
    assert all(t.task.id in train and t.real for t in sample)
    for step in (s for t in sample for s in t.transitions):
        assert render_state(parse_state(step.state)) == step.state and len(step.state) < 1000
        if step.invalid:
            assert step.next_state == FAILURE_STATE
        else:
            check_action(parse_action(step.action), step.state)


# ---------------------------------------------------------------- the grammar


PAGES = PageGrammar()
PAGE_STATES = st.lists(TEXTS | THINGS, max_size=5, unique_by=lambda e: e if e.id is None else e.id).map(render_state)


@given(PAGE_STATES, PAGE_STATES)
def test_a_change_of_a_page_is_undone_by_apply(before, after):
    for now in (after, before):
        assert PAGES.apply(before, PAGES.change(before, now)) == now


@given(st.lists(THINGS, min_size=1, max_size=5, unique_by=lambda e: e.id), st.data())
def test_an_element_that_changes_is_an_edit_by_its_id(elements, data):
    place = data.draw(st.integers(0, len(elements) - 1))
    old = elements[place]
    new = data.draw(st.builds(Element, st.just(old.id), st.just(old.tag), QUOTED, st.sampled_from([None, True, False])))
    after = [*elements[:place], new, *elements[place + 1:]]
    change = PAGES.change(render_state(elements), render_state(after))
    assert change == ("same" if new == old else f"edit\n{render_element(new)}")
    assert PAGES.apply(render_state(elements), change) == render_state(after)


@pytest.mark.parametrize("change", [
    "", "same\n", "edit", "edit\n", "edit\n[9] input 'x'", "edit\ntext Username", "edit\n[1] input x", "edit\n1= [1] input 'x'",
    "edit\n[1] input 'x'\n", "edit\n[2] [1] input 'x'", "page", "page\n<b>Hi</b>", "page\n[1] link 'a'\n[1] link 'b'",
    f"page\n{END_STATE}", f"page\n{FAILURE_STATE}", "new\n[1] link 'a'",
])
def test_what_is_no_change_of_a_page_is_refused(change):
    with pytest.raises(StateError):
        PAGES.apply(PAGE, change)


def test_the_grammar_of_pages_knows_pages():
    task, won = Task(id="a/0", kind="a", goal='Press "Go".', start_state=PAGE), END_STATE
    PAGES.check_state(PAGE), PAGES.check_action(" click 5\n", PAGE)
    for wrong in ("click 6", "type 5 a", "go north", "", "click 1\nclick 2"):
        with pytest.raises(InvalidAction):
            PAGES.check_action(wrong, PAGE)
    with pytest.raises(StateError):
        PAGES.check_state("You are in a hall.")
    assert PAGES.describe("click 5", PAGE) == "clicks button Go" and PAGES.describe("go", PAGE) == "is invalid"
    assert PAGES.show(PAGE) == ids_last(PAGE) and "click ID" in PAGES.hint
    step = Transition(state=PAGE, action="click 5", next_state=won, reward=1.0, done=True)
    trace = PAGES.explain(task, step)
    assert trace == explain_transition(task, step) and PAGES.doubt(trace, task, PAGE) == ""
    assert PAGES.doubt(trace.replace("names Go", "names Stop"), task, PAGE) == trace_fault(
        trace.replace("names Go", "names Stop"), task.goal, PAGE) != ""
    assert trace[PAGES.judgement(trace):] == " Check: Go for Go yes. This ends the task well."
    assert PAGES.judgement("It clicks. This ends the task well.") == len("It clicks.")
    assert PAGES.judgement("no form") == len("no form")
    assert PAGES.trials(task, 2) == ["click 1", "click 2"] and PAGES.variation_problem(task, task) == ""


EVERY_FIELD = ("text Name:\n[1] input ''\n[2] checkbox 'red' off\n[3] radio 'A' on\n[4] radio 'B' off\n"
               "[5] select 'x' of 'x' | 'y'\n[6] button 'Submit'")


@pytest.mark.parametrize(("action", "before", "after"), [
    ("type 1 Ada  L", "[1] input ''", "[1] input 'Ada L'"), ("click 2", "'red' off", "'red' on"),
    ("click 4", "'A' on\n[4] radio 'B' off", "'A' off\n[4] radio 'B' on"), ("click 3", "'A' on", "'A' on"),
    ("select 5 y", "select 'x' of", "select 'y' of")])
def test_rules_put_texts_choices_and_marks_where_they_belong(action, before, after):
    task = Task(id="form/1", kind="form", goal='Enter "Ada" and press Submit.')
    step = PageGrammar().predict(task, EVERY_FIELD, action)
    assert (step.next_state, step.done, step.reward) == (EVERY_FIELD.replace(before, after), False, 0.0)


@pytest.mark.parametrize(("goal", "page", "action", "won"), [
    ('Enter "Ada" and press Submit.', "[1] input 'Ada'\n[2] button 'Submit'", "click 2", True),
    ('Enter "Ada" and press Submit.', "[1] input 'ada'\n[2] button 'Submit'", "click 2", False),
    ('Enter "Ada" and press Search.', "[1] input 'Ada'\n[2] button 'Search'", "click 2", None),
    ("Select A and click Submit.", "[1] radio 'A' on\n[2] radio 'B' off\n[3] button 'Submit'", "click 3", True),
    ("Select A and click Submit.", "[1] radio 'A' off\n[2] radio 'B' on\n[3] button 'Submit'", "click 3", False),
    ('Click on the "next" button.', "[1] button 'next'\n[2] button 'Submit'", "click 1", True),
    ('Click on the "next" button.', "[1] button 'next'\n[2] button 'Submit'", "click 2", False),
    ('Click on the "next" button.', "[1] button 'next'\n[2] button 'back'", "click 2", None),
    ('Click on a "checkbox" widget.', "[1] radio 'A' off\n[2] checkbox 'B' off", "click 2", True),
    ("Do it.", "[1] link 'A'\n[2] button 'Submit'", "click 2", None)])
def test_rules_end_a_task_where_they_can(goal, page, action, won):
    step = PageGrammar().predict(Task(id="any/1", kind="any", goal=goal), page, action)
    assert (step and (step.done, step.won, step.next_state)) == (None if won is None else (True, won, END_STATE))


def test_what_rules_say_of_recorded_steps_is_nearly_always_right(sample):
    said = {True: 0, False: 0, None: 0}
    for trajectory in sample:
        for step in trajectory.transitions:
            if not step.invalid and trajectory.task.kind in TRAINING_KINDS:
                rule = PageGrammar().predict(trajectory.task, step.state, step.action)
                said[rule and (rule.next_state, rule.done, rule.won) == (step.next_state, step.done, step.won)] += 1
    assert said[True] > 100 and said[False] <= 0.02 * said[True] and said[None] > 50, said


def test_practice_weighs_verdicts_only():
    trace = "Task names Go. It clicks button Go. Check: Go for Go yes. This ends the task well.\n=> success"
    pieces = PAGES.practice(trace)
    assert "".join(text for text, _ in pieces) == trace
    assert "".join(text for text, counts in pieces if counts) == " yes. This ends the task well.\n=> success"
    for wrong in (False, True):
        varied = PAGES.practice(trace, np.random.default_rng(1), wrong)
        text = "".join(part for part, _ in varied)
        assert ("=> failure" in text, " no. This ends the task badly." in text) == (wrong, wrong) and text != trace
    assert PAGES.practice("It types. It goes on.") is None and PAGES.practice("It ends. This ends the task well.") is None
