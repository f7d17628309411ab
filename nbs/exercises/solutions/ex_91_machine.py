"Solutions of ex_91_machine.ipynb: look only after you have tried."

import os
import re
import subprocess


def version(path, limit):
    try:
        ended = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=limit)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"\d+(\.\d+)+", ended.stdout)
    return found[0] if found and ended.returncode == 0 else ""


def usable_memory(meminfo, limits):
    total = re.search(r"(?m)^MemTotal:\s+(\d+) kB", meminfo)
    known = [int(total[1]) * 1024] if total else []
    return min(known + [int(text) for text in limits if text.strip().isdigit()], default=None)


def put(values):
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def with_variables(values, function):
    before = {name: os.environ.get(name) for name in values}
    try:
        put(values)
        return function()
    finally:
        put(before)
