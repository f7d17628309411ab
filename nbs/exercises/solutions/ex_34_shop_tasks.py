"Solutions of ex_34_shop_tasks.ipynb: look only after you have tried."

from collections import Counter


def cheapest(products, longest):
    shelves = {}
    for category, title, price in products:
        shelves.setdefault(category, []).append((price, title))
    ranked = {category: sorted(shelf) for category, shelf in shelves.items() if 3 <= len(shelf) <= longest}
    return {category: shelf[0][1] for category, shelf in ranked.items() if shelf[0][0] < shelf[1][0]}


def guessed(train, test):
    counts, right = {}, {}
    for kind, answer in train:
        counts.setdefault(kind, Counter())[answer] += 1
    likely = {kind: min(found, key=lambda answer: (-found[answer], answer)) for kind, found in counts.items()}
    for kind, answer in test:
        right.setdefault(kind, []).append(kind in likely and likely[kind] == answer)
    return {kind: sum(hits) / len(hits) for kind, hits in right.items()}


def is_done(task, said, trace):
    def plain(answers):
        return None if answers is None else sorted(text.strip().lower() for text in answers)

    if plain(said) != plain(task["answer"]):
        return False
    if task["sent"] is None:
        return not any(method == "POST" for method, *_ in trace)
    method, path, wanted = task["sent"]
    forms = [(fields, status) for *where, fields, status in trace if where == [method, path]]
    return bool(forms) and forms[-1][1] == 302 and wanted.items() <= forms[-1][0].items()
