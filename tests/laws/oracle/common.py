"""What the oracles share: transports as matrix products, biases as sums over tokens between.

Plain NumPy; it calls only what a lane value itself carries (its kernel, its id maps).
"""

import numpy as np

from lcx import lanes as L


def row(array, b):
    array = np.asarray(array, np.float64)
    return array[b if array.shape[0] > 1 else 0]


def turn(angles: np.ndarray, size: int, interleaved: bool) -> np.ndarray:
    """Matrix [size,size] that turns channel pair m by -angles[m]: q^T (.) k is RoPE's score."""
    matrix, pairs = np.eye(size), len(angles)
    for m, angle in enumerate(angles):
        a, b = (2 * m, 2 * m + 1) if interleaved else (m, m + pairs)
        c, s = np.cos(-angle), np.sin(-angle)
        matrix[np.ix_([a, b], [a, b])] = [[c, -s], [s, c]]
    return matrix


def frequency(rotation: L.Rotation) -> np.ndarray:
    return np.asarray(rotation.frequency, np.float64).sum(0) * 2 * np.pi


def angles(rotation: L.Rotation, step: np.ndarray) -> np.ndarray:
    """Angles [P] for a difference of ids [A]."""
    axis = rotation.axis if rotation.axis is not None and len(step) > 1 else (0,) * 10**3
    turns = frequency(rotation)
    return np.array([turns[m] * step[axis[m]] for m in range(len(turns))])


