"Mistakes that readers make in the exercises, and words of the sentence that each of them gets."

import ast
from pathlib import Path

SOLUTIONS = Path(__file__).resolve().parent.parent / "nbs" / "exercises" / "solutions"


def changed(notebook: str, name: str, *changes: tuple[str, str]) -> str:
    "A function of the solutions with a mistake in it: each text, which stands there once, gives way to another."
    source = (SOLUTIONS / f"{notebook}.py").read_text(encoding="utf-8")
    (node,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == name]
    answer = ast.get_source_segment(source, node)
    for old, new in changes:
        assert answer.count(old) == 1, f"{notebook}, {name}: {old!r} stands there {answer.count(old)} times"
        answer = answer.replace(old, new)
    return answer


TOOL_GRAMMAR = r'''
class ToolGrammar(Grammar):
    def check_action(self, action, state):
        try:
            call = json.loads(action)
        except ValueError:
            raise InvalidAction("Not JSON.") from None
        if WRONG:
            raise InvalidAction("Name a tool.")
'''
ROLL_OUT = r'''
def roll_out(environment, task, choose):
    state, info = environment.reset(options={"task": task})
    steps, done, cut = [], False, False
    while not (done or cut):
        action = choose(state)
        after, reward, done, cut, _ = environment.step(action)
        steps.append(Transition(state=state, action=action, next_state=after, reward=reward, done=done))
        state = after
        cut = cut or LIMIT
    return Trajectory(task=info["task"], transitions=tuple(steps), truncated=cut)
'''

