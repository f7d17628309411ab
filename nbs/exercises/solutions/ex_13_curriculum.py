"Solutions of ex_13_curriculum.ipynb: look only after you have tried."


def largest_variance(rollouts):
    successes = rollouts // 2
    return successes * (rollouts - successes) / rollouts**2


def expected_variance(rate, group):
    return rate * (1 - rate) * (group - 1) / group


def mix(real, invented, count, share):
    number = min(len(invented), int(share * count + 1e-9))
    chosen = real[:count - number]
    while number > share * (number + len(chosen)) + 1e-9:
        number -= 1
    return chosen + invented[:number]
