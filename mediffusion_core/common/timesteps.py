"""Which of a noise process's timesteps few steps visit."""


def descending_timesteps(start: int, steps: int) -> list[int]:
    """At most `steps` distinct timesteps from `start` down, evenly spaced, none below 0."""
    spaced = (round(start * left / steps) for left in range(steps, 0, -1))
    return list(dict.fromkeys(max(0, timestep) for timestep in spaced))