MISTAKES = [  # notebook, words of the sentence, what the reader wrote
    ("ex_00_toy_dream", "count all answers", r'''
def learn_transitions(states, actions, following, shape):
    table = np.full(shape, -1)
    table[states, actions] = following
    return table
'''),
    ("ex_00_toy_dream", "a dead group", r'''
def group_push(probabilities, actions, rewards):
    return (rewards[:, None] * (np.eye(len(probabilities))[actions] - probabilities)).mean(0)
'''),
    ("ex_00_toy_dream", "not the sum", r'''
def group_push(probabilities, actions, rewards):
    return ((rewards - rewards.mean())[:, None] * (np.eye(len(probabilities))[actions] - probabilities)).sum(0)
'''),
    ("ex_00_toy_dream", "not the last row", r'''
def expected_success(after, pays, policy, longest):
    value = np.zeros(len(after))
    for _ in range(longest):
        value = policy[:, -1] * pays + (policy[:, :-1] * value[after]).sum(1)
    return float(value[0])
'''),
    ("ex_01_trajectories", "costs no real step", r'''
def real_steps(trajectories):
    return sum(map(len, trajectories))
'''),
    ("ex_01_trajectories", "An outcome of 0 is an outcome", r'''
def write_down(task, steps, outcome):
    chain, before = [], task.start_state
    for number, (action, after) in enumerate(steps, 1):
        ended = bool(outcome) and number == len(steps)
        chain.append(Transition(state=before, action=action, next_state=after, reward=outcome if ended else 0.0, done=ended))
        before = after
    return Trajectory(task=task, transitions=tuple(chain), truncated=not outcome)
'''),
    ("ex_01_trajectories", "raised ValidationError", r'''
def write_down(task, steps, outcome):
    chain = [Transition(state=task.start_state, action=a, next_state=b, reward=0.0, done=False) for a, b in steps]
    return Trajectory(task=task, transitions=tuple(chain))
'''),
    ("ex_01_trajectories", "the task belongs to the question", r'''
def contradictions(trajectories):
    answers = {}
    for trajectory in trajectories:
        for step in trajectory.transitions:
            answers.setdefault((step.state, step.action), set()).add((step.next_state, step.reward))
    return sorted(("hello/0", *question) for question, known in answers.items() if len(known) > 1)
'''),
    ("ex_02_runs", "Python's global generator has moved", r'''
def numbers_for(master, purpose, count):
    random.seed(derive_seed(master, purpose))
    return [random.random() for _ in range(count)]
'''),
    ("ex_02_runs", "hash differs in every process", r'''
def numbers_for(master, purpose, count):
    generator = random.Random(hash((master, purpose)))
    return [generator.random() for _ in range(count)]
'''),
    ("ex_02_runs", "what looks done", r'''
def build(folder, name, make):
    if not (folder / name).exists():
        make(folder / name)
    return folder / name
'''),
    ("ex_02_runs", "the half result must go", r'''
def build(folder, name, make):
    target, unfinished = folder / name, folder / f".{name}.unfinished"
    if not target.exists():
        unfinished.unlink(missing_ok=True)
        make(unfinished)
        os.replace(unfinished, target)
    return target
'''),
    ("ex_02_runs", "start with nothing there", r'''
def build(folder, name, make):
    target, unfinished = folder / name, folder / f".{name}.unfinished"
    if not target.exists():
        try:
            make(unfinished)
        except BaseException:
            unfinished.unlink()
            raise
        os.replace(unfinished, target)
    return target
'''),
    ("ex_02_runs", "draws other steps", r'''
def walk(build, names, master):
    position, dice = 0.0, random.Random(derive_seed(master, names[0]))
    for name in names:
        def five_steps(path, place=position):
            places = [place := place + dice.uniform(-1, 1) for _ in range(5)]
            path.write_text("\n".join(map(repr, places)))

        position = float(build(name, five_steps).read_text().split()[-1])
    return position
'''),
    ("ex_02_runs", "begins elsewhere", r'''
def walk(build, names, master):
    position = 0.0
    for name in names:
        def five_steps(path, name=name):
            nonlocal position
            dice = random.Random(derive_seed(master, name))
            places = [position := position + dice.uniform(-1, 1) for _ in range(5)]
            path.write_text("\n".join(map(repr, places)))

        build(name, five_steps)
    return position
'''),
    ("ex_03_environments", "Seed 1 wants the brass key", r'''
class LockedDoor(LockedDoor):
    def step(self, action):
        if action == "open":
            return END_STATE, float(bool(self.used)), True, False, {}
        self.used = action.split()[1]
        return f"A closed door. The {self.used} key is in the lock.", 0.0, False, False, {}
'''),
    ("ex_03_environments", "raised AttributeError", TOOL_GRAMMAR.replace(
        "WRONG", 'call.get("tool") not in ("query", "answer")')),
    ("ex_03_environments", "an empty text", TOOL_GRAMMAR.replace(
        "WRONG", 'not isinstance(call, dict) or set(call) != {"tool", "text"} or call["tool"] not in ("query", "answer")')),
    ("ex_03_environments", "maximum_steps is 4", ROLL_OUT.replace("LIMIT", "len(steps) == 5")),
    ("ex_03_environments", "raised InvalidAction", ROLL_OUT.replace("LIMIT", "(not done and len(steps) == 4)")),
    ("ex_04_pages", "an action is one line", r'''
def takes(state, action):
    verb, _, rest = action.partition(" ")
    number, _, text = rest.partition(" ")
    element = next((e for e in parse_state(state) if str(e.id) == number.split("\n")[0]), None)
    if element is None:
        return False
    if verb == "type":
        return bool(text.strip()) and element.tag in ("input", "password", "textarea")
    return verb == "click" or text in element.options
'''),
    ("ex_04_pages", "a button takes no text", r'''
def takes(state, action):
    found = re.fullmatch(r"click (\d+)|(?:type|select) (\d+) \S.*", action)
    return bool(found) and int(found[1] or found[2]) in {e.id for e in parse_state(state)}
'''),
    ("ex_04_pages", "two texts", r'''
def read_line(line):
    found = re.fullmatch(r"\[(\d{1,4})\] ([a-z]+) '(.*)'", line)
    if not found:
        raise ValueError("Not a line of a page.")
    return int(found[1]), found[2], found[3].replace("\\'", "'").replace("\\\\", "\\")
'''),
    ("ex_04_pages", "the end of a line", r'''
def read_line(line):
    found = re.match(r"\[(\d{1,4})\] ([a-z]+) '((?:[^'\\]|\\.)*)'$", line)
    if not found:
        raise ValueError("Not a line of a page.")
    return int(found[1]), found[2], re.sub(r"\\(.)", r"\1", found[3])
'''),
    ("ex_04_pages", "USa is another text", changed("ex_04_pages", "slip",
        ("held not in held_by_page", "held not in state"))),
    ("ex_04_pages", "nobody looked at the password", changed("ex_04_pages", "slip",
        ("compared >= set(named) and ", ""))),
    ("ex_05_miniwob", "half marks are no success", r'''
def success_rate(endings):
    return sum(paid > 0 for paid, _ in endings) / len(endings)
'''),
    ("ex_05_miniwob", "thinks for four seconds has solved it", r'''
def success_rate(endings):
    return sum(paid == 1 for paid, _ in endings) / len(endings)
'''),
    ("ex_05_miniwob", "all that it has done so far", r'''
def count_replays(order, browsers):
    return sum(before != now and now in order[:place] for place, (before, now) in enumerate(zip(order, order[1:]), 1))
'''),
    ("ex_05_miniwob", "A acted after B", r'''
def count_replays(order, browsers):
    shown, done, replayed = [], [], 0
    for episode in order:
        if episode not in shown:
            replayed += done.count(episode)
            shown = shown[-(browsers - 1):] if browsers > 1 else []
            shown.append(episode)
        done.append(episode)
    return replayed
'''),
    ("ex_05_miniwob", "where a replayed page differs", changed("ex_05_miniwob", "play",
        ("                elif page != pages[step]:\n", ""),
        ('                    raise ValueError("A replayed page differs from the recorded one.")\n', ""))),
    ("ex_05_miniwob", "count afresh after each new page", changed("ex_05_miniwob", "play",
        ("                    failures = 0\n", ""))),
    ("ex_06_weights", "only the hash tells", r'''
def damaged(folder, hashes):
    return sorted(name for name in hashes if not (folder / name).exists())
'''),
    ("ex_06_weights", "raised FileNotFoundError", r'''
def damaged(folder, hashes):
    return sorted(name for name, wanted in hashes.items()
                  if hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted)
'''),
    ("ex_06_weights", "half a step at most", r'''
def four_bits(weights, size):
    blocks = weights.reshape(-1, size)
    step = np.ptp(blocks, axis=1) / 15
    levels = (blocks - blocks.min(1, keepdims=True)) / np.maximum(step, 1e-9)[:, None]
    return (levels + 1e-9).astype(int), blocks.min(1), step
'''),
    ("ex_06_weights", "each block needs a smallest value", r'''
def four_bits(weights, size):
    blocks, step = weights.reshape(-1, size), np.ptp(weights) / 15
    levels = np.rint((blocks - weights.min()) / (step or 1.0)).astype(int)
    return levels, np.full(len(blocks), weights.min()), np.full(len(blocks), step)
'''),
    ("ex_06_weights", "look at its hash, not at its name", changed("ex_06_weights", "fetch",
        ("target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == pinned", "target.exists()"))),
    ("ex_06_weights", "wrong bytes stood under the name of the target", r'''
def fetch(target, pinned, mirrors):
    for mirror in mirrors:
        try:
            target.write_bytes(mirror())
        except OSError:
            continue
        if hashlib.sha256(target.read_bytes()).hexdigest() == pinned:
            return target
    raise ValueError("No mirror helps.")
'''),
    ("ex_07_language_model", "the row before it", r'''
def score(logits, tokens, prompt, temperature):
    z = np.asarray(logits) / temperature
    logs = z - z.max(-1, keepdims=True)
    logs = logs - np.log(np.exp(logs).sum(-1, keepdims=True))
    return float(sum(logs[place, tokens[place]] for place in range(prompt, len(logs))))
'''),
    ("ex_07_language_model", "shared out anew", r'''
def score(logits, tokens, prompt, temperature):
    logs = logits - logits.max(-1, keepdims=True)
    logs = logs - np.log(np.exp(logs).sum(-1, keepdims=True))
    return float(sum(logs[place - 1, tokens[place]] for place in range(prompt, len(tokens)))) / temperature
'''),
    ("ex_07_language_model", "must exceed the number, not reach it", r'''
def choose(logits, temperature, uniform):
    if temperature == 0:
        return logits.argmax(1)
    p = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    sums = (p / p.sum(1, keepdims=True)).cumsum(1)
    return np.minimum((sums < uniform[:, None]).sum(1), logits.shape[1] - 1)
'''),
    ("ex_07_language_model", "may end a little below 1", r'''
def choose(logits, temperature, uniform):
    if temperature == 0:
        return logits.argmax(1)
    p = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    sums = (p / p.sum(1, keepdims=True)).cumsum(1)
    return (sums <= uniform[:, None]).sum(1)
'''),
    ("ex_07_language_model", "make the small product first", r'''
def adapted(x, weight, a, b, scale):
    return product(product(x, a), b * scale, product(x, weight))
'''),
    ("ex_07_language_model", "Once xWᵀ or W + BA is rounded", r'''
def adapted(x, weight, a, b, scale):
    return product(x, bf16(weight + scale * b @ a))
'''),
    ("ex_08_fast_model", "8 behind 9 is not 8 behind 7", r'''
def tree_size(sequences):
    return len({(place, token) for sequence in sequences for place, token in enumerate(sequence)})
'''),
    ("ex_08_fast_model", "parents of parents count too", r'''
def tree_attention(parents):
    mask, depths = np.eye(len(parents), dtype=bool), []
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node, parent] = True
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return mask, np.array(depths)
'''),
    ("ex_08_fast_model", "not behind all nodes before it", r'''
def tree_attention(parents):
    return np.tri(len(parents), dtype=bool), np.arange(len(parents))
'''),
    ("ex_08_fast_model", "which other sequences wrote", r'''
def tree_attention(parents):
    depths = []
    for parent in parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return np.tri(len(parents), dtype=bool), np.array(depths)
'''),
    ("ex_08_fast_model", "the model alone writes", r'''
def write(choose, guess, prompt, count, ahead, end):
    output = []
    while len(output) < count:
        tokens = [*prompt, *output]
        guessed = guess(tokens, min(ahead, count - len(output) - 1))
        output += choose([*tokens, *guessed], len(tokens))
        if end in output:
            return output[:output.index(end) + 1]
    return output
'''),
    ("ex_08_fast_model", "more passes than tokens", r'''
def write(choose, guess, prompt, count, ahead, end):
    output = []
    while len(output) < count:
        tokens = [*prompt, *output]
        guessed = guess(tokens, ahead) or choose(tokens, len(tokens))
        for token, chosen in zip(guessed, choose([*tokens, *guessed], len(tokens))):
            if token != chosen:
                break
            output.append(token)
            if token == end or len(output) == count:
                return output
    return output
'''),
    ("ex_09_rollouts", "a a a, a aa and aa a", r'''
def count_spellings(text, vocabulary):
    return sum(text.startswith(token) for token in vocabulary)
'''),
    ("ex_09_rollouts", "no token holds an x", r'''
def count_spellings(text, vocabulary):
    ways = [1]
    for end in range(1, len(text) + 1):
        ways.append(sum(ways[start] for start in range(end) if text[start:end] in vocabulary))
    return max(ways)
'''),
    ("ex_09_rollouts", "the agent would learn to predict pages", r'''
def training_rows(turns):
    longest = max(len(a) + len(b) for a, b, _ in turns)
    tokens, mask, old = np.zeros((len(turns), longest), int), np.zeros((len(turns), longest)), np.zeros((len(turns), longest))
    for row, (prompt, sampled, logs) in enumerate(turns):
        size = len(prompt) + len(sampled)
        tokens[row, :size], mask[row, :size] = prompt + sampled, 1
        old[row, len(prompt):size] = logs
    return tokens, mask, old
'''),
    ("ex_09_rollouts", "at the place of its token", r'''
def training_rows(turns):
    longest = max(len(a) + len(b) for a, b, _ in turns)
    tokens, mask, old = np.zeros((len(turns), longest), int), np.zeros((len(turns), longest)), np.zeros((len(turns), longest))
    for row, (prompt, sampled, logs) in enumerate(turns):
        tokens[row, :len(prompt) + len(sampled)] = prompt + sampled
        mask[row, len(prompt):len(prompt) + len(sampled)] = 1
        old[row, :len(logs)] = logs
    return tokens, mask, old
'''),
    ("ex_09_rollouts", "are asked together", r'''
def play_all(worlds, act, longest):
    output = []
    for world in worlds:
        state, done, total, count = world.reset(), False, 0.0, 0
        while not done and count < longest:
            state, reward, done = world.step(act([state])[0])
            total, count = total + reward, count + 1
        output.append((total, count, not done))
    return output
'''),
    ("ex_09_rollouts", "whose action is it?", r'''
def play_all(worlds, act, longest):
    states, live = [world.reset() for world in worlds], [True] * len(worlds)
    output = [(0.0, 0, True)] * len(worlds)
    for count in range(1, longest + 1):
        if not any(live):
            break
        actions = act([state for state, on in zip(states, live) if on])
        for i, world in enumerate(worlds):
            if live[i]:
                states[i], reward, done = world.step(actions[i % len(actions)])
                live[i], output[i] = not done, (reward, count, not done)
    return output
'''),
    ("ex_10_cot_annotation", "sets cannot count", r'''
def changed_lines(before, after):
    old, new = before.split("\n"), after.split("\n")
    return [line for line in old if line not in new], [line for line in new if line not in old]
'''),
    ("ex_10_cot_annotation", "raised KeyError", r'''
def parse_reasons(text, steps):
    fence = re.fullmatch(r"(?s)\s*```(?:json)?\s(.*)```\s*", text)
    reasons = json.loads(fence[1] if fence else text)["reasons"] if "{" in text else []
    if len(reasons) != steps or not steps or not isinstance(reasons, list):
        raise ValueError("Wrong number.")
    for reason in reasons:
        if not isinstance(reason, str) or not reason.strip() or "\n" in reason:
            raise ValueError("No reason.")
    if "won" in text:
        raise ValueError("Another field.")
    return reasons
'''),
    ("ex_10_cot_annotation", "raised JSONDecodeError", r'''
def parse_reasons(text, steps):
    return json.loads(text)["reasons"]
'''),
    ("ex_10_cot_annotation", "look for whole words", r'''
def invented(reason, known):
    return [quote for quote in re.findall(r'"([^"]*)"', reason) if quote not in " ".join(known)]
'''),
    ("ex_10_cot_annotation", "escape what goes into a pattern", r'''
def invented(reason, known):
    quotes = dict.fromkeys(q for q in re.findall(r'"([^"]*)"', reason) if q)
    return [q for q in quotes if not any(re.search(rf"\b{q}\b", text) for text in known)]
'''),
    ("ex_11_experience_model", "not the mean of the answers' means", r'''
def loss_parts(logs, traces):
    pairs = [(row[:n].mean() if n else 0.0, row[n:].mean()) for row, n in zip(logs, traces)]
    return tuple(-np.mean(pairs, axis=0))
'''),
    ("ex_11_experience_model", "a loss is minus the logarithm", r'''
def loss_parts(logs, traces):
    return (float(np.mean([x for row, n in zip(logs, traces) for x in row[:n]])),
            float(np.mean([x for row, n in zip(logs, traces) for x in row[n:]])))
'''),
    ("ex_11_experience_model", "the trace is empty", r'''
def read_answer(text, page):
    lines = text.split("\n")[1:] or [""]
    if lines[0] in ("=> success", "=> failure"):
        return END_STATE, float(lines[0] == "=> success"), True
    if lines[:2] == ["=> goes on", "page"]:
        return "\n".join(lines[2:]), 0.0, False
    new = {line.partition("]")[0]: line for line in lines[2:]}
    if lines[:1] == ["=> goes on"]:
        return "\n".join(new.get(line.partition("]")[0], line) for line in page.split("\n")), 0.0, False
    return FAILURE_STATE, 0.0, True
'''),
    ("ex_11_experience_model", "a forged ending", r'''
def read_answer(text, page):
    trace, _, rest = text.partition("\n")
    lines = rest.split("\n")
    if trace and lines in (["=> success"], ["=> failure"]):
        return END_STATE, float(lines == ["=> success"]), True
    if not trace or lines[0] != "=> goes on":
        return FAILURE_STATE, 0.0, True
    form, new = (lines[1:2] or [""])[0], lines[2:]
    after = page.split("\n") if form in ("same", "edit") else new
    heads = {line.partition("] ")[0]: i for i, line in enumerate(after)}
    if form not in ("same", "edit", "page") or (form == "same") == bool(new):
        return FAILURE_STATE, 0.0, True
    for line in new if form == "edit" else []:
        if line.partition("] ")[0] not in heads:
            return FAILURE_STATE, 0.0, True
        after[heads[line.partition("] ")[0]]] = line
    try:
        parse_state("\n".join(after))
    except StateError:
        return FAILURE_STATE, 0.0, True
    return "\n".join(after), 0.0, False
'''),
    ("ex_11_experience_model", "ids say which line is meant", r'''
def read_answer(text, page):
    lines = text.split("\n")
    if lines[1:] in (["=> success"], ["=> failure"]):
        return END_STATE, float(lines[1] == "=> success"), True
    if lines[2:3] == ["same"]:
        return page, 0.0, False
    return "\n".join(lines[3:] + page.split("\n")[len(lines) - 3:]), 0.0, False
'''),
    ("ex_11_experience_model", "equal questions are asked once", r'''
def imagine(model, queries, memory, doubt):
    new = [query for query in queries if query not in memory]
    for query, (trace, reward, done) in zip(new, model(new) if new else []):
        memory[query] = (trace, 0.0, True) if reward and doubt(trace, query) else (trace, reward, done)
    return [memory[query] for query in queries]
'''),
    ("ex_11_experience_model", "a dream repeats", r'''
def imagine(model, queries, memory, doubt):
    new = [query for query in dict.fromkeys(queries) if query not in memory]
    output = dict(memory)
    for query, answer in zip(new, model(new) if new else []):
        memory[query] = answer
        output[query] = (answer[0], 0.0, True) if answer[1] and doubt(answer[0], query) else answer
    return [output[query] for query in queries]
'''),
    ("ex_11_experience_model", "and you believe the success", r'''
def imagine(model, queries, memory, doubt):
    new = [query for query in dict.fromkeys(queries) if query not in memory]
    memory |= dict(zip(new, model(new) if new else []))
    return [memory[query] for query in queries]
'''),
    ("ex_12_replay_buffer", "only the direction counts", r'''
def cosines(queries, rows):
    return queries @ rows.T
'''),
    ("ex_12_replay_buffer", "not nan", r'''
def cosines(queries, rows):
    with np.errstate(all="ignore"):
        return (queries @ rows.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(rows, axis=1)
'''),
    ("ex_12_replay_buffer", "drop the rows of the own task first", r'''
def nearest(similarity, tasks, own_task, count):
    best = np.argsort(-similarity, kind="stable")[:count]
    return [int(row) for row in best if tasks[row] != own_task]
'''),
    ("ex_12_replay_buffer", "real entries always stay", r'''
def thin(entries, most):
    output = []
    for i, entry in enumerate(entries):
        newer = [e for e in entries[i + 1:] if e.outcome == entry.outcome]
        if len(newer) < most:
            output.append(entry)
    return output
'''),
    ("ex_12_replay_buffer", "the newest stay", r'''
def thin(entries, most):
    seen, kept = {}, []
    for entry in entries:
        seen[entry.outcome] = seen.get(entry.outcome, 0) + (not entry.real)
        if entry.real or seen[entry.outcome] <= most:
            kept.append(entry)
    return kept
'''),
    ("ex_13_curriculum", "cannot be split in half", r'''
def largest_variance(rollouts):
    return 0.25 if rollouts > 1 else 0.0
'''),
    ("ex_13_curriculum", "whatever the rate", r'''
def expected_variance(rate, group):
    return rate * (1 - rate)
'''),
    ("ex_13_curriculum", "not for what was asked for", r'''
def mix(real, invented, count, share):
    number = min(len(invented), int(share * count + 1e-9))
    return real[:count - number] + invented[:number]
'''),
    ("ex_13_curriculum", "allow for rounding", r'''
def mix(real, invented, count, share):
    number = min(len(invented), int(share * count))
    chosen = real[:count - number]
    while number > share * (number + len(chosen)):
        number -= 1
    return chosen + invented[:number]
'''),
    ("ex_20_statistics", "more are needed", r'''
def failures_needed(limit):
    return int(2 / limit)
'''),
    ("ex_20_statistics", "more than needed", r'''
def failures_needed(limit):
    return int(10 / limit)
'''),
    ("ex_20_statistics", "one time in seven", r'''
def power(first, second, tasks, repeats, random):
    seen = 0
    for _ in range(repeats):
        drawn = random.random(tasks)
        a, b = drawn < first, drawn < second
        seen += exact_mcnemar(int((a & ~b).sum()), int((b & ~a).sum())) < 0.05
    return seen / repeats
'''),
    ("ex_20_statistics", "draw whole tasks", r'''
def paired_interval(first, second, random):
    a = random.choice(first, (10_000, len(first))).mean(1)
    b = random.choice(second, (10_000, len(second))).mean(1)
    return tuple(np.quantile(b - a, (0.025, 0.975)))
'''),
    ("ex_20_statistics", "quantiles 2.5% and 97.5%", r'''
def paired_interval(first, second, random):
    differences = np.asarray(second, float) - np.asarray(first, float)
    means = random.choice(differences, (10_000, len(differences))).mean(1)
    return tuple(np.quantile(means, (0.05, 0.95)))
'''),
    ("ex_21_evaluation", "recognises no failure", r'''
def balanced_accuracy(dreamed, real):
    return float((dreamed == real).mean())
'''),
    ("ex_21_evaluation", "count as much as two", r'''
def across_types(kinds, outcomes):
    return float(np.mean(outcomes))
'''),
    ("ex_21_evaluation", "ten of ten leave room", r'''
def verdict(dreamed, real):
    failures = real == 0
    if not failures.any():
        return "not measured"
    return "honest" if (dreamed[failures] == 0).mean() >= 0.8 else "flattering"
'''),
    ("ex_21_evaluation", "nothing can be flattered", r'''
def verdict(dreamed, real):
    rate = wilson(int((dreamed == real).sum()), len(real))
    return "flattering" if rate.high < 0.8 else "honest" if rate.low >= 0.8 else "too few"
'''),
    ("ex_22_policy_gradients", "better than J", r'''
def policy_gradient(scores, rewards):
    p = np.exp(scores) / np.exp(scores).sum()
    return p * rewards
'''),
    ("ex_22_policy_gradients", "must not overflow", r'''
def policy_gradient(scores, rewards):
    with np.errstate(all="ignore"):
        p = np.exp(scores) / np.exp(scores).sum()
        return p * (rewards - p @ rewards)
'''),
    ("ex_22_policy_gradients", "chosen − p", r'''
def reinforce(scores, actions, rewards, baseline):
    return ((rewards - baseline)[:, None] * np.eye(len(scores))[actions]).mean(0)
'''),
    ("ex_22_policy_gradients", "take the mean over the draws", r'''
def reinforce(scores, actions, rewards, baseline):
    p = np.exp(scores) / np.exp(scores).sum()
    return ((rewards - baseline)[:, None] * (np.eye(len(p))[actions] - p)).sum(0)
'''),
    ("ex_22_policy_gradients", "a mistake can be undone", r'''
def clip_slope(ratios, advantage, clip):
    return np.where(np.abs(ratios - 1) > clip, 0.0, ratios * advantage)
'''),
    ("ex_22_policy_gradients", "stops pushing above 1.2", r'''
def clip_slope(ratios, advantage, clip):
    return np.asarray(ratios) * advantage
'''),
    ("ex_23_policy_optimization", "divides by n", r'''
def group_advantages(rewards, groups, divide):
    output = np.zeros(len(rewards))
    for group in np.unique(groups):
        rows = groups == group
        output[rows] = (rewards[rows] - rewards[rows].mean()) / (rewards[rows].std() + 1e-9 if divide else 1)
    return output
'''),
    ("ex_23_policy_optimization", "each group has its own mean", r'''
def group_advantages(rewards, groups, divide):
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) if divide else 1)
'''),
    ("ex_23_policy_optimization", "with λ = 0", r'''
def gae(rewards, values, discount, decay):
    return np.cumsum(rewards[::-1])[::-1] - values
'''),
    ("ex_23_policy_optimization", "a short answer counts", r'''
def grpo_loss(new, old, mask, advantages, clip):
    ratio, a = np.exp(np.where(mask > 0, new - old, 0.0)), advantages[:, None]
    gain = np.minimum(ratio * a, np.clip(ratio, 1 - clip, 1 + clip) * a)
    return -float((gain * mask).sum() / mask.sum())
'''),
    ("ex_23_policy_optimization", "is not clipped", r'''
def grpo_loss(new, old, mask, advantages, clip):
    ratio, a = np.exp(np.where(mask > 0, new - old, 0.0)), advantages[:, None]
    return -float(((np.clip(ratio, 1 - clip, 1 + clip) * a * mask).sum(1) / mask.sum(1)).mean())
'''),
    ("ex_23_policy_optimization", "a loss is minus the gain", r'''
def grpo_loss(new, old, mask, advantages, clip):
    return float(np.mean(advantages))
'''),
    ("ex_24_training_loop", "all won is as dead as all lost", r'''
def dead_share(rewards, groups):
    return float(np.mean([rewards[groups == group].sum() == 0 for group in np.unique(groups)]))
'''),
    ("ex_24_training_loop", "the share is one of groups", r'''
def dead_share(rewards, groups):
    dead = [group for group in np.unique(groups) if np.ptp(rewards[groups == group]) == 0]
    return float(np.isin(groups, dead).mean())
'''),
    ("ex_24_training_loop", "a solved type is not played any more", r'''
def two_returns(rates, least):
    weights = np.maximum(rates, least)
    weights[weights.sum(1) == 0] = 1.0
    return (weights * rates).sum(1) / weights.sum(1), rates.mean(1)
'''),
    ("ex_24_training_loop", "and so its own weights", r'''
def two_returns(rates, least):
    weights = np.maximum(rates[0] * (1 - rates[0]), least)
    weights = weights if weights.any() else np.ones(len(weights))
    return rates @ weights / weights.sum(), rates.mean(1)
'''),
    ("ex_24_training_loop", "come out of the file", r'''
def train(folder, state, update, iterations, seed):
    for number in range(1, iterations + 1):
        path = folder / f"{number:04d}.json"
        if path.exists():
            state = {**state, "weights": load(path)["weights"]}
            continue
        state = update(state, derive_seed(seed, "iteration", number))
        save(path, state)
    return state
'''),
    ("ex_24_training_loop", "the iterations get other seeds", r'''
def train(folder, state, update, iterations, seed):
    done = sorted(folder.glob("*.json"))
    state = load(done[-1]) if done else state
    for number in range(1, iterations + 1 - len(done)):
        state = update(state, derive_seed(seed, "iteration", number))
        save(folder / f"{len(done) + number:04d}.json", state)
    return state
'''),
    ("ex_24_training_loop", "the folder must hold", r'''
def train(folder, state, update, iterations, seed):
    states = []
    for number in range(1, iterations + 1):
        state = update(state, derive_seed(seed, "iteration", number))
        states.append(state)
    for number, state in enumerate(states, 1):
        save(folder / f"{number:04d}.json", state)
    return state
'''),
    ("ex_25_sim_to_real", "four might cost 192", r'''
def surely_fit(budget, used, group, longest):
    return max(0, round((budget - used) / (group * longest) + 0.49))
'''),
    ("ex_25_sim_to_real", "no number of groups is negative", r'''
def surely_fit(budget, used, group, longest):
    return (budget - used) // (group * longest)
'''),
    ("ex_25_sim_to_real", "plan each group for the unluckiest case", r'''
def spend(play, tasks, group, longest, budget):
    costs = []
    for task in tasks:
        expected = np.mean(costs) if costs else group * longest
        if sum(costs) + expected <= budget:
            costs += play([task])
    return costs
'''),
    ("ex_25_sim_to_real", "left over is used", r'''
def spend(play, tasks, group, longest, budget):
    chosen = tasks[:budget // (group * longest)]
    return list(play(chosen)) if chosen else []
'''),
    ("ex_25_sim_to_real", "and start together", r'''
def spend(play, tasks, group, longest, budget):
    costs = []
    for task in tasks:
        if sum(costs) + group * longest <= budget:
            costs += play([task])
    return costs
'''),
    ("ex_25_sim_to_real", "not by place", r'''
def across_seeds(before, after):
    gains = np.array(list(after.values())[:len(before)]) - np.array(list(before.values())[:len(after)])
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    side = sum(comb(better + worse, i) for i in range(min(better, worse) + 1)) / 2**(better + worse)
    return gains.mean(), better, worse, min(1.0, 2 * side)
'''),
    ("ex_25_sim_to_real", "the test looks at both sides", r'''
def across_seeds(before, after):
    gains = np.array([after[seed] - before[seed] for seed in before if seed in after])
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    return gains.mean(), better, worse, sum(comb(better + worse, i) for i in range(worse + 1)) / 2**(better + worse)
'''),
    ("ex_25_sim_to_real", "no p exceeds 1", r'''
def across_seeds(before, after):
    gains = np.array([after[seed] - before[seed] for seed in before if seed in after])
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    side = sum(comb(better + worse, i) for i in range(min(better, worse) + 1)) / 2**(better + worse)
    return gains.mean(), better, worse, 2 * side
'''),
    ("ex_30_own_environment", "each type takes its own turns", r'''
def split(tasks):
    panels = {"train": [], "development": [], "test": []}
    for place, task in enumerate(tasks):
        panels[("train", "test", "development", "train", "train")[place % 5]].append(task)
    return panels
'''),
    ("ex_30_own_environment", "the turns are training, test", r'''
def split(tasks):
    first, second = len(tasks) * 3 // 5, len(tasks) * 4 // 5
    return {"train": tasks[:first], "development": tasks[first:second], "test": tasks[second:]}
'''),
    ("ex_30_own_environment", "messages of one side are one", r'''
def episode_of(record):
    states = [m["content"] for m in record["messages"] if m["role"] != "assistant"]
    actions = [" ".join(m["content"].split()) for m in record["messages"] if m["role"] == "assistant"]
    return record["goal"], states + [END_STATE] * (len(actions) + 1 - len(states)), actions, record["reward"]
'''),
    ("ex_30_own_environment", "a reward of 3", r'''
def episode_of(record):
    turns = []
    for message in record["messages"]:
        acts, text = message["role"] == "assistant", message["content"]
        if turns and turns[-1][0] == acts:
            text = turns.pop()[1] + "\n" + text
        turns.append((acts, text))
    states, actions = [text for _, text in turns[::2]], [" ".join(text.split()) for _, text in turns[1::2]]
    return record["goal"], states + [END_STATE] * (len(actions) == len(states)), actions, record["reward"]
'''),
    ("ex_30_own_environment", "would give the test away", r'''
def may_learn(episodes, measured):
    return [number for number, (name, *_) in enumerate(episodes) if name not in measured]
'''),
    ("ex_30_own_environment", "the same goal on another page", r'''
def may_learn(episodes, measured):
    goals = {goal for name, goal, _ in episodes if name in measured}
    return [number for number, (name, goal, _) in enumerate(episodes) if name not in measured and goal not in goals]
'''),
    ("ex_30_own_environment", "the chain goes from a", r'''
def may_learn(episodes, measured):
    pairs = {(goal, page) for name, goal, page in episodes if name in measured}
    names = {name for name, goal, page in episodes if (goal, page) in pairs} | set(measured)
    pairs |= {(goal, page) for name, goal, page in episodes if name in names}
    return [n for n, (name, goal, page) in enumerate(episodes) if name not in names and (goal, page) not in pairs]
'''),
    ("ex_31_text_worlds", "an empty trunk", r'''
def offers(state):
    scene = read_scene(state)
    commands = [f"go {way}" for way in scene.exits]
    for thing, inside in scene.here.items():
        if inside == "closed":
            commands.append(f"open {thing}")
        elif thing not in ("stove", "oven", "cookbook"):
            commands += [f"take {name} from {thing}" for name in inside.split(", ")] if inside else [f"take {thing}"]
    return sorted(commands)
'''),
    ("ex_31_text_worlds", "a stove is not carried away", r'''
def offers(state):
    scene = read_scene(state)
    commands = [f"go {way}" for way in scene.exits]
    commands += [f"open {thing}" for thing, inside in scene.here.items() if inside == "closed"]
    commands += [f"take {thing}" for thing, inside in scene.here.items() if not inside]
    return sorted(commands + [f"take {name} from {thing}" for thing, inside in scene.here.items()
                              if inside not in ("", "closed", "empty") for name in inside.split(", ")])
'''),
    ("ex_31_text_worlds", "which is cut inside a word", r'''
def meant(action, commands):
    said = " ".join(word for word in action.lower().strip(" .!").split() if word not in ("a", "an", "the"))
    found = [c for c in commands if c == said] or [c for c in commands if c.startswith(said)]
    if len(found) != 1:
        raise ValueError("Which command?")
    return found[0]
'''),
    ("ex_31_text_worlds", "raised ValueError: Which command?", r'''
def meant(action, commands):
    said = " ".join(word for word in action.lower().strip(" .!").split() if word not in ("a", "an", "the"))
    found = [c for c in commands if f"{c} ".startswith(f"{said} ")]
    if len(found) != 1:
        raise ValueError("Which command?")
    return found[0]
'''),
    ("ex_31_text_worlds", "leave out the record that is asked about", r'''
def told_right(questions, answers):
    counts = {}
    for question, answer in zip(questions, answers):
        counts.setdefault(question, Counter())[answer] += 1
    right = [counts[question].most_common(1)[0][0] == answer for question, answer in zip(questions, answers)]
    coins = [hit for hit, answer in zip(right, answers) if answer != "nothing"]
    return sum(right) / len(right), sum(coins) / len(coins)
'''),
    ("ex_31_text_worlds", "nobody else was asked", r'''
def told_right(questions, answers):
    right = []
    for place, question in enumerate(questions):
        others = Counter(a for i, (q, a) in enumerate(zip(questions, answers)) if q == question and i != place).most_common()
        tie = len(others) > 1 and others[0][1] == others[1][1]
        right.append(bool(others) and ("nothing" if tie else others[0][0]) == answers[place])
    coins = [hit for hit, answer in zip(right, answers) if answer != "nothing"]
    return sum(right) / len(right), sum(coins) / len(coins)
'''),
    ("ex_32_webarena", "[new] is no id and stays", r'''
def harmless(text):
    printed = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printed.split()).replace("[", "(").replace("]", ")").replace('"', "'")
'''),
    ("ex_32_webarena", "so this is no id", r'''
def harmless(text):
    printed = "".join(letter for letter in text if letter.isprintable() or letter.isspace() or letter == "\x00")
    printed = re.sub(r"\[([A-Za-z]*[0-9]+)\]", r"(\1)", printed.replace("\x00", " "))
    return " ".join(printed.split()).replace('"', "'")
'''),
    ("ex_32_webarena", "was accepted", r'''
def read_action(text):
    name, arguments = text.strip().split("(", 1)
    if name not in TAKES:
        raise ValueError("Unknown.")
    return name, eval("(" + arguments.removesuffix(")") + ("," if arguments != ")" else "") + ")", globals())
'''),
    ("ex_32_webarena", "where True is no number", r'''
def read_action(text):
    try:
        call = ast.parse(text.strip(), mode="eval").body
        name, arguments = call.func.id, tuple(map(ast.literal_eval, call.args))
        sound = not call.keywords and len(arguments) == len(TAKES[name])
        sound = sound and all(isinstance(a, (int, float) if k is float else k) for a, k in zip(arguments, TAKES[name]))
    except (SyntaxError, AttributeError, KeyError):
        sound = False
    if not sound:
        raise ValueError("No action.")
    return name, arguments
'''),
    ("ex_32_webarena", "elements are not", r'''
def state_lines(page):
    menu, lines = [], []

    def pieces(node):
        if "id" in node:
            return [f'[{node["id"]}] {node["role"]} "{node["name"]}"']
        if node["role"] == "text":
            return [node["name"]]
        return [piece for child in node.get("children", ()) for piece in pieces(child)]

    def visit(node):
        if node["role"] in AROUND:
            menu.extend(piece for piece in pieces(node) if piece.startswith("["))
        elif node["role"] == "row":
            lines.append("row: " + " | ".join(pieces(node)))
        elif "id" in node or node["role"] == "text":
            lines.extend(pieces(node))
        else:
            [visit(child) for child in node.get("children", ())]

    visit(page)
    return ["Menu: " + "; ".join(menu)] * bool(menu) + lines
'''),
    ("ex_32_webarena", "a price must stand beside its lamp", r'''
def state_lines(page):
    menu, lines = [], []

    def visit(node, around=False, named=False):
        around = around or node["role"] in AROUND
        if "id" in node:
            (menu if around else lines).append(f'[{node["id"]}] {node["role"]} "{node["name"]}"')
        elif node["role"] == "text" and not around and not named:
            lines.append(node["name"])
        for child in node.get("children", ()):
            visit(child, around, named or "id" in node)

    visit(page)
    return ["Menu: " + "; ".join(menu)] * bool(menu) + lines
'''),
    ("ex_33_shop", "must give the largest number, 6", r'''
def whole(draw, low, high):
    return low + int(draw() * (high - low))
'''),
    ("ex_33_shop", "each of the six should come 100 times", r'''
def whole(draw, low, high):
    return low + round(draw() * (high - low))
'''),
    ("ex_33_shop", "a row that is there twice counts twice", r'''
def digest(tables):
    import hashlib
    rows = [(name, sorted(set(map(repr, found)))) for name, found in sorted(tables.items())]
    return hashlib.sha256(repr(rows).encode()).hexdigest()
'''),
    ("ex_33_shop", "the border between two cells", r'''
def digest(tables):
    import hashlib
    rows = [(name, sorted("".join(map(str, row)) for row in found)) for name, found in sorted(tables.items())]
    return hashlib.sha256(repr(rows).encode()).hexdigest()
'''),
    ("ex_33_shop", "do not overwrite", changed("ex_33_shop", "restore",
        ("    os.replace(fresh, current)",
         "    if current.exists():\n        shutil.copyfile(fresh, current)\n    os.replace(fresh, current)"))),
    ("ex_33_shop", "still lay beside it", changed("ex_33_shop", "restore",
        ('("-journal", "-wal", "-shm")', '("-wal", "-shm")'))),
    ("ex_34_shop_tasks", "would be called wrong", r'''
def cheapest(products, longest):
    shelves = {}
    for category, title, price in products:
        shelves.setdefault(category, []).append((price, title))
    return {category: min(shelf)[1] for category, shelf in shelves.items() if 3 <= len(shelf) <= longest}
'''),
    ("ex_34_shop_tasks", "harm only where they are the lowest", r'''
def cheapest(products, longest):
    shelves = {}
    for category, title, price in products:
        shelves.setdefault(category, []).append((price, title))
    return {category: min(shelf)[1] for category, shelf in shelves.items()
            if 3 <= len(shelf) <= longest and len({price for price, _ in shelf}) == len(shelf)}
'''),
    ("ex_34_shop_tasks", "comes from training, not from the test", r'''
def guessed(train, test):
    counts = {}
    for kind, answer in test:
        counts.setdefault(kind, Counter())[answer] += 1
    return {kind: max(found.values()) / found.total() for kind, found in counts.items()}
'''),
    ("ex_34_shop_tasks", "answers of another kind do not count", r'''
def guessed(train, test):
    counts, right = Counter(answer for _, answer in train), {}
    likely = min(counts, key=lambda answer: (-counts[answer], answer))
    for kind, answer in test:
        right.setdefault(kind, []).append(kind in dict(train) and likely == answer)
    return {kind: sum(hits) / len(hits) for kind, hits in right.items()}
'''),
    ("ex_34_shop_tasks", "it was right and was spoilt", changed("ex_34_shop_tasks", "is_done",
        ("bool(forms) and forms[-1][1] == 302 and wanted.items() <= forms[-1][0].items()",
         "any(status == 302 and wanted.items() <= fields.items() for fields, status in forms)"))),
    ("ex_34_shop_tasks", "and something was bought", changed("ex_34_shop_tasks", "is_done",
        ('not any(method == "POST" for method, *_ in trace)', "True"))),
    ("ex_34_shop_tasks", "how often counts", r'''
def is_done(task, said, trace):
    return {text.strip().lower() for text in said or ()} == {text.lower() for text in task["answer"] or ()}
'''),
    ("ex_35_webarena_infinity", "an app is held out whole", r'''
def panel_of(app, task):
    number = int(hashlib.sha256(f"{app}/{task}".encode()).hexdigest()[:8], 16) / 16**8
    return "train" if number < 0.45 else "development" if number < 0.6 else "test" if number < 0.75 else "held_out"
'''),
    ("ex_35_webarena_infinity", "not of the task alone", r'''
def panel_of(app, task):
    def digest(text):
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8

    if digest(app) < 0.25:
        return "held_out"
    return "train" if digest(task) < 0.6 else "development" if digest(task) < 0.8 else "test"
'''),
    ("ex_35_webarena_infinity", "a list of tasks under another name", r'''
def served(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                  if path.is_file() and path.suffix.lower() in SERVED and "tasks" not in path.name
                  and not any(part.startswith(".") for part in path.relative_to(folder).parts))
'''),
    ("ex_35_webarena_infinity", "the link leads out of the folder", r'''
def served(folder):
    def sound(path):
        words = path.read_text() if path.suffix == ".json" else ""
        return not ('"instruction"' in words and '"verify"' in words)

    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                  if path.is_file() and path.suffix.lower() in SERVED and sound(path)
                  and not any(part.startswith(".") for part in path.relative_to(folder).parts))
'''),
    ("ex_35_webarena_infinity", "which says 1", changed("ex_35_webarena_infinity", "verdict",
        ("list(map(type, said)) != [bool, str]", "said[0] not in (True, False)"))),
    ("ex_35_webarena_infinity", "you return True", r'''
def verdict(program, limit):
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=limit)
    return json.loads(ended.stdout.splitlines()[-1])[0]
'''),
    ("ex_35_webarena_infinity", "it should raise SiteFailed", r'''
def verdict(program, limit):
    try:
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=limit, env={})
        return json.loads(ended.stdout.splitlines()[-1])[0] is True
    except (subprocess.TimeoutExpired, ValueError, IndexError, TypeError):
        return False
'''),
    ("ex_36_shop_dream", "all tokens must be right", r'''
def longest(p, wanted):
    return round((1 - wanted) / (1 - p) * 2)
'''),
    ("ex_36_shop_dream", "tokens would do", r'''
def longest(p, wanted):
    return int((1 - wanted) / (1 - p) + 1e-9)
'''),
    ("ex_36_shop_dream", "which begins as one form and goes on as another", r'''
def read_answer(answer, page, remembered):
    head, *lines = answer.split("\n")
    if head == "same":
        return page
    if head == "page":
        return lines
    output = list(remembered)
    for line in lines:
        number, _, words = line.partition("= ")
        if number.isdigit():
            output[int(number) - 1] = words
    return output
'''),
    ("ex_36_shop_dream", "which counts from 0", changed("ex_36_shop_dream", "read_answer",
        ("([1-9][0-9]*)= (.+)", "(-?[0-9]+)= (.+)"), ("not last < int(found[1]) <= len(output)", "int(found[1]) > len(output)"))),
    ("ex_36_shop_dream", "a success that goes on in the dream", changed("ex_36_shop_dream", "findings",
        ('s["done"] and s["reward"] == real', '(s["reward"] == real or not s["done"])'))),
    ("ex_36_shop_dream", "who calls all a failure", changed("ex_36_shop_dream", "findings",
        ("(success + failure) / 2", "max(success, failure)"))),
    ("ex_40_experiments", "a test trains nobody", r'''
def bill(steps, uses):
    return sum(steps.values()) if uses else steps["demonstrations"] + steps["evaluation"]
'''),
    ("ex_40_experiments", "all logged steps had to be taken", r'''
def bill(steps, uses):
    return steps["demonstrations"] + ("RL" in uses) * steps["RL"]
'''),
    ("ex_40_experiments", "were looked at once", r'''
def bill(steps, uses):
    pages = "first pages"
    charged = {"logs": ["logs"], "dream": [pages, "gate"], "real": [pages, "RL"], "few": [pages, "few"]}
    return steps["demonstrations"] + sum(steps[purpose] for use in uses for purpose in charged[use])
'''),
    ("ex_40_experiments", "a known goal on a new page", r'''
def split_seen(rows):
    if any(None in (row["goal_read"], row["page_read"]) for row in rows):
        return "unknown"
    seen = [row["success"] for row in rows if row["goal_read"] or row["page_read"]]
    unseen = [row["success"] for row in rows if not row["goal_read"] and not row["page_read"]]
    return sum(seen), len(seen), sum(unseen), len(unseen)
'''),
    ("ex_40_experiments", "not known is not unseen", r'''
def split_seen(rows):
    seen = [row["success"] for row in rows if row["goal_read"] and row["page_read"]]
    unseen = [row["success"] for row in rows if not (row["goal_read"] and row["page_read"])]
    return sum(seen), len(seen), sum(unseen), len(unseen)
'''),
    ("ex_40_experiments", "draw seeds, not only tasks", r'''
def two_stage_interval(first, second, random):
    differences = (second - first).ravel()
    means = random.choice(differences, (2000, len(differences))).mean(1)
    return tuple(np.quantile(means, (0.025, 0.975)))
'''),
    ("ex_40_experiments", "within each drawn seed draw its tasks", r'''
def two_stage_interval(first, second, random):
    means = random.choice((second - first).mean(1), (2000, len(first))).mean(1)
    return tuple(np.quantile(means, (0.025, 0.975)))
'''),
    ("ex_40_experiments", "within each task", r'''
def two_stage_interval(first, second, random):
    sides = []
    for outcomes in (first, second):
        rows = random.integers(len(outcomes), size=(2000, len(outcomes)))
        columns = random.integers(outcomes.shape[1], size=(2000, *outcomes.shape))
        sides.append(outcomes[rows[:, :, None], columns].mean((1, 2)))
    return tuple(np.quantile(sides[1] - sides[0], (0.025, 0.975)))
'''),
    ("ex_41_reproduction", "which is printed as 6.1", r'''
def single_run(percent, tasks, decimals=1):
    return abs(percent * tasks / 100 - round(percent * tasks / 100)) < 1e-6
'''),
    ("ex_41_reproduction", "would be printed as 33.3", r'''
def single_run(percent, tasks, decimals=1):
    return abs(percent * tasks / 100 - round(percent * tasks / 100)) < 0.2
'''),
    ("ex_41_reproduction", "steps that nobody has counted are not zero", r'''
def unbeaten(agents):
    agents = {name: (success, 0 if np.isnan(steps) else steps) for name, (success, steps) in agents.items()}
    return sorted(name for name, (success, steps) in agents.items()
                  if not any(s >= success and n <= steps and (s, n) != (success, steps) for s, n in agents.values())), []
'''),
    ("ex_41_reproduction", "equal agents do not beat each other", r'''
def unbeaten(agents):
    counted = {name: agent for name, agent in agents.items() if not np.isnan(agent[1])}
    return sorted(name for name, (success, steps) in counted.items()
                  if not any(s >= success and n <= steps for other, (s, n) in counted.items() if other != name)), sorted(
                      set(agents) - set(counted))
'''),
    ("ex_41_reproduction", "so 1 and 6", r'''
def possible_p(first, second, tasks):
    p = exact_mcnemar(max(0, first - second), max(0, second - first))
    return p, p
'''),
    ("ex_41_reproduction", "at most the second fails one", changed("ex_41_reproduction", "possible_p",
        ("max(0, first + second - tasks)", "0"))),
    ("ex_42_theory", "the end is a state, too", changed("ex_42_theory", "total_variation", ("abs(moved.sum())", "0"))),
    ("ex_42_theory", "half of 0.2 + 0 + 0.2", changed("ex_42_theory", "total_variation", (" / 2", ""))),
    ("ex_42_theory", "the second step, which pays, is dreamed", changed("ex_42_theory", "partly_dreamed",
        ("step < lived else dream", "step >= steps - lived else dream"))),
    ("ex_42_theory", "one step leads nowhere yet", changed("ex_42_theory", "partly_dreamed",
        ("range(steps)", "range(steps + 1)"))),
    ("ex_42_theory", "after the last step nothing comes", changed("ex_42_theory", "own_steps_bound",
        (" * (step < steps - 1)", ""))),
    ("ex_42_theory", "the second step pays 0.6 instead of 1", changed("ex_42_theory", "own_steps_bound",
        ("(taken * rewards).sum()", "rewards.max()"))),
    ("ex_42_theory", "only half of the real episodes", changed("ex_42_theory", "own_steps_bound",
        ('taken, real[1])', "taken, real[1] / real[1].sum(2, keepdims=True).clip(1e-9))"))),
    ("ex_43_failure_gallery", "who always says failure", r'''
def ceiling(traces, outcomes):
    return sum(("not complete" not in trace) == outcome for trace, outcome in zip(traces, outcomes)) / len(traces)
'''),
    ("ex_43_failure_gallery", "both traces say nothing", r'''
def ceiling(traces, outcomes):
    return max(np.mean(outcomes), 1 - np.mean(outcomes)) if len(set(traces)) == 1 else 1.0
'''),
    ("ex_43_failure_gallery", "the batch has the mean 0.25", r'''
def advantages(rewards, groups, weight):
    output = np.zeros(len(rewards))
    for group in np.unique(groups):
        output[groups == group] = rewards[groups == group] - rewards[groups == group].mean()
    return output
'''),
    ("ex_43_failure_gallery", "at full weight", r'''
def advantages(rewards, groups, weight):
    output = np.zeros(len(rewards))
    for group in np.unique(groups):
        rows = groups == group
        output[rows] = rewards[rows] - (rewards.mean() if np.ptp(rewards[rows]) == 0 else rewards[rows].mean())
    return weight * output
'''),
    ("ex_43_failure_gallery", "after success has come", r'''
def diagnose(curve):
    if curve["dead"][-1] > 0.9:
        return "dead groups"
    return "healthy" if curve["dreamed"][-1] > 0.9 else "inverted mask"
'''),
    ("ex_43_failure_gallery", "the world's is not", r'''
def diagnose(curve):
    if curve["dead"].min() == 1:
        return "dead groups"
    if curve["entropy"][5:10].mean() < 0.1 and curve["real"][-1] < 0.9:
        return "collapse"
    return "healthy" if curve["dreamed"][-10:].mean() > 0.8 else "inverted mask"
'''),
    ("ex_80_benchmarks", "The ratio of the two medians would be 1", r'''
def speed_up(ours, theirs):
    ratios = np.array(theirs[1:]) / np.array(ours[1:])
    return np.median(theirs[1:]) / np.median(ours[1:]), ratios.min(), ratios.max()
'''),
    ("ex_80_benchmarks", "fills caches and does not count", r'''
def speed_up(ours, theirs):
    ratios = np.array(theirs) / np.array(ours)
    return np.median(ratios), ratios.min(), ratios.max()
'''),
    ("ex_80_benchmarks", "Everybody once, then again", r'''
def take_turns(programs, rounds, budget, clock):
    output = {}
    for name, work in programs.items():
        output[name] = []
        for number in range(rounds + 1):
            before = clock()
            work()
            output[name] += [clock() - before] * (number > 0)
    return output
'''),
    ("ex_80_benchmarks", "the budget is 20", changed("ex_80_benchmarks", "take_turns",
        (" * (number + 1) / number > budget", " > budget"))),
    ("ex_80_benchmarks", "weights are read once for all", changed("ex_80_benchmarks", "decoding_limit",
        ("2 * batch * weights", "2 * weights"),
        ("return batch / max", "return 1 / max"))),
    ("ex_80_benchmarks", "both take a second", changed("ex_80_benchmarks", "decoding_limit",
        ("max(arithmetic, reading)", "(arithmetic + reading)"))),
    ("ex_90_report", "the sign & comes first", r'''
def escaped(text):
    for sign, name in (("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#x27;")):
        text = text.replace(sign, name)
    return COMMANDS.sub(REPLACEMENT, text)
'''),
    ("ex_90_report", "so does a single one", r'''
def escaped(text):
    return COMMANDS.sub(REPLACEMENT, html.escape(text, quote=False).replace('"', "&quot;"))
'''),
    ("ex_90_report", "65 of 70 is another question", changed("ex_90_report", "cell",
        ("np.mean(rates):.0f", "sum(s for s, _ in seeds) / sum(t for _, t in seeds):.0f"))),
    ("ex_90_report", "are not 300 independent trials", changed("ex_90_report", "cell",
        ("    means =", "    rates = np.concatenate([np.arange(t) < s for s, t in seeds])\n    means ="))),
    ("ex_90_report", "one is too many", r'''
def side_by_side(real, imagined):
    pages = real.split("\n"), imagined.split("\n")
    return tuple("\n".join(html.escape(line) if line in other else f"<mark>{html.escape(line)}</mark>" for line in page)
                 for page, other in zip(pages, pages[::-1]))
'''),
    ("ex_90_report", "moves the others", changed("ex_90_report", "side_by_side",
        ("        elif common[i + 1][j] >= common[i][j + 1]:\n            i += 1\n        else:\n            j += 1\n",
         "        else:\n            i, j = i + 1, j + 1\n"))),
    ("ex_90_report", "agree in their order", r'''
def side_by_side(real, imagined):
    first, second, kept = real.split("\n"), imagined.split("\n"), (set(), set())
    for block in difflib.SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        kept[0].update(range(block.a, block.a + block.size))
        kept[1].update(range(block.b, block.b + block.size))
    return tuple("\n".join(html.escape(line) if place in same else f"<mark>{html.escape(line)}</mark>"
                           for place, line in enumerate(page)) for page, same in zip((first, second), kept))
'''),
    ("ex_91_machine", "whatever it says", changed("ex_91_machine", "version",
        (" and ended.returncode == 0", ""))),
    ("ex_91_machine", "of nested groups the smallest", changed("ex_91_machine", "usable_memory",
        ("in limits if", "in limits[:1] if"))),
    ("ex_91_machine", "in units of 1,024 bytes", changed("ex_91_machine", "usable_memory",
        ("* 1024", "* 1000"))),
    ("ex_91_machine", "must not be there afterwards", r'''
def with_variables(values, function):
    before = {name: os.environ.get(name, "") for name in values}
    os.environ.update(values)
    try:
        return function()
    finally:
        os.environ.update(before)
'''),
    ("ex_91_machine", "all is as before", r'''
def with_variables(values, function):
    before = dict(os.environ)
    for name, value in values.items():
        os.environ.pop(name, None)
        os.environ.update({} if value is None else {name: value})
    found = function()
    os.environ.clear()
    os.environ.update(before)
    return found
'''),
    ("ex_91_machine", "is not touched", r'''
def with_variables(values, function):
    before = dict(os.environ)
    try:
        for name, value in values.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
        return function()
    finally:
        os.environ.clear()
        os.environ.update(before)
'''),
    ("ex_91_machine", "the first must not stay", r'''
def with_variables(values, function):
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        os.environ.pop(name, None)
        os.environ.update({} if value is None else {name: value})
    try:
        return function()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
'''),
    ("ex_92_notebook_runner", "work on a copy", r'''
def runnable(notebook):
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return notebook
'''),
    ("ex_92_notebook_runner", "a comment behind code", r'''
def runnable(notebook):
    output = copy.deepcopy(notebook)
    for place, cell in enumerate(output["cells"]):
        if cell["cell_type"] == "code" and re.search(r"(?m)^#\s*\|\s*eval\s*:\s*false\s*$", cell["source"]):
            output["cells"][place] = {"cell_type": "markdown", "source": cell["source"]}
        elif cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return output
'''),
    ("ex_92_notebook_runner", "not the mean of two ratios", changed("ex_92_notebook_runner", "seconds_left",
        ("sum(finished.values()) / known",
         "sum(s / weights.get(n, 10) for n, s in finished.items()) / len(finished)"))),
    ("ex_92_notebook_runner", "is not taken from the others", changed("ex_92_notebook_runner", "seconds_left",
        ("max(0.0, times[0] - elapsed) + sum(times[1:])", "max(0.0, sum(times) - elapsed)"))),
    ("ex_92_notebook_runner", "the chapters that knew it run again", r'''
def to_run(chapters, record, stages):
    rows = [json.loads(text) for text in record.splitlines()]
    done = {row["chapter"] for row in rows if chapters.get(row["chapter"]) == row["source"]}
    return [name for name in chapters if name not in done]
'''),
    ("ex_92_notebook_runner", "what was done before that does not count", r'''
def to_run(chapters, record, stages):
    rows = [json.loads(text) for text in record.splitlines()]
    done = {row["chapter"] for row in rows if chapters.get(row["chapter"]) == row["source"] and set(row["stages"]) <= stages}
    return [name for name in chapters if name not in done]
'''),
    ("ex_92_notebook_runner", "so the file was damaged", changed("ex_92_notebook_runner", "to_run",
        ("            if place < len(lines):\n                raise\n            break\n",
         "            continue\n"))),
    ("ex_93_command_line", "both ends of a range", r'''
def read_seeds(text):
    seeds = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last)) if last else [int(first)]
    return seeds
'''),
    ("ex_93_command_line", "it should raise DreamgymError", r'''
def read_seeds(text):
    seeds = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(seeds))
'''),
    ("ex_93_command_line", "the part that is wrong", changed("ex_93_command_line", "read_seeds",
        ("{part.strip()!r}", "{text!r}"))),
    ("ex_93_command_line", "Ctrl-C: out comes KeyboardInterrupt", r'''
def run_command(action):
    try:
        return action() or 0, ""
    except Exception as error:
        return 1, " ".join(f"{'' if isinstance(error, DreamgymError) else type(error).__name__} {error}".split())
'''),
    ("ex_93_command_line", "SystemExit was swallowed", r'''
def run_command(action):
    try:
        return action() or 0, ""
    except KeyboardInterrupt:
        return 130, "Interrupted."
    except DreamgymError as error:
        return 1, " ".join(str(error).split())
    except BaseException as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return 1, "The disk is full."
        return 1, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".strip()
'''),
    ("ex_93_command_line", "the next ones run all the same", r'''
def run_seeds(seeds, done, run):
    finished = set(done)
    for seed in seeds:
        if seed not in done:
            run(seed)
            finished.add(seed)
    return 0, [seed for seed in seeds if seed in finished], {}
'''),
    ("ex_93_command_line", "these two are not in a row", changed("ex_93_command_line", "run_seeds",
        ("            last = None\n", ""))),
    ("ex_93_command_line", "in a row, but for two reasons", changed("ex_93_command_line", "run_seeds",
        ("if before == last:", "if before is not None:"))),
]
