"""The network of ct-lesion, described once: the same description is trained and is written as ONNX.

Fully convolutional, 3D. A first layer turns 2 mm voxels in two windows into elements of 4 mm; then down to 32 mm and
back up, each level joined by addition. All layers are convolution, scale and shift (folded into the convolution in
the ONNX), ReLU, linear resize and addition.
"""

from typing import Protocol, TypeVar

from ct_lesion_training.lesions import LARGEST_MM, SMALLEST_MM

WIDTHS = (16, 32, 64, 64)  #: channels at 4, 8, 16 and 32 mm
#: (low, high) in HU of the two windows that make the channels of the first layer.
WINDOWS = ((-1000.0, 100.0), (-150.0, 250.0))
#: The radius is answered as its logarithm and clipped to these.
RADIUS_MM = (SMALLEST_MM / 2, LARGEST_MM / 2)

Value = TypeVar("Value")


class Layers(Protocol[Value]):
    """What a network is made of; `name` is that of its weights."""

    def first(self, name: str, volume: Value, channels: int) -> Value:
        """Both windows, then a convolution of 6^3 voxels in steps of 2, with ReLU."""
        ...

    def block(self, name: str, value: Value, channels: int) -> Value:
        """Convolution of 3^3, with ReLU."""
        ...

    def halve(self, name: str, value: Value, channels: int) -> Value:
        """Convolution of 2^3 in steps of 2, with ReLU."""
        ...

    def raised(self, name: str, value: Value, channels: int) -> Value:
        """Convolution of 1^3, then twice the size by linear interpolation."""
        ...

    def add(self, one: Value, other: Value) -> Value: ...

    def head(self, name: str, value: Value, channels: int) -> Value:
        """Convolution of 1^3 with bias, nothing after it."""
        ...


def answer(layers: Layers[Value], volume: Value) -> Value:
    """Logit of the score and ln of the radius, at half the size of `volume` (a multiple of 16 along each axis)."""
    levels = []
    value = layers.first("first", volume, WIDTHS[0])
    for depth, width in enumerate(WIDTHS):
        if depth:
            value = layers.halve(f"down{depth}", value, width)
        value = layers.add(value, layers.block(f"level{depth}a", value, width))
        if depth:
            value = layers.add(value, layers.block(f"level{depth}b", value, width))
        levels.append(value)
    for depth in reversed(range(len(WIDTHS) - 1)):
        value = layers.add(levels[depth], layers.raised(f"up{depth}", value, WIDTHS[depth]))
        value = layers.add(value, layers.block(f"back{depth}a", value, WIDTHS[depth]))
        if not depth:
            value = layers.block("back0b", value, WIDTHS[0])
    return layers.head("head", value, 2)
