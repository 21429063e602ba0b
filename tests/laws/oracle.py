"""A dense float64 oracle of every mixer family, built from the lane values alone.

Plain NumPy loops over pairs and tokens: a transport is a product of per-token matrices (never a
rotation of q and k by absolute phase), a bias a sum over the tokens between. It shares no code with
`lcx.ops`; it calls only what a lane value itself carries (its kernel, its id maps).
"""

import numpy as np

from lcx import lanes as L


def core(family: str, inner: dict, lanes: L.Lanes, seq: L.Sequence) -> np.ndarray:
    """The mixer's core output [B,T,H,V] for its captured inputs under the lanes."""
    return FAMILIES[family]({k: _float(v) for k, v in inner.items()}, lanes, _numpy(seq))


class _Seq:
    pass


def _float(value):
    if value is None or isinstance(value, str):
        return value
    return np.asarray(value, np.float64)


def _numpy(seq: L.Sequence) -> _Seq:
    out = _Seq()
    out.ids, out.order = np.asarray(seq.ids, np.float64), np.asarray(seq.order)
    out.segment = np.ones_like(out.order) if seq.segment is None else np.asarray(seq.segment)
    return out


def _row(array, b):
    array = np.asarray(array, np.float64)
    return array[b if array.shape[0] > 1 else 0]


def _turn(angles: np.ndarray, size: int, interleaved: bool) -> np.ndarray:
    """Matrix [size,size] that turns channel pair m by -angles[m]: q^T (.) k is RoPE's score."""
    matrix, pairs = np.eye(size), len(angles)
    for m, angle in enumerate(angles):
        a, b = (2 * m, 2 * m + 1) if interleaved else (m, m + pairs)
        c, s = np.cos(-angle), np.sin(-angle)
        matrix[np.ix_([a, b], [a, b])] = [[c, -s], [s, c]]
    return matrix


def _frequency(rotation: L.Rotation) -> np.ndarray:
    return np.asarray(rotation.frequency, np.float64).sum(0) * 2 * np.pi


def _angles(rotation: L.Rotation, step: np.ndarray) -> np.ndarray:
    """Angles [P] for a difference of ids [A]."""
    axis = rotation.axis if rotation.axis is not None and len(step) > 1 else (0,) * 10**3
    frequency = _frequency(rotation)
    return np.array([frequency[m] * step[axis[m]] for m in range(len(frequency))])


