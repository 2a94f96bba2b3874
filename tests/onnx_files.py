"""Small networks as ONNX files, written byte by byte (onnx.proto, protocol buffers): nothing here needs to know more of the format."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FLOAT, INT, INTS = 1, 2, 7  # of attributes and tensors


def _number(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    data = value.encode() if isinstance(value, str) else value
    return _number(number << 3 | 2) + _number(len(data)) + data


def _tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(_field(1, size) for size in array.shape)
    return dims + _field(2, FLOAT) + _field(8, name) + _field(9, array.astype("<f4").tobytes())


def _value(name: str, shape: Sequence[int]) -> bytes:
    dims = b"".join(_field(1, _field(1, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, FLOAT) + _field(2, dims)))


def node(kind: str, inputs: Sequence[str], output: str, **attributes: int | Sequence[int]) -> bytes:
    told = b""
    for name, value in attributes.items():
        if isinstance(value, int):
            said = _field(3, value) + _field(20, INT)
        else:
            said = b"".join(_field(8, each) for each in value) + _field(20, INTS)
        told += _field(5, _field(1, name) + said)
    return b"".join(_field(1, each) for each in inputs) + _field(2, output) + _field(4, kind) + told


def network(nodes: Sequence[bytes], weights: dict[str, np.ndarray], takes: Sequence[int], gives: Sequence[int]) -> bytes:
    """From `x` to `y`, of these shapes."""
    graph = b"".join(_field(1, each) for each in nodes) + _field(2, "small")
    graph += b"".join(_field(5, _tensor(name, array)) for name, array in weights.items())
    graph += _field(11, _value("x", takes)) + _field(12, _value("y", gives))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))


def reds(*, side: int = 224, scores: int = 2, bias: float = 0.02) -> bytes:
    """Looks at pictures as OpenNSFW does, and its score is high of red ones: a convolution, its mean, and a root, which is no number of
    blue ones. `bias` below 0 makes that so of black ones, too.
    """
    weight = np.zeros((scores, 3, 1, 1), np.float32)
    weight[-1, :, 0, 0] = np.array([-1, 0, 1]) / 300  # blue, green, red
    offset = np.full(scores, bias + (123 - 104) / 300, np.float32)  # means of ImageNet, which are taken away from what is looked at
    nodes = [
        node("Transpose", ["x"], "planes", perm=[0, 3, 1, 2]),
        node("Conv", ["planes", "weight", "offset"], "seen"),
        node("GlobalAveragePool", ["seen"], "mean"),
        node("Flatten", ["mean"], "flat", axis=1),
        node("Sqrt", ["flat"], "y"),
    ]
    return network(nodes, {"weight": weight, "offset": offset}, (1, side, side, 3), (1, scores))
