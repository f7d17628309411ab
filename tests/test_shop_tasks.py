"Tasks in the shop: frozen, answered from the tables, judged right and wrong, and solved in the browser."

import json
import re
from collections import Counter
from copy import deepcopy
from datetime import date
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from book_examples import run_without

from dreamgym.environments import play_episodes
from dreamgym.runs import Scale, data_folder
from dreamgym.suites import shop_tasks
from dreamgym.suites.shop import shop_customers, shop_database, shop_missing, shop_orders, shop_products, shop_reviews
from dreamgym.suites.shop_tasks import (
    TEMPLATES,
    Shop,
    find_element,
    make_tasks,
    mutate,
    navigate,
    oracle_move,
    proof_rows,
    random_shop_action,
    read_facts,
    retrieve,
    saw_everything,
    tasks_hash,
    write_tasks,
    written_move,
)
from dreamgym.suites.webarena import WebGrammar, missing_for_the_web, read_answer, score_answer
from dreamgym.trajectories import DreamgymError, Task, Trajectory, Transition

HASH = "37a8b1b8173cbef9be263020fa87a1039cb5339552ad8803bc13bec4ac0d7bb8"  # of the frozen list; results rest on it
TASKS = shop_tasks.shop_tasks()
PRODUCTS, CUSTOMERS, ORDERS, REVIEWS = shop_products(), shop_customers(), shop_orders(), shop_reviews()
PANELS = {name: Shop().tasks(name) for name in ("train", "development", "test", "held_out")}
ADDRESS = "http://127.0.0.1:8000"
pytestmark = pytest.mark.filterwarnings("ignore:Transitional processing")  # WebArena-Verified's parts
needs_shop = pytest.mark.skipif(bool(shop_missing()), reason="the extra webarena is not installed")
needs_browser = pytest.mark.skipif(bool(shop_missing() + missing_for_the_web()), reason="no extra, or no browser")
PAGE = """Page: Lamps / Shop | /catalogue/category/lamps_3/
Menu: [12] link "Account"; [18] textbox "Search" = ""; [20] button "Search"
[30] textbox "Last name *" = ""
[36] combobox "Sort by" = "Relevancy" (Relevancy; Price low to high)
item: [41] link "Desk lamp" | $24.00 | [43] button "Add to basket"
item: [45] link "Floor lamp" | $61.50 | [47] button "Add to basket"
[50] link "Rug"
[52] textbox "" = "1"
[53] button "Update\""""


def of_kind(kind: str) -> list[dict]:
    return [task for task in TASKS if task["kind"] == kind]


def answer_of(task: dict) -> list | None:
    return task["eval"][0]["expected"]["retrieved_data"]


# ---------------------------------------------------------------- the list


def test_the_list_is_frozen():
    assert tasks_hash(TASKS) == HASH
    assert Shop().panel_hash() == "e0b58fa418748f1a787fbf5154fa1a16ef9677089b447f8f709d2d8b619c743b"


def test_there_is_enough_of_everything():
    assert len(TEMPLATES) >= 25 and len(TASKS) >= 400 and {task["kind"] for task in TASKS} == set(TEMPLATES)
    kinds = Counter(task["eval"][0]["expected"]["task_type"] for task in TASKS)
    assert min(kinds.values()) > 100 and set(kinds) == {"retrieve", "navigate", "mutate"}
    for name in PANELS:
        grades = Counter(task["difficulty"] for task in TASKS if task["panel"] == name)
        assert min(grades[grade] for grade in ("easy", "medium", "hard")) > 0, name
    for task in TASKS:
        assert task["steps"] == len(task["plan"]) <= Shop.maximum_steps
        assert task["difficulty"] == ("easy" if task["steps"] <= 2 else "medium" if task["steps"] <= 4 else "hard")