def step_matrix(lanes: L.Lanes, seq, b: int, head: int, heads: int, t: int, size: int):
    """The transport of token t: what a key (or a state) is multiplied with when t arrives."""
    transport, first = lanes.transport, t == 0 or row(seq.segment, b)[t] != row(
        seq.segment, b)[t - 1]
    if transport is None or first:
        return np.eye(size)
    if isinstance(transport, L.Rotation):
        ids = row(seq.ids, b)
        return turn(angles(transport, ids[t] - ids[t - 1]), size, transport.interleaved)
    if isinstance(transport, L.ContentRotation):
        steps = row(transport.step, b)[t]
        return turn(steps[head * len(steps) // heads], size, transport.interleaved)
    if isinstance(transport, L.Diagonal):
        fade, matrix = row(transport.increment, b)[t], np.eye(size)
        if transport.rotation is not None:
            bare = lanes.replace(transport=transport.rotation)
            matrix = step_matrix(bare, seq, b, head, heads, t, size)
        width = fade.shape[-1]
        matrix[:width] *= np.exp(fade[head * len(fade) // heads])[:, None]
        return matrix
    if isinstance(transport, L.Householder):
        vector, beta = row(transport.vector, b)[t], row(transport.beta, b)[t]
        n = head * vector.shape[0] // heads
        matrix = np.eye(size)
        width = vector.shape[-1]
        matrix[:width, :width] -= beta[n] * np.outer(vector[n], vector[n])
        return matrix
    raise AssertionError(f"no oracle for {transport}")


def value_step(lanes: L.Lanes, seq, b: int, t: int, size: int) -> np.ndarray:
    """How the values that a memory holds are turned when token t arrives."""
    if not isinstance(lanes.value, L.ValueRotation):
        return np.eye(size)
    return step_matrix(L.Lanes(lanes.value.rotation), seq, b, 0, 1, t, size)


def gain(lanes: L.Lanes, size: int) -> np.ndarray:
    gain, rotation = np.ones(size), lanes.transport
    if isinstance(rotation, L.Piecewise):
        rotation = rotation.rotation
    if isinstance(rotation, L.Rotation) and rotation.amplitude is not None:
        gain[: 2 * rotation.frequency.shape[-1]] = float(rotation.amplitude) ** 2
    return gain


def pair_weights(inner, lanes, seq, b, h, heads) -> np.ndarray:
    """Transported inner products [T,T] for j <= i, zero above."""
    query = row(inner["query"], b)[:, h]
    key = row(inner["key"], b)
    key = key[:, h * key.shape[1] // heads]
    if isinstance(lanes.transport, L.FeatureMap):
        query, key = (features(lanes.transport, side, row(seq.ids, b), inner, b, h, heads)
                      for side in ("query", "key"))
        lanes = lanes.replace(transport=None)
    length, size = query.shape
    out, gains = np.zeros((length, length)), gain(lanes, size)
    segment = row(seq.segment, b)
    for j in range(length):
        matrix = np.eye(size)
        for i in range(j, length):
            if segment[i] != segment[j]:
                break  # no pair goes across documents
            if isinstance(lanes.transport, L.Piecewise):
                matrix = piece_matrix(lanes.transport, row(seq.ids, b), i, j, size)
            elif i > j:
                matrix = step_matrix(lanes, seq, b, h, heads, i, size) @ matrix
            out[i, j] = (query[i] * gains) @ matrix @ key[j]
    return out


def features(transport, side, ids, inner, b, h, heads):
    """[T,K'] of one head: the map that the lane value carries, of the channels that a transport
    may touch; the others stay."""
    x = row(inner[side], b)[None]
    width = int(inner.get("rotary_dim", x.shape[-1]))
    new = np.asarray(getattr(transport, side)(transport.params, x[..., :width], ids[None]))
    new = np.concatenate([new, x[..., width:]], -1)[0]
    return new[:, h * new.shape[1] // heads]


def piece_matrix(transport: L.Piecewise, ids, i, j, size):
    params = transport.params
    number = int(np.asarray(transport.select(params, ids[i][None, None], ids[j][None, None]))
                 .reshape(-1)[0])
    query_map, key_map = transport.pieces[number]
    step = np.asarray(query_map(params, ids[i])) - np.asarray(key_map(params, ids[j]))
    return turn(angles(transport.rotation, step), size, transport.rotation.interleaved)


def allowed(inner, seq, b) -> np.ndarray:
    """Causal, same document, inside the window or among its first tokens (sinks)."""
    segment, length = row(seq.segment, b), seq.order.shape[1]
    i, j = np.arange(length)[:, None], np.arange(length)[None]
    mask = (j <= i) & (segment[:, None] == segment[None])
    window = inner.get("window")
    if window is None:
        return mask
    return mask & ((i - j < window) | (place(segment) < int(inner.get("sinks", 0)))[None])


def place(segment) -> np.ndarray:
    """How many tokens of the same document lie before each."""
    return np.array([int((segment[:t] == segment[t]).sum()) for t in range(len(segment))])


def bias(inner, lanes, seq, b, h, heads) -> np.ndarray:
    """Sum of the bias lanes [T,T]; only j <= i inside a document has a meaning."""
    length = seq.order.shape[1]
    total = np.zeros((length, length))
    for lane in lanes.bias:
        if isinstance(lane, L.Separable):
            increment = row(lane.increment, b)[:, h]
            for i in range(length):
                for j in range(i):
                    total[i, j] += increment[j + 1 : i + 1].sum()
        elif isinstance(lane, L.Toeplitz):
            ids = row(seq.ids, b)[:, 0]
            total += np.asarray(lane.kernel(lane.params, ids[:, None] - ids[None]))[..., h]
        elif isinstance(lane, L.Rowwise):
            ids = row(seq.ids, b)[:, 0]
            total += np.asarray(lane.kernel(lane.params, ids[:, None] - ids[None],
                                            ids[:, None]))[..., h]
        elif isinstance(lane, L.Pairwise):
            mask = np.stack([allowed(inner, seq, r) for r in range(seq.order.shape[0])])
            query, key = (inner.get(f"raw_{name}", inner[name]) for name in ("query", "key"))
            key = np.repeat(key, heads // key.shape[2], axis=2)
            tile = L.Tile(query, key, mask, seq.ids, seq.ids,
                          float(inner.get("scale", 1.0)), lane.extras, lane.extras)
            total += np.asarray(lane.kernel(lane.params, tile))[b, h]
        else:
            raise AssertionError(f"no oracle for {lane}")
    if inner.get("sinks"):  # no bias reaches them
        total[:, place(row(seq.segment, b)) < int(inner["sinks"])] = 0.0
    return total


def logits(inner, lanes, seq, b) -> np.ndarray:
    """What a normaliser acts on: [H,T,T], -inf where a pair may not meet."""
    heads = inner["query"].shape[2]
    mask, rows = allowed(inner, seq, b), []
    for h in range(heads):
        logits = pair_weights(inner, lanes, seq, b, h, heads) * inner["scale"]
        if lanes.temperature is not None:
            factor = row(lanes.temperature.factor, b)
            logits = logits * factor[:, min(h, factor.shape[1] - 1)][:, None]
        rows.append(np.where(mask, logits + bias(inner, lanes, seq, b, h, heads), -np.inf))
    rows = np.stack(rows)
    if lanes.logits is not None:
        terms = np.stack([np.where(mask, bias(inner, lanes, seq, b, h, heads), 0.0)
                          for h in range(heads)])
        ids = row(seq.ids, b)[:, 0]
        rows = np.asarray(lanes.logits.function(lanes.logits.params, rows[None], terms[None],
                                                mask[None], (ids[:, None] - ids)[None]))[0]
    return np.where(mask, rows, -np.inf)


def read(weights, value, lanes, seq, b) -> np.ndarray:
    """sum_j w_ij v_j [T,V], each value as the value lane lets query i see it."""
    out, ids = weights @ value, row(seq.ids, b)
    if isinstance(lanes.value, L.ValueRotation):
        rotation, out = lanes.value.rotation, np.zeros_like(out)
        for i, j in zip(*np.nonzero(weights)):
            step = angles(rotation, ids[i] - ids[j])
            matrix = turn(step, value.shape[-1], rotation.interleaved)
            out[i] += weights[i, j] * matrix @ value[j]
    if isinstance(lanes.value, L.ValueTable):
        table = np.asarray(lanes.value.table, np.float64)
        for i, j in zip(*np.nonzero(weights)):
            out[i] += weights[i, j] * table[int(lanes.value.bucket(
                len(table), ids[i, 0] - ids[j, 0]))]
    return out


def reset(seq, b, t) -> bool:
    segment = row(seq.segment, b)
    return t == 0 or segment[t] != segment[t - 1]


def increment(lanes, b, t, h) -> float:
    return sum(row(lane.increment, b)[t, h] for lane in lanes.bias)
