"Solutions of ex_03_environments.ipynb: look only after you have tried."

import json

from dreamgym.environments import Grammar, InvalidAction, TextEnvironment, task_of
from dreamgym.trajectories import END_STATE, FAILURE_STATE, Trajectory, Transition


class LockedDoor(TextEnvironment):
    keys = ("iron", "brass", "gold")

    def reset(self, *, seed=None, options=None):
        task = task_of(options)
        self.right, self.used = self.keys[task.seed % 3], ""
        goal = f"Use the {self.right} key, then open the door."
        return "A closed door.", {"task": task.model_copy(update={"goal": goal, "start_state": "A closed door."})}

    def step(self, action):
        if action == "open":
            return END_STATE, float(self.used == self.right), True, False, {}
        name = action.removeprefix("use ").removesuffix(" key")
        if name not in self.keys or action != f"use {name} key":
            raise InvalidAction(f"A door does not understand {action[:60]!r}.")
        self.used = name
        return f"A closed door. The {name} key is in the lock.", 0.0, False, False, {}


class ToolGrammar(Grammar):
    def check_action(self, action, state):
        try:
            call = json.loads(action)
        except (ValueError, RecursionError):
            raise InvalidAction("The action is not JSON.") from None
        if not isinstance(call, dict) or set(call) != {"tool", "text"}:
            raise InvalidAction("The action must be an object with the fields tool and text.")
        if call["tool"] not in ("query", "answer"):
            raise InvalidAction("The tool must be query or answer.")
        if not isinstance(call["text"], str) or not call["text"]:
            raise InvalidAction("The text must be a string that is not empty.")


def roll_out(environment, task, choose):
    state, info = environment.reset(options={"task": task})
    steps, done, truncated = [], False, False
    while not done and not truncated:
        action, invalid = choose(state), False
        try:
            after, reward, done, truncated, _ = environment.step(action)
        except InvalidAction:
            after, reward, done, truncated, invalid = FAILURE_STATE, 0.0, True, False, True
        steps.append(Transition(state=state, action=action, next_state=after, reward=reward, done=done, invalid=invalid))
        state = after
        truncated = truncated or (not done and len(steps) == environment.maximum_steps)
    return Trajectory(task=info["task"], transitions=tuple(steps), truncated=truncated)
