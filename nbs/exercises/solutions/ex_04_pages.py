"Solutions of ex_04_pages.ipynb: look only after you have tried."

import re

from dreamgym.pages import parse_state


def takes(state, action):
    found = re.fullmatch(r"(click) ([0-9]+)|(type|select) ([0-9]+) (\S.*)", action)
    if not found:
        return False
    verb, number = found[1] or found[3], int(found[2] or found[4])
    element = next((e for e in parse_state(state) if e.id == number), None)
    if element is None:
        return False
    if verb == "type":
        return element.tag in ("input", "password", "textarea")
    return verb == "click" or found[5] in element.options


def read_line(line):
    found = re.fullmatch(r"\[([0-9]{1,4})\] ([a-z]+) '((?:[^'\\]|\\.)*)'", line)
    if not found:
        raise ValueError(f"Not a line of a page: {line[:60]!r}.")
    return int(found[1]), found[2], re.sub(r"\\(.)", r"\1", found[3])


def slip(goal, state, named, pairs):
    held_by_page = {element.text for element in parse_state(state) if element.id is not None}
    if named != re.findall(r'"([^"]+)"', goal):
        return "task"
    if any(held and held not in held_by_page for _, held, _ in pairs):
        return "page"
    if any(yes != (name == held) for name, held, yes in pairs):
        return "verdict"
    compared = {name for name, _, yes in pairs if yes}
    return "" if compared >= set(named) and all(yes for *_, yes in pairs) else "sum"
