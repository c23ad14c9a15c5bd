"""Rewards that misbehave, found by their dotted path."""


def failing_reward(prompts, responses):
    return [1 / 0 for _ in responses]


def nan_reward(prompts, responses):
    return [float("nan") for _ in responses]


def short_reward(prompts, responses):
    return [0.0] * (len(responses) - 1)


def distinct_reward(prompts, responses):
    return [float(len(set(r))) for r in responses]


def tied_reward(prompts, responses):
    """Ties for every third prompt, so that its group makes no pair; else distinct characters."""
    return [
        0.5 if len(str(p)) % 3 == 0 else float(len(set(r)))
        for p, r in zip(prompts, responses, strict=True)
    ]