def test_panels_keep_seen_and_unseen_apart():
    kinds = {name: {task.kind for task in tasks} for name, tasks in PANELS.items()}
    assert kinds["test"] == kinds["train"] < kinds["development"] and len(kinds["development"] - kinds["train"]) >= 4
    assert kinds["held_out"].isdisjoint(kinds["train"] | kinds["development"]) and len(kinds["held_out"]) >= 6
    goals = [task.goal for tasks in PANELS.values() for task in tasks]
    numbers = [task.seed for tasks in PANELS.values() for task in tasks]
    assert len(set(goals)) == len(goals) == len(set(numbers)) == len(TASKS)


def test_every_task_is_well_formed():
    people = {customer.email for customer in CUSTOMERS}
    for task in TASKS:
        assert task["customer"] in people and task["start_urls"][0].startswith("__SHOPPING__/")
        assert "{{" not in task["intent"] and "None" not in task["intent"]
        assert re.sub(r"\{\{(\w+)\}\}", lambda gap: task["instantiation_dict"][gap[1]], task["intent_template"]) == task["intent"]
        assert task["plan"][-1][0] == "send_msg_to_user"
        assert read_answer(task["plan"][-1][1], task)["retrieved_data"] == answer_of(task)


@needs_shop
def test_the_list_is_what_the_database_says(tmp_path):
    made = make_tasks(shop_database())
    assert made == list(TASKS)
    write_tasks(made, tmp_path / "tasks.jsonl")
    assert (tmp_path / "tasks.jsonl").read_bytes() == (data_folder() / "shop_tasks.jsonl").read_bytes()


def test_a_missing_or_empty_database_is_told(tmp_path):
    with pytest.raises(DreamgymError, match="no database"):
        read_facts(tmp_path / "none.sqlite3")
    assert not (tmp_path / "none.sqlite3").exists()
    (tmp_path / "empty.sqlite3").touch()
    with pytest.raises(DreamgymError, match="not a database of the shop"):
        make_tasks(tmp_path / "empty.sqlite3")


# ---------------------------------------------------------------- answers, by a second way: from the lists that made the shop


def order_named(task: dict):
    return next(order for order in ORDERS if order.number == task["instantiation_dict"]["number"])


def test_answers_about_an_order_are_those_of_its_maker():
    for task in of_kind("order_status"):
        assert answer_of(task) == [order_named(task).status]
    for task in of_kind("order_total"):
        assert answer_of(task) == [sum(PRODUCTS[place].cents * n for place, n in order_named(task).lines) / 100]
    for task in of_kind("order_contents"):
        assert sorted(answer_of(task)) == sorted(PRODUCTS[place].title for place, _ in order_named(task).lines)
    for task in of_kind("order_date"):
        assert answer_of(task) == [order_named(task).date.date().isoformat()]
    for kind in ("order_status", "order_total", "order_date", "open_order", "cancel_order", "order_again"):
        assert all(task["customer"] == order_named(task).customer for task in of_kind(kind)), "a customer sees her own orders only"
    assert {order_named(task).status for task in of_kind("cancel_order")} == {"Pending"}


