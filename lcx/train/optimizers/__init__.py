"""Optimizers: one file each; a config names it by `optimizer=dict(name="adamw", ...)`.

An optimizer is a frozen dataclass of its numbers with `learning_rate` (the peak) and
`direction(decay) -> optax.GradientTransformation`, which turns clipped gradients into the update
*before* it is scaled by the learning rate; `decay` is a tree of bools, True where weights decay.
The step scales it by `-learning_rate * schedule(step)`, so that both stay traced numbers.
"""
