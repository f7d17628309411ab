"Solutions of ex_93_command_line.ipynb: look only after you have tried."

import errno
import re

from dreamgym.trajectories import DreamgymError


def read_seeds(text):
    seeds = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9]+)(?:\s*-\s*([0-9]+))?\s*", part)
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise DreamgymError(f"{part.strip()!r} is no seed and no range of seeds; write seeds such as 5-9.")
        seeds += range(int(found[1]), int(found[2] or found[1]) + 1)
    return list(dict.fromkeys(seeds))


def run_command(action):
    code = 1
    try:
        return action() or 0, ""
    except KeyboardInterrupt:
        code, sentence = 130, "Interrupted. The same command goes on where it stopped."
    except DreamgymError as error:
        sentence = str(error)
    except Exception as error:
        first = (str(error).splitlines() or ["no message"])[0]
        sentence = f"Unexpected {type(error).__name__}: {first}"
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            sentence = "The disk is full: free some space and try again."
    return code, " ".join(sentence.split())


def run_seeds(seeds, done, run):
    finished, failed, last, code = set(done), {}, None, 0
    for seed in seeds:
        if seed in done:
            continue
        try:
            run(seed)
            finished.add(seed)
            last = None
        except KeyboardInterrupt:
            code = 130
            break
        except Exception as error:
            failed[seed], before, last = str(error), last, str(error)
            if before == last:
                break
    return code or int(bool(failed)), [seed for seed in seeds if seed in finished], failed
