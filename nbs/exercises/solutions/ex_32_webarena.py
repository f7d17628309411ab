"Solutions of ex_32_webarena.ipynb: look only after you have tried."

import ast
import re

TAKES = {"click": (str,), "fill": (str, str), "noop": (),
         "scroll": (float, float), "goto": (str,)}


def harmless(text):
    printed = "".join(letter if letter.isprintable() else " " for letter in text)
    return re.sub(r"\[([A-Za-z]*[0-9]+)\]", r"(\1)", " ".join(printed.split())).replace('"', "'")


def read_action(text):
    try:
        call = ast.parse(text.strip(), mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.keywords
        arguments = tuple(map(ast.literal_eval, call.args))
    except (SyntaxError, ValueError, AssertionError):
        raise ValueError(f"Not one call with literals: {text!r}.") from None
    kinds = tuple({str: str, int: float, float: float}.get(type(argument)) for argument in arguments)
    if TAKES.get(call.func.id) != kinds:
        raise ValueError(f"Not an action with what it takes: {text!r}.")
    return call.func.id, arguments


def state_lines(page):
    around = ("banner", "navigation", "contentinfo")
    menu = []

    def pieces(node, named=False):  # texts and elements below a node; True for an element
        if "id" in node:
            yield f'[{node["id"]}] {node["role"]} "{node["name"]}"', True
        elif node["role"] == "text" and not named:
            yield node["name"], False
        for child in node.get("children", ()):
            yield from pieces(child, named or "id" in node)

    def visit(node, named=False):
        if node["role"] in around:
            menu.extend(piece for piece, element in pieces(node) if element)
        elif node["role"] == "row":
            yield "row: " + " | ".join(piece for piece, _ in pieces(node))
        else:
            yield from (piece for piece, _ in pieces({**node, "children": []}, named))
            for child in node.get("children", ()):
                yield from visit(child, named or "id" in node)

    lines = list(visit(page))
    return ["Menu: " + "; ".join(menu)] * bool(menu) + lines