def test_sums_are_those_of_their_makers():
    for task in of_kind("month_total"):
        mine = [order for order in ORDERS if order.customer == task["customer"]
                and f"{order.date:%B %Y}" == task["instantiation_dict"]["month"]]
        cents = sum(PRODUCTS[place].cents * n for order in mine for place, n in order.lines)
        assert len(mine) >= 2 and answer_of(task) == [cents / 100]
    for task in of_kind("month_of_a_category"):
        gaps = task["instantiation_dict"]
        mine = [order for order in ORDERS if order.customer == task["customer"] and f"{order.date:%B %Y}" == gaps["month"]]
        cents = [PRODUCTS[place].cents * n for order in mine for place, n in order.lines
                 if PRODUCTS[place].category == gaps["category"]]
        assert answer_of(task) == [sum(cents) / 100] and cents
    for task in of_kind("orders_of_a_quarter"):
        gaps = task["instantiation_dict"]
        quarter = ("first", "second", "third", "fourth").index(gaps["quarter"])
        mine = [order for order in ORDERS if order.customer == task["customer"] and str(order.date.year) == gaps["year"]
                and (order.date.month - 1) // 3 == quarter]
        assert answer_of(task) == [len(mine)]


def test_answers_about_products_are_those_of_their_makers_and_the_only_ones():
    products = {product.title: product for product in PRODUCTS}
    for kind, best in (("cheapest_product", min), ("dearest_price", max)):
        for task in of_kind(kind):
            shelf = [p for p in products.values() if p.category == task["instantiation_dict"]["category"]]
            cents = best(p.cents for p in shelf)
            (only,) = [p for p in shelf if p.cents == cents]
            assert answer_of(task) == ([only.title] if best is min else [cents / 100])
    for task in of_kind("product_price"):
        assert answer_of(task) == [products[task["instantiation_dict"]["product"]].cents / 100]
    for task in of_kind("product_colour"):
        assert answer_of(task) == [products[task["instantiation_dict"]["product"]].colour]
    titles, people = list(products), {f"{person.first} {person.last}": person.email for person in CUSTOMERS}
    for task in of_kind("review_stars"):
        gaps = task["instantiation_dict"]
        (only,) = [r for r in REVIEWS if titles[r.product] == gaps["product"] and r.name == gaps["writer"]]
        assert answer_of(task) == [only.score]
        assert people.get(gaps["writer"]) != task["customer"], "one's own review is signed `you`"
    for task in of_kind("best_rated_product"):
        shelf = [p.title for p in products.values() if p.category == task["instantiation_dict"]["category"]]
        given = {title: [r.score for r in REVIEWS if titles[r.product] == title] for title in shelf}
        stars = {title: sum(scores) // len(scores) for title, scores in given.items() if scores}
        assert answer_of(task) == [title for title in stars if stars[title] == max(stars.values())]


def test_answers_about_addresses_are_those_of_their_owners():
    homes = {home.line: (customer.email, home) for customer in CUSTOMERS for home in customer.addresses}
    for kind, part in (("address_postcode", "postcode"), ("address_phone", "phone")):
        for task in of_kind(kind):
            owner, home = homes[task["instantiation_dict"]["street"]]
            assert owner == task["customer"] and answer_of(task) == [getattr(home, part)]


# ---------------------------------------------------------------- the judge


def entry(expected: dict, **changes: str) -> dict:
    "A request and its answer, as a trace holds them, that are what an evaluator expects, but for some fields."
    url = ADDRESS + expected["url"].removeprefix("__SHOPPING__")
    query = urlencode({name: values[0] for name, values in expected.get("query_params", {}).items()})
    status, method = expected.get("response_status", 200), expected.get("http_method", "GET")
    sent = {"method": method, "url": f"{url}?{query}" if query else url, "headers": [{"name": "accept", "value": "text/html"}]}
    if method == "POST":
        text = urlencode({"csrfmiddlewaretoken": "x", **expected.get("post_data", {}), **changes})
        sent["postData"] = {"mimeType": "application/x-www-form-urlencoded", "text": text}
    got = {"status": status, "headers": [], "redirectURL": "/there/" if status == 302 else "", "cookies": [],
           "content": {"mimeType": "text/html", "text": ""}}
    return {"startedDateTime": "2026-06-30T09:00:00Z", "request": sent, "response": got}


START = entry({"url": "__SHOPPING__/start/"})


def events_of(task: dict) -> list[dict]:
    return [part["expected"] for part in task["eval"][1:] if not part.get("should_not_exist")]


def judged(task: dict, said: str, trace: list[dict]) -> bool:
    return score_answer(deepcopy(task), read_answer(said, task), trace, {"__SHOPPING__": ADDRESS})[0]


def other_than(task: dict) -> str:
    "A wrong answer that is near to the right one."
    (first, *rest), items = answer_of(task), task["eval"][0]["results_schema"]["items"]
    if items["type"] == "number":
        return str(first + 1)
    return str(date.fromisoformat(first).replace(year=2001)) if items.get("format") == "date" else "; ".join(rest) or f"{first}x"


def test_the_judge_takes_what_is_right_and_nothing_else():
    pytest.importorskip("webarena_verified")
    for task in TASKS:
        told, events = task["plan"][-1][1], events_of(task)
        trace = [START, *map(entry, events)]
        assert judged(task, told, trace), task["intent"]
        wrong = {"no answer": score_answer(deepcopy(task), None, trace, {"__SHOPPING__": ADDRESS})[0],
                 "given up": judged(task, "NOT_FOUND_ERROR", trace)}
        if events:
            wrong["nothing done"] = judged(task, told, [START])
            if task["eval"][0]["expected"]["task_type"] == "navigate":
                wrong["gone on"] = judged(task, told, [*trace, START])
        else:
            wrong |= {"another answer": judged(task, other_than(task), trace), "done only": judged(task, "done", trace),
                      "too much": judged(task, f"{told}; {told}", trace)}
        assert not any(wrong.values()), (task["intent"], wrong)


def test_the_judge_of_a_change_reads_every_field():
    pytest.importorskip("webarena_verified")
    checked = 0
    for task in TASKS[::2]:  # a form has its fields in all tasks of a template
        for place, event in enumerate(events_of(task)):
            for field in event.get("post_data", {}):
                trace = [START, *(entry(e, **({field: "7"} if e is event else {})) for e in events_of(task))]
                assert not judged(task, "done", trace), (task["intent"], field)
                checked += 1
            if event.get("response_status") == 302:  # the shop showed the form again
                trace = [START, *(entry(e | {"response_status": 200} if i == place else e) for i, e in enumerate(events_of(task)))]
                assert not judged(task, "done", trace), task["intent"]
        if any(part.get("should_not_exist") for part in task["eval"]):
            more = entry({"url": "__SHOPPING__/basket/add/9999/", "http_method": "POST", "response_status": 302})
            assert not judged(task, "done", [START, more, *map(entry, events_of(task))]), task["intent"]
    assert checked > 150


def test_judges_are_written_as_the_format_wants():
    assert retrieve([2.5], "currency")[0]["results_schema"]["items"] == {"type": "number", "format": "currency"}
    assert retrieve(["a"])[0]["results_schema"]["items"] == {"type": "string"}
    assert navigate("/a/", page="2")[1]["expected"] == {"url": "__SHOPPING__/a/", "query_params": {"page": ["2"]}}
    assert [part["evaluator"][0] for part in mutate("/a/", also=["/b/"], never="/c/")] == ["A", "N", "N", "N"]


# ---------------------------------------------------------------- players


@pytest.mark.parametrize(("move", "action"), [
    (["click", "link", "Desk lamp"], "click('41')"), (["click", "button", "Add to basket"], "click('43')"),
    (["click", "button", "Add to basket", "Floor lamp"], "click('47')"), (["fill", "Search", "owl's"], r"fill('18', 'owl\'s')"),
    (["fill", "Last name", "Sato"], "fill('30', 'Sato')"), (["fill", "", "3", "Rug"], "fill('52', '3')"),
    (["select_option", "Sort by", "Price low to high"], "select_option('36', 'Price low to high')"),
    (["go_back"], "go_back()"), (["send_msg_to_user", "24.00"], "send_msg_to_user('24.00')"),
    (["click", "button", "Desk lamp"], None), (["click", "button", "Add to basket", "Ceiling lamp"], None),
    (["fill", "Account", "x"], None), (["click", "button", "Add to basket", "Rug"], None),
    (["click", "button", "Add to basket", "$61.50"], "click('47')")])
def test_a_move_finds_what_it_names(move, action):
    assert written_move(move, PAGE) == action
    if action:
        WebGrammar().check_action(action, PAGE)


def test_an_element_is_looked_for_below_the_menu_where_it_stands_near_a_text():
    assert find_element(PAGE, ("button",), "Search").id == "20" and find_element(PAGE, ("button",), "Search", "Rug") is None
    page = PAGE.replace('"Search" = ""', '"Search" = "Floor lamp"')
    assert find_element(page, ("button",), "Add to basket", "Floor lamp").id == "47"


def test_an_oracle_that_was_left_says_nothing():
    plan = [["click", "link", "Rug"], ["send_msg_to_user", "done"]]
    assert oracle_move(plan, PAGE, []) == "click('50')" and oracle_move(plan, PAGE, ["click('50')"]) == "send_msg_to_user('done')"
    assert oracle_move(plan, PAGE, ["go_back()"]) is None and oracle_move(plan, PAGE, ["click('50')"] * 2) is None


def test_random_actions_are_valid_varied_and_a_function_of_their_generator():
    task = Task(id="x/1", kind="x", goal="Put the Desk lamp into my basket.")

    def drawn(seed):
        dice = np.random.default_rng(seed)
        return [random_shop_action(task, PAGE, dice) for _ in range(400)]

    for action in drawn(0):
        WebGrammar().check_action(action, PAGE)
    verbs = Counter(action.partition("(")[0] for action in drawn(0))
    assert {"click", "fill", "select_option", "send_msg_to_user"} <= set(verbs) and verbs["click"] > 100
    said = {action for action in drawn(0) if action.startswith("send_msg")}
    assert {"send_msg_to_user('$24.00')", "send_msg_to_user('done')"} <= said
    assert drawn(0) == drawn(0) != drawn(1)
    assert random_shop_action(task, "Page: empty | /", np.random.default_rng(0))


def test_what_was_seen_is_checked():
    step = Transition(state="Page: a | /\nTotal:  $24.00", action="x", next_state="Page: b | /", reward=0.0, done=False)
    episode = Trajectory(task=Task(id="x/1", kind="x"), transitions=(step,), source="oracle")
    assert saw_everything(episode, ["Total: $24.00"]) and not saw_everything(episode, ["$25.00"])


# ---------------------------------------------------------------- the suite


def test_a_suite_knows_its_tasks_only():
    suite = Shop()
    task = suite.tasks("train")[0]
    assert suite.web_task(task)["intent"] == task.goal and suite.web_task(task) in TASKS
    suite.web_task(task)["eval"].clear()
    assert suite.web_task(task)["eval"], "who writes into a task writes into a copy"
    for wrong in (task.model_copy(update={"seed": 3}), task.model_copy(update={"id": "x/1"})):
        with pytest.raises(DreamgymError, match="no task of the shop"):
            suite.web_task(wrong)


def test_sizes_fit_the_panels():
    suite = Shop()
    for name in ("quick", "cpu", "gpu", "paper"):
        sizes = Scale.named(name, **suite.sizes(name))
        assert suite.tasks("train", sizes.kinds) and suite.tasks("development", sizes.kinds) and suite.tasks("test", sizes.kinds)
        assert sizes.maximum_steps <= suite.maximum_steps and 2 <= sizes.parallel <= 4
    quick = Scale.named("quick", **suite.sizes("quick"))
    ways = [task for task in TASKS if task["kind"] in quick.kinds]
    assert 4 <= len(quick.kinds) <= 8 and all(task["steps"] <= 4 for task in ways)
    assert quick.maximum_steps >= 2 + max(task["steps"] for task in ways)


def test_what_is_missing_is_told_with_its_cure(monkeypatch):
    from dreamgym.suites import shop, webarena
    monkeypatch.setattr(shop, "find_spec", lambda name: None)
    monkeypatch.setattr(webarena, "find_spec", lambda name: None)
    monkeypatch.setattr(webarena, "find_browser", lambda: (_ for _ in ()).throw(webarena.BrowserMissing("Install one.")))
    sentences = Shop().missing()
    assert all('pip install "dreamgym[webarena]"' in line or line == "Install one." for line in sentences)
    assert "Install one." in sentences and len(sentences) == 3


def test_the_proof_belongs_to_the_list():
    rows = proof_rows()
    assert {row["tasks_hash"] for row in rows} == {HASH}
    assert all(0 < row["tasks"] == row["solved"] == row["saw"] for row in rows)
    assert sum(row["tasks"] for row in rows) == len(TASKS)
    assert {(row["kind"], row["panel"]) for row in rows} == {(task["kind"], task["panel"]) for task in TASKS}


# ---------------------------------------------------------------- in the browser


@pytest.fixture(scope="module")
def world():
    suite = Shop()
    with suite.environment(2, suite.maximum_steps) as batch:
        yield suite, batch


@pytest.mark.browser
@needs_browser
def test_the_oracle_solves_one_task_of_every_template(world):
    suite, batch = world
    chosen = {task.kind: task for tasks in PANELS.values() for task in reversed(tasks)}
    rows = shop_tasks.prove_in(suite, batch, list(chosen.values()))
    assert [row["task"] for row in rows if not (row["solved"] and row["saw"])] == [] and len(rows) == len(TEMPLATES)
    assert [row["task"] for row in rows if row["steps"] != suite.web_task(chosen[row["kind"]])["steps"]] == []


def wrong_ways(suite) -> list[tuple[Task, list]]:
    "Tasks, and plans that look right and are not."
    def task(kind, number=0):
        return [task for tasks in PANELS.values() for task in tasks if task.kind == kind][number]

    def plan(task):
        return suite.web_task(task)["plan"]

    total, several, product, change, order, wish = map(task, (
        "order_total", "add_several", "add_to_basket", "change_name", "open_order", "add_to_wish_list"))
    amount = plan(total)[-1][1]
    elsewhere = next(o for o in ORDERS if o.customer != suite.web_task(total)["customer"])
    cents = sum(PRODUCTS[place].cents * n for place, n in elsewhere.lines)
    count = int(plan(several)[2][2])
    return [(total, [*plan(total)[:-1], ["send_msg_to_user", f"{float(amount) + 1:.2f}"]]),
            (total, [*plan(total)[:-1], ["send_msg_to_user", f"{cents / 100:.2f}"]]),
            (total, [["send_msg_to_user", "done"]]), (product, [["send_msg_to_user", "done"]]),
            (order, [["send_msg_to_user", "done"]]), (order, plan(order)[:-1] + [["go_back"], ["send_msg_to_user", "done"]]),
            (product, [*plan(task("find_and_add"))[:3], ["send_msg_to_user", "done"]]),
            (product, [*plan(product)[:1], *plan(task("find_and_add"))]),
            (several, [*plan(several)[:2], [*plan(several)[2][:2], str(count + 1), *plan(several)[2][3:]], *plan(several)[3:]]),
            (several, [*plan(several)[:1], ["send_msg_to_user", "done"]]),
            (change, [plan(change)[0], ["fill", "Last name", "Nobody"], *plan(change)[2:]]),
            (change, [*plan(change)[:2], ["send_msg_to_user", "done"]]), (wish, [plan(wish)[0], ["send_msg_to_user", "done"]])]


@pytest.mark.browser
@needs_browser
def test_wrong_ways_fail(world):
    suite, batch = world
    ways = wrong_ways(suite)
    plans = [plan for _, plan in ways]
    episodes = []
    for start in range(0, len(ways), 2):
        part = ways[start:start + 2]
        episodes += play_episodes(batch, [task for task, _ in part], lambda i, task, state, past, start=start: oracle_move(
            plans[start + i], state, past) or "noop()", "by hand")
    assert [e.task.id for e in episodes if e.success] == []
    assert all(json.dumps(e.transitions[-1].action).count("send_msg_to_user") for e in episodes), "each went its way to the end"


def test_the_chapter_passes_without_the_extra(tmp_path):
    "Its cells in order, in a Python that finds neither a shop nor BrowserGym."
    run_without("34_shop_tasks", {"oscar", "whoosh", "playwright", "browsergym", "webarena_verified", "django"}, tmp_path)


def test_the_data_of_the_book_are_small():
    assert Path(data_folder() / "shop_tasks.jsonl").stat().st_size < 1_000_000
