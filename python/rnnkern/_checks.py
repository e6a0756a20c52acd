# SPDX-License-Identifier: Apache-2.0
"""Argument checks with one form of message: what it must be, what was given."""

from __future__ import annotations

import functools
import math
import operator
import reprlib
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    SupportsFloat,
    SupportsIndex,
    TypeAlias,
    TypeVar,
    Union,
    cast,
)

import numpy as np

if TYPE_CHECKING:  # for annotations alone, and takes a millisecond of everyone's import
    from numpy.typing import NDArray

T = TypeVar("T")
Init = TypeVar("Init", bound="Callable[..., None]")

Array: TypeAlias = "NDArray[Any]"  # NumPy's, or CuPy's of the same kind
DType = Union[str, "np.dtype[Any]", type]  # one of those that NumPy takes for a dtype

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))  # of parameters

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
    is_number = not isinstance(value, (bool, np.bool_, str)) and hasattr(value, "__float__")
    result = math.inf
    if is_number:
        try:
            result = float(value)
        except OverflowError:  # an integer beyond every float
            pass
        except TypeError:  # an array of several
            is_number = False
    low = minimum is not None and (result <= minimum if exclusive else result < minimum)
    high = maximum is not None and (result >= maximum if exclusive else result > maximum)
    if math.isfinite(result) and not (low or high):
        return result
    wanted = f"{name} must be a finite number"
    if minimum is not None:
        wanted += f" {'above' if exclusive else 'of at least'} {minimum:g}"
    if maximum is not None:
        wanted += f"{' and' if minimum is not None else ''} {'below' if exclusive else 'at most'}"
        wanted += f" {maximum:g}"
    raise (ValueError if is_number else TypeError)(f"{wanted}, got {value!r}")


def positive_float(name: str, value: SupportsFloat, dtypes: Iterable[np.dtype[Any]]) -> float:
    """The finite number `value`, above 0 in every dtype: what keeps a divisor from being 0."""
    result = finite_float(name, value, minimum=0.0, exclusive=True)
    for dtype in dtypes:
        if dtype.type(result) == 0.0:
            raise ValueError(f"{name} must be above 0 in {dtype.name}, got {value!r}")
    return result


def fraction(name: str, value: SupportsFloat) -> float:
    """The number `value` in 0..1, 1 excluded."""
    result = finite_float(name, value, minimum=0.0)
    if result >= 1.0:
        raise ValueError(f"{name} must be below 1, got {value!r}")
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
    except (TypeError, ValueError, SyntaxError):  # the last of text that NumPy takes for a tuple
        raise TypeError(f"{wanted}, got {value!r}") from None
    if dtype not in FLOATS:
        raise ValueError(f"{wanted}, got {value!r}")
    return dtype


def boolean(name: str, value: bool) -> bool:
    """`value`, which must be True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def on_gpu(value: Any) -> bool:
    """Whether `value` is an array in a GPU's memory."""
    if type(value) is np.ndarray:
        return False
    if hasattr(value, "__dlpack_device__"):
        return value.__dlpack_device__()[0] in _GPU_MEMORY
    return hasattr(value, "__cuda_array_interface__")


def host_array(name: str, value: Any) -> Array:
    """`value` as a NumPy array, without a copy where NumPy or DLPack can."""
    if type(value) is np.ndarray and value.dtype.kind not in "US":
        return value
    if on_gpu(value):
        raise TypeError(
            f"{name} must be in host memory, got {type(value)!r} on the GPU: cupy.asnumpy copies "
            "it to the host, and a layer with device='cuda' takes it where it is"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be an array without a mask, got {type(value)!r}: .filled(0) gives one; "
            "lengths says where a row ends, and the mask of a loss what counts"
        )
    if isinstance(value, np.ndarray):
        array = value.view(np.ndarray)  # a matrix, say, has other rules for its axes
    elif hasattr(value, "__dlpack__"):
        return from_dlpack(name, value, np.from_dlpack)
    else:
        try:
            array = np.asarray(value)
        except (RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"{name} must be an array of numbers, got {type(value)!r} ({error})"
            ) from error
    if array.dtype == object:
        raise TypeError(f"{name} must be an array of numbers, got {type(value)!r}")
    if array.dtype.kind in "US":
        shown = reprlib.repr(array.tolist())
        raise TypeError(
            f"{name} must be an array of numbers, got the text {shown}: "
            "np.frombuffer(text.encode(), np.uint8) makes a token of each letter"
        )
    return array


def from_dlpack(name: str, value: Any, take: Callable[[Any], Array]) -> Array:
    """Another library's array as one of ours, by `take`, uncopied."""
    try:
        return take(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        if getattr(value, "requires_grad", False):
            remedy = ".detach() gives the tensor without its gradient"
        else:
            remedy = "a float32 or float64 one can be, as .float() makes it in PyTorch"
        raise TypeError(
            f"{name} cannot be read from {type(value)!r} ({error}): {remedy}"
        ) from error


def dtype_text(dtype: np.dtype[Any]) -> str:
    """The dtype's name, and its byte order where that is not the machine's."""
    return dtype.name if dtype.isnative else f"{dtype.name} of foreign byte order ({dtype.str})"


def array_text(array: Any) -> str:
    """An array's dtype and shape, or those of several: what texts say of arrays."""
    if isinstance(array, (tuple, list)):
        return f"({', '.join(map(array_text, array))})"
    return "None" if array is None else f"{array.dtype.name} {array.shape}"


def conversion(dtype: np.dtype[Any], given: np.dtype[Any] | None = None) -> str:
    """What makes an array of that dtype, and a layer of the given one, where there can be one."""
    text = f".astype({dtype.name!r}) converts an array, .to(torch.{dtype.name}) a tensor"
    if given is not None and dtype in FLOATS and given in FLOATS:  # None is float64 to NumPy
        text += f", and dtype={given.name!r} makes a layer of {given.name}"
    return text


def warn(message: str) -> None:
    """A UserWarning at the line that called this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] == "rnnkern":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def explains_options(init: Init) -> Init:
    """A constructor that says, of an option that it lacks, which one may have been meant."""
    code = init.__code__  # what inspect.signature would tell takes a share of our time at import
    names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]

    @functools.wraps(init)
    def explained(self: Any, *args: Any, **options: Any) -> None:
        for name in options:
            if name not in names:
                from difflib import get_close_matches  # seldom needed

                close = get_close_matches(name, names, 1)
                remedy = f"did you mean {close[0]!r}?" if close else f"only {', '.join(names)}"
                raise TypeError(f"{type(self).__name__} has no argument {name!r}: {remedy}")
        init(self, *args, **options)

    return cast("Init", explained)
