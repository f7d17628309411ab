"Solutions of ex_01_trajectories.ipynb: look only after you have tried."

from dreamgym.trajectories import Trajectory, Transition


def real_steps(trajectories):
    return sum(len(trajectory) for trajectory in trajectories if trajectory.real)


def write_down(task, steps, outcome):
    before, chain = task.start_state, []
    for number, (action, after) in enumerate(steps, 1):
        ended = number == len(steps) and outcome is not None
        reward = outcome if ended else 0.0
        chain.append(Transition(state=before, action=action, next_state=after, reward=reward, done=ended))
        before = after
    return Trajectory(task=task, transitions=tuple(chain), truncated=outcome is None)


def contradictions(trajectories):
    answers = {}
    for trajectory in trajectories:
        for step in trajectory.transitions:
            question = (trajectory.task.id, step.state, step.action)
            answers.setdefault(question, set()).add((step.next_state, step.reward))
    return sorted(question for question, known in answers.items() if len(known) > 1)