def step_matrix(lanes: L.Lanes, seq: _Seq, b: int, head: int, heads: int, t: int, size: int):
    """The transport of token t: what a key (or a state) is multiplied with when t arrives."""
    transport, first = lanes.transport, t == 0 or _row(seq.segment, b)[t] != _row(
        seq.segment, b)[t - 1]
    if transport is None or first:
        return np.eye(size)
    if isinstance(transport, L.Rotation):
        ids = _row(seq.ids, b)
        return _turn(_angles(transport, ids[t] - ids[t - 1]), size, transport.interleaved)
    if isinstance(transport, L.ContentRotation):
        steps = _row(transport.step, b)[t]
        return _turn(steps[head * len(steps) // heads], size, transport.interleaved)
    if isinstance(transport, L.Diagonal):
        fade, matrix = _row(transport.increment, b)[t], np.eye(size)
        if transport.rotation is not None:
            bare = lanes.replace(transport=transport.rotation)
            matrix = step_matrix(bare, seq, b, head, heads, t, size)
        width = fade.shape[-1]
        matrix[:width] *= np.exp(fade[head * len(fade) // heads])[:, None]
        return matrix
    if isinstance(transport, L.Householder):
        vector, beta = _row(transport.vector, b)[t], _row(transport.beta, b)[t]
        n = head * vector.shape[0] // heads
        matrix = np.eye(size)
        width = vector.shape[-1]
        matrix[:width, :width] -= beta[n] * np.outer(vector[n], vector[n])
        return matrix
    raise AssertionError(f"no oracle for {transport}")


def value_step(lanes: L.Lanes, seq: _Seq, b: int, t: int, size: int) -> np.ndarray:
    """How the values that a memory holds are turned when token t arrives."""
    if not isinstance(lanes.value, L.ValueRotation):
        return np.eye(size)
    return step_matrix(L.Lanes(lanes.value.rotation), seq, b, 0, 1, t, size)


def _gain(lanes: L.Lanes, size: int) -> np.ndarray:
    gain, rotation = np.ones(size), lanes.transport
    if isinstance(rotation, L.Piecewise):
        rotation = rotation.rotation
    if isinstance(rotation, L.Rotation) and rotation.amplitude is not None:
        gain[: 2 * rotation.frequency.shape[-1]] = float(rotation.amplitude) ** 2
    return gain


def pair_weights(inner, lanes, seq, b, h, heads) -> np.ndarray:
    """Transported inner products [T,T] for j <= i, zero above."""
    query = _row(inner["query"], b)[:, h]
    key = _row(inner["key"], b)
    key = key[:, h * key.shape[1] // heads]
    if isinstance(lanes.transport, L.FeatureMap):
        query, key = (_features(lanes.transport, side, _row(seq.ids, b), inner, b, h, heads)
                      for side in ("query", "key"))
        lanes = lanes.replace(transport=None)
    length, size = query.shape
    out, gain = np.zeros((length, length)), _gain(lanes, size)
    for j in range(length):
        matrix = np.eye(size)
        for i in range(j, length):
            if isinstance(lanes.transport, L.Piecewise):
                matrix = _piece_matrix(lanes.transport, _row(seq.ids, b), i, j, size)
            elif i > j:
                matrix = step_matrix(lanes, seq, b, h, heads, i, size) @ matrix
            out[i, j] = (query[i] * gain) @ matrix @ key[j]
    return out


def _features(transport, side, ids, inner, b, h, heads):
    """[T,K'] of one head: the map that the lane value carries, of the channels that a transport
    may touch; the others stay."""
    x = _row(inner[side], b)[None]
    width = int(inner.get("rotary_dim", x.shape[-1]))
    new = np.asarray(getattr(transport, side)(transport.params, x[..., :width], ids[None]))
    new = np.concatenate([new, x[..., width:]], -1)[0]
    return new[:, h * new.shape[1] // heads]


def _piece_matrix(transport: L.Piecewise, ids, i, j, size):
    params = transport.params
    number = int(np.asarray(transport.select(params, ids[i][None, None], ids[j][None, None]))
                 .reshape(-1)[0])
    query_map, key_map = transport.pieces[number]
    step = np.asarray(query_map(params, ids[i])) - np.asarray(key_map(params, ids[j]))
    return _turn(_angles(transport.rotation, step), size, transport.rotation.interleaved)


def allowed(inner, seq, b) -> np.ndarray:
    """Causal, same document, inside the window."""
    segment, length = _row(seq.segment, b), seq.order.shape[1]
    i, j = np.arange(length)[:, None], np.arange(length)[None]
    mask = (j <= i) & (segment[:, None] == segment[None])
    window = inner.get("window")
    return mask if window is None else mask & (i - j < window)


def bias(inner, lanes, seq, b, h, heads) -> np.ndarray:
    """Sum of the bias lanes [T,T]; only j <= i inside a document has a meaning."""
    length = seq.order.shape[1]
    total = np.zeros((length, length))
    for lane in lanes.bias:
        if isinstance(lane, L.Separable):
            increment = _row(lane.increment, b)[:, h]
            for i in range(length):
                for j in range(i):
                    total[i, j] += increment[j + 1 : i + 1].sum()
        elif isinstance(lane, L.Toeplitz):
            ids = _row(seq.ids, b)[:, 0]
            total += np.asarray(lane.kernel(lane.params, ids[:, None] - ids[None]))[..., h]
        elif isinstance(lane, L.Rowwise):
            ids = _row(seq.ids, b)[:, 0]
            total += np.asarray(lane.kernel(lane.params, ids[:, None] - ids[None],
                                            ids[:, None]))[..., h]
        elif isinstance(lane, L.Pairwise):
            mask = np.stack([allowed(inner, seq, r) for r in range(seq.order.shape[0])])
            key = inner["key"]
            key = np.repeat(key, heads // key.shape[2], axis=2)
            tile = L.Tile(inner["query"], key, mask, seq.ids, seq.ids,
                          float(inner.get("scale", 1.0)), lane.extras, lane.extras)
            total += np.asarray(lane.kernel(lane.params, tile))[b, h]
        else:
            raise AssertionError(f"no oracle for {lane}")
    return total


def softmax(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    for b in range(batch):
        rows = _logits(inner, lanes, seq, b)
        for h in range(heads):
            weights = np.exp(rows[h] - rows[h].max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            out[b, :, h] = _read(weights, value[b, :, h * value.shape[2] // heads], lanes, seq, b)
    return out


def _logits(inner, lanes, seq, b) -> np.ndarray:
    """What a normaliser acts on: [H,T,T], -inf where a pair may not meet."""
    heads = inner["query"].shape[2]
    mask, rows = allowed(inner, seq, b), []
    for h in range(heads):
        logits = pair_weights(inner, lanes, seq, b, h, heads) * inner["scale"]
        if lanes.temperature is not None:
            factor = _row(lanes.temperature.factor, b)
            logits = logits * factor[:, min(h, factor.shape[1] - 1)][:, None]
        rows.append(np.where(mask, logits + bias(inner, lanes, seq, b, h, heads), -np.inf))
    rows = np.stack(rows)
    if lanes.logits is not None:
        terms = np.stack([np.where(mask, bias(inner, lanes, seq, b, h, heads), 0.0)
                          for h in range(heads)])
        rows = np.asarray(lanes.logits.function(lanes.logits.params, rows[None], terms[None],
                                                mask[None]))[0]
    return np.where(mask, rows, -np.inf)


def stick(inner, lanes, seq):
    """Key j takes sigmoid(z_ij) of what the keys between it and the query left of a unit."""
    query, value = inner["query"], inner["value"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    for b in range(batch):
        rows = _logits(inner, lanes, seq, b)
        for h in range(heads):
            weights, own = np.zeros((length, length)), value[b, :, h * value.shape[2] // heads]
            for i in range(length):
                left = 1.0
                for j in range(i - 1, -1, -1):
                    share = 1 / (1 + np.exp(-rows[h, i, j]))  # 0 where they may not meet
                    weights[i, j], left = left * share, left * (1 - share)
                if inner["remainder"]:
                    out[b, i, h] = left * own[i]
            out[b, :, h] += _read(weights, own, lanes, seq, b)
    return out


def _read(weights, value, lanes, seq, b) -> np.ndarray:
    """sum_j w_ij v_j [T,V], each value as the value lane lets query i see it."""
    out, ids = weights @ value, _row(seq.ids, b)
    if isinstance(lanes.value, L.ValueRotation):
        rotation, out = lanes.value.rotation, np.zeros_like(out)
        for i, j in zip(*np.nonzero(weights)):
            turn = _turn(_angles(rotation, ids[i] - ids[j]), value.shape[-1], rotation.interleaved)
            out[i] += weights[i, j] * turn @ value[j]
    if isinstance(lanes.value, L.ValueTable):
        table = np.asarray(lanes.value.table, np.float64)
        for i, j in zip(*np.nonzero(weights)):
            out[i] += weights[i, j] * table[int(lanes.value.bucket(
                len(table), ids[i, 0] - ids[j, 0]))]
    return out


def _native(inner, b, h, length) -> np.ndarray:
    """exp of the mixer's own log-decay over (j,i] as a log [T,T]."""
    total = np.zeros((length, length))
    if inner.get("log_decay") is not None:
        decay = np.broadcast_to(_row(inner["log_decay"], b), (length, inner["query"].shape[2]))
        for i in range(length):
            for j in range(i):
                total[i, j] = decay[j + 1 : i + 1, h].sum()
    return total


def linear(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, size = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    bare = L.Lanes()
    for b in range(batch):
        mask = allowed(inner, seq, b)
        for h in range(heads):
            log = _native(inner, b, h, length) + bias(inner, lanes, seq, b, h, heads)
            factor = np.where(mask, np.exp(np.where(mask, log, 0.0)), 0.0)
            weights = pair_weights(inner, lanes, seq, b, h, heads) * factor
            out[b, :, h] = _read(weights, value[b, :, h * value.shape[2] // heads], lanes, seq, b)
            if inner.get("normaliser") is not None:
                plain = pair_weights(inner, bare, seq, b, h, heads) * factor
                out[b, :, h] /= plain.sum(1, keepdims=True) + 1e-6
    return out


def _reset(seq, b, t) -> bool:
    segment = _row(seq.segment, b)
    return t == 0 or segment[t] != segment[t - 1]


def _increment(lanes, b, t, h) -> float:
    return sum(_row(lane.increment, b)[t, h] for lane in lanes.bias)


def delta(inner, lanes, seq):
    query, key, value, beta = (inner[k] for k in ("query", "key", "value", "beta"))
    batch, length, heads, size = query.shape
    decay = np.broadcast_to(inner["log_decay"], (batch, length, heads))
    out, gain = np.zeros((batch, length, heads, value.shape[-1])), _gain(lanes, size)
    for b in range(batch):
        for h in range(heads):
            memory = np.zeros((size, value.shape[-1]))
            for t in range(length):
                if _reset(seq, b, t):
                    memory = np.zeros_like(memory)
                scale = np.exp(decay[b, t, h] + _increment(lanes, b, t, h))
                memory = scale * step_matrix(lanes, seq, b, h, heads, t, size) @ memory
                memory = memory @ value_step(lanes, seq, b, t, value.shape[-1]).T
                k, v = key[b, t, h], value[b, t, h]
                memory = memory + beta[b, t, h] * np.outer(k, v - memory.T @ k)
                out[b, t, h] = (query[b, t, h] * gain) @ memory
    return out


def diagonal(inner, lanes, seq):
    log_decay, value = inner["log_decay"], inner["value"]
    batch, length, heads, size = value.shape
    out = np.zeros_like(value)
    static = [x for x in lanes.bias if isinstance(x, (L.Toeplitz, L.Rowwise))]
    static = L.Lanes(bias=tuple(static))
    steps = lanes.replace(bias=tuple(x for x in lanes.bias if isinstance(x, L.Separable)))
    for b in range(batch):
        for h in range(heads):
            extra = bias(inner, static, seq, b, h, heads)
            for j in range(length):  # each write on its own, so that a static bias can weigh it
                state = value[b, j, h]
                out[b, j, h] += np.exp(extra[j, j]) * state
                for t in range(j + 1, length):
                    if _reset(seq, b, t):
                        break
                    gate = np.exp(log_decay[b, t, h] + _increment(steps, b, t, h))
                    turn = value_step(lanes, seq, b, t, size)
                    state = gate * (step_matrix(steps, seq, b, h, heads, t, size) @ turn @ state)
                    out[b, t, h] += np.exp(extra[t, j]) * state
    return out


def nonlinear(inner, lanes, seq):
    """LSTM cell; gates in the order i f g o; separable increments scale the cell's forget gate."""
    inputs, recurrent, offset = inner["inputs"], inner["recurrent"], inner["bias"]
    batch, length, _, width = inputs.shape
    out = np.zeros((batch, length, width))
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    for b in range(batch):
        h, c = np.zeros(width), np.zeros(width)
        for t in range(length):
            if _reset(seq, b, t):
                h, c = np.zeros(width), np.zeros(width)
            i, f, g, o = inputs[b, t] + np.einsum("d,dge->ge", h, recurrent) + offset
            decay = np.ones(width)
            for lane in lanes.bias:
                increment = _row(lane.increment, b)[t]
                decay = decay * np.exp(np.repeat(increment, width // len(increment)))
            c = decay * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out[b, t] = h
    return out


FAMILIES = dict(softmax=softmax, stick=stick, linear=linear, delta=delta, diagonal=diagonal,
                nonlinear=nonlinear)
