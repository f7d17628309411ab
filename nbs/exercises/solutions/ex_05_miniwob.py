"Solutions of ex_05_miniwob.ipynb: look only after you have tried."

def success_rate(endings):
    solved = [paid > 0 and abs(paid / (1 - seconds / 10) - 1) < 1e-6 for paid, seconds in endings]
    return sum(solved) / len(solved)


def count_replays(order, browsers):
    shown, done, replayed = [], [], 0  # episodes on a browser, the one that has been idle longest first
    for episode in order:
        if episode in shown:
            shown.remove(episode)
        else:
            replayed += done.count(episode)
            if len(shown) == browsers:
                shown.pop(0)
        shown.append(episode)
        done.append(episode)
    return replayed


def play(open_browser, seed, actions):
    pages, failures = [], 0
    while True:
        browser = open_browser()
        try:
            for step in range(len(actions) + 1):
                page = browser.act(actions[step - 1]) if step else browser.start(seed)
                if step == len(pages):
                    pages.append(page)
                    failures = 0
                elif page != pages[step]:
                    raise ValueError("A replayed page differs from the recorded one.")
            return pages
        except ConnectionError:
            failures += 1
            if failures == 3:
                raise
