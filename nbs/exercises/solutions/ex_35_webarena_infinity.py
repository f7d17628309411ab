"Solutions of ex_35_webarena_infinity.ipynb: look only after you have tried."

import hashlib
import json
import subprocess
import sys

from dreamgym.suites.webarena import SiteFailed

ENDS = (".html", ".css", ".js", ".json", ".svg", ".png")


def digest(text):
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8


def panel_of(app, task):
    if digest(app) < 0.25:
        return "held_out"
    number = digest(f"{app}/{task}")
    return "train" if number < 0.6 else "development" if number < 0.8 else "test"


def belongs(folder, below):
    if not below.name.lower().endswith(ENDS) or any(part.startswith(".") for part in below.parts):
        return False
    words = (folder / below).read_text(errors="replace") if below.name.lower().endswith(".json") else ""
    return not ('"instruction"' in words and '"verify"' in words)


def served(folder):
    output, base = [], folder.resolve()
    for path in sorted(folder.rglob("*")):
        real = path.resolve()
        if real.is_file() and real.is_relative_to(base):
            if belongs(folder, path.relative_to(folder)) and belongs(base, real.relative_to(base)):
                output.append(path.relative_to(folder).as_posix())
    return sorted(output)


def verdict(program, limit):
    failed = SiteFailed("The verifier has given no verdict.")
    try:
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=limit, env={})
        said = json.loads(ended.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        raise failed from None
    if ended.returncode != 0 or not isinstance(said, list) or list(map(type, said)) != [bool, str]:
        raise failed
    return said[0]
