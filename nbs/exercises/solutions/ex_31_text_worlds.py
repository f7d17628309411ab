"Solutions of ex_31_text_worlds.ipynb: look only after you have tried."

from collections import Counter

from dreamgym.suites.text_worlds import read_scene


def offers(state):
    scene = read_scene(state)
    commands = [f"go {way}" for way in scene.exits]
    for thing, inside in scene.here.items():
        if thing in ("stove", "oven", "cookbook") or inside == "empty":
            continue
        if inside == "closed":
            commands.append(f"open {thing}")
        elif not inside:
            commands.append(f"take {thing}")
        else:
            commands += [f"take {name} from {thing}" for name in inside.split(", ")]
    return sorted(commands)


def meant(action, commands):
    said = " ".join(word for word in action.lower().strip(" .!").split() if word not in ("a", "an", "the"))
    found = [c for c in commands if c == said] or [c for c in commands if said and c.startswith(f"{said} ")]
    if len(found) != 1:
        raise ValueError(f"{action[:60]!r} is none of the commands, or could be several.")
    return found[0]


def told_right(questions, answers):
    counts = {}
    for question, answer in zip(questions, answers, strict=True):
        counts.setdefault(question, Counter())[answer] += 1
    right = []
    for question, answer in zip(questions, answers, strict=True):
        others = counts[question] - Counter([answer])
        first, second = [*others.most_common(2), ("nothing", 0), ("nothing", 0)][:2]
        told = first[0] if first[1] > second[1] else "nothing"
        right.append(told == answer)
    something = [hit for hit, answer in zip(right, answers, strict=True) if answer != "nothing"]
    return sum(right) / len(right), sum(something) / len(something)
