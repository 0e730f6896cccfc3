"""What is trained in these examples: a small network on synthetic data, the same bits in every run.

Which examples a step sees is a function of the step, so a run that resumes sees what one that never stopped does.
"""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

State = dict[str, jax.Array]

_LAYERS = 6
_EXAMPLES = 64
_BATCH = 16
_RATE = 10.0
_MOMENTUM = 0.9


def initial_state(width: int) -> State:
    """Weights and momentum: 12 matrices of ``width`` times ``width`` float32."""
    keys = jax.random.split(jax.random.key(0), _LAYERS)
    weights = {f"weight.{n}": jax.random.normal(key, (width, width)) / width**0.5 for n, key in enumerate(keys)}
    momentum = {f"momentum.{n}": jnp.zeros((width, width)) for n in range(_LAYERS)}
    return weights | momentum


@jax.jit
def train_step(state: State, step: int) -> tuple[State, jax.Array]:
    """One step of gradient descent with momentum; gives the new state and the loss."""
    weights = [state[f"weight.{n}"] for n in range(_LAYERS)]
    inputs, targets = _batch(step, weights[0].shape[0])
    loss, gradients = jax.value_and_grad(_loss)(weights, inputs, targets)
    new: State = {}
    for n, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        new[f"momentum.{n}"] = _MOMENTUM * state[f"momentum.{n}"] + gradient
        new[f"weight.{n}"] = weight - _RATE * new[f"momentum.{n}"]
    return new, loss


def _batch(step: int, width: int) -> tuple[jax.Array, jax.Array]:
    data = jax.random.key(1)
    inputs, targets = jax.random.normal(data, (2, _EXAMPLES, width))
    chosen = jax.random.choice(jax.random.fold_in(data, step), _EXAMPLES, (_BATCH,), replace=False)
    return inputs[chosen], targets[chosen]


def _loss(weights: list[jax.Array], inputs: jax.Array, targets: jax.Array) -> jax.Array:
    values = inputs
    for weight in weights:
        values = values + jnp.tanh(values @ weight) / _LAYERS
    return jnp.mean((values - targets) ** 2)


def digest(state: State) -> str:
    """SHA-256 of all bytes: equal only if every parameter is, bit by bit."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(state[name]))
    return sha.hexdigest()
