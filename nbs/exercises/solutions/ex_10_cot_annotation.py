"Solutions of ex_10_cot_annotation.ipynb: look only after you have tried."

import json
import re
from collections import Counter


def changed_lines(before, after):
    def missing(lines, others):
        left, output = Counter(others), []
        for line in lines:
            if left[line]:
                left[line] -= 1
            else:
                output.append(line)
        return output

    old, new = before.split("\n"), after.split("\n")
    return missing(old, new), missing(new, old)


def parse_reasons(text, steps):
    fence = re.fullmatch(r"(?s)\s*```(?:json)?\s(.*)```\s*", text)
    answer = json.loads(fence[1] if fence else text)
    if not isinstance(answer, dict) or set(answer) != {"reasons"} or not isinstance(answer["reasons"], list):
        raise ValueError('The answer must be {"reasons": [...]} and nothing else.')
    reasons = answer["reasons"]
    if len(reasons) != steps:
        raise ValueError(f"The answer has {len(reasons)} reasons for {steps} steps.")
    for number, reason in enumerate(reasons, 1):
        if not isinstance(reason, str) or not reason.strip() or "\n" in reason:
            raise ValueError(f"Reason {number} must be one line of text.")
    return reasons


def invented(reason, known):
    output = []
    for quote in re.findall(r'"([^"]*)"', reason):
        pattern = rf"(?<!\w){re.escape(quote)}(?!\w)"
        if quote and quote not in output and not any(re.search(pattern, text) for text in known):
            output.append(quote)
    return output
