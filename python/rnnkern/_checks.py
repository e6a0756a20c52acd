"""Argument checks with one form of message: what it must be, what was given."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, SupportsFloat, SupportsIndex, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

Array = NDArray[Any]  # NumPy's, or CuPy's of the same kind
DType = Union[str, "np.dtype[Any]", type]  # one of those that NumPy takes for a dtype

_GPU_MEMORY = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged


def positive_int(name: str, value: SupportsIndex, *, minimum: int = 1) -> int:
    """The integer `value`, at least `minimum`."""
    wanted = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {wanted}, got {value!r}") from None
    if result < minimum:
        raise ValueError(f"{name} must be {wanted}, got {result}")
    return result


def finite_float(
    name: str,
    value: SupportsFloat,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive: bool = False,
) -> float:
    """The finite number `value` within its bounds; `exclusive` leaves the bounds themselves out."""
    wanted = f"{name} must be a finite number"
    if minimum is not None:
        wanted += f" {'above' if exclusive else 'of at least'} {minimum:g}"
    if maximum is not None:
        wanted += f"{' and' if minimum is not None else ''} {'below' if exclusive else 'at most'}"
        wanted += f" {maximum:g}"
    if isinstance(value, (bool, np.bool_, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{wanted}, got {value!r}")
    result = float(value)
    low = minimum is not None and (result <= minimum if exclusive else result < minimum)
    high = maximum is not None and (result >= maximum if exclusive else result > maximum)
    if not math.isfinite(result) or low or high:
        raise ValueError(f"{wanted}, got {value!r}")
    return result


def choice(name: str, value: T, options: Sequence[T]) -> T:
    """`value`, which must be one of `options`."""
    if value not in options:
        listed = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")
    return value


def float_dtype(name: str, value: Any) -> np.dtype[Any]:
    """float32 or float64, of this machine's byte order, from whatever NumPy takes for it."""
    wanted = f"{name} must be 'float32' or 'float64'"
    if value is None:  # NumPy's default is float64, which nobody asked for here
        raise TypeError(f"{wanted}, got None")
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except TypeError:
        raise TypeError(f"{wanted}, got {value!r}") from None
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"{wanted}, got {value!r}")
    return dtype


def boolean(name: str, value: bool) -> bool:
    """`value`, which must be True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def on_gpu(value: Any) -> bool:
    """Whether `value` is an array in a GPU's memory."""
    if hasattr(value, "__dlpack_device__"):
        return value.__dlpack_device__()[0] in _GPU_MEMORY
    return hasattr(value, "__cuda_array_interface__")


def host_array(name: str, value: Any) -> Array:
    """`value` as a NumPy array, without a copy where NumPy or DLPack can."""
    if type(value) is np.ndarray:
        return value
    if on_gpu(value):
        raise TypeError(
            f"{name} must be in host memory, got {type(value)!r} on the GPU: cupy.asnumpy copies "
            "it to the host, and a layer with device='cuda' takes it where it is"
        )
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"{name} must be an array of numbers, got {type(value)!r}")
    return array


def dtype_text(dtype: np.dtype[Any]) -> str:
    """The dtype's name, and its byte order where that is not the machine's."""
    return dtype.name if dtype.isnative else f"{dtype.name} of foreign byte order ({dtype.str})"
