"""Learning-rate schedules: one file each; a config names it by `schedule=dict(name="wsd", ...)`.

A schedule is a frozen dataclass; called with (step, steps), both traced, it returns the factor in
[0, 1] on the optimizer's learning rate at update number `step` (from 0) of `steps`. Its numbers
are fractions of the run, so that a longer run keeps the shape.
"""
