"""The one way in which this package compiles: Numba with fixed options, fixed signatures, lazily, from a safe cache.

Two decorators:

    @kernel("void(intp, intp, intp)")   called from Python, with pointers as integers; compiled on the first call
    @inlined / @routine                 called from kernels only; inlined always / as the compiler likes

Nothing may be fused, reassociated or promoted behind the contract's back: fastmath is off, products and sums are
never contracted (use `_intrinsics.fma32`), and a function that needs binary64 says so with `binary64=True`; a test
reads the typed code of all others.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba import extending

from samebits._cache import KernelCache, refuse_without_fma, target

logger = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])
_njit: Any = numba.njit
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False, "boundscheck": False}

f32 = cast(Callable[[Any], float], numba.float32)  # casts that compile: f32(x) rounds once, to nearest even
f64 = cast(Callable[[Any], float], numba.float64)
i32 = cast(Callable[[Any], int], numba.int32)
i64 = cast(Callable[[Any], int], numba.int64)
u32 = cast(Callable[[Any], int], numba.uint32)
u64 = cast(Callable[[Any], int], numba.uint64)


# Pool threads may meet a kernel first, several at once; the second must find it compiled, not compile it again.
# A forked child may inherit it taken by a thread that it does not have, and gets a new one.
_loading = [threading.RLock()]
os.register_at_fork(after_in_child=lambda: _loading.__setitem__(0, threading.RLock()))


class Kernel:
    """One compiled entry point. Calling it compiles it, or loads it from the cache, once; later calls are direct."""

    def __init__(self, function: Callable[..., Any], signature: str, *, binary64: bool) -> None:
        self.name = f"{function.__module__.rpartition('.')[2].lstrip('_')}.{function.__name__}"
        self.binary64 = binary64
        self.signature = signature
        self.kinds = signature.partition("(")[2].rstrip(")").split(", ")
        self.takes_integers = set(self.kinds) <= {"intp", "int64"}
        self.dispatcher: Any = _njit(**OPTIONS)(function)
        self.cache = self.dispatcher._cache = KernelCache(self.name, function)
        self.__doc__ = function.__doc__
        self._address = 0
        self.is_loaded = False
        self._entry: Callable[..., Any] = self._first_call

    def load(self) -> None:
        """Compile now, or load from the cache."""
        if self.is_loaded:
            return
        with _loading[0]:
            if not self.is_loaded:
                triple, _, features = target()
                refuse_without_fma(triple, features)
                tell_of_compiling(self)
                self.dispatcher.compile(self.signature)
                self.dispatcher.disable_compile()
                (compiled,) = self.dispatcher.overloads.values()
                self._entry = compiled.entry_point  # there is one signature, so nothing to choose by the arguments
                self.is_loaded = True

    def address(self) -> int:
        """Where the compiled code lies, for `call_kernel` from another kernel; loads it first."""
        if not self._address:
            self.load()
            (compiled,) = self.dispatcher.overloads.values()
            self._address = int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))
        return self._address

    def _first_call(self, *arguments: Any) -> Any:
        self.load()
        return self._entry(*arguments)

    def unguarded(self, *arguments: Any) -> Any:
        """Call without asking the canary first."""
        return self._entry(*arguments)

    def __call__(self, *arguments: Any) -> Any:
        _guards[0]()
        return self._entry(*arguments)


KERNELS: dict[str, Kernel] = {}
_told: list[str] = []
_guards: list[Callable[[], None]] = [lambda: None]
ROUTINES: dict[Any, bool] = {}  # dispatcher -> may it use binary64


def tell_of_compiling(first: Kernel) -> None:
    """Say once, before the first kernel is compiled, why it takes so long; nothing where the cache has them."""
    if _told or first.cache.kept:
        return
    missing = [kernel.name for kernel in list(KERNELS.values()) if not kernel.cache.kept]
    _told.append(first.name)
    # A warning, so that it is seen where nobody has set logging up: a silent minute looks like a hang.
    logger.warning(
        "samebits compiles for %s: %d of %d kernels are not in its cache; all of them take about a minute, once",
        target()[1], len(missing), len(KERNELS),
    )  # fmt: skip


def guard_kernels_with(guard: Callable[[], None]) -> None:
    """Have every call of a kernel call this first, in its thread. A hook, since the canary is itself a kernel."""
    _guards[0] = guard


def kernel(signature: str, *, binary64: bool = False) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a function an entry point with one signature, e.g. "void(intp, intp, float32)"."""

    def wrap(function: Callable[..., Any]) -> Kernel:
        made = Kernel(function, signature, binary64=binary64)
        if made.name in KERNELS:
            raise ValueError(f"samebits: two kernels are called {made.name}")
        KERNELS[made.name] = made
        return made

    return wrap


def _compiled(function: Function, options: dict[str, Any], binary64: bool) -> Function:
    dispatcher = _njit(**options)(function)
    ROUTINES[dispatcher] = binary64
    return cast(Function, dispatcher)


def inlined(*, binary64: bool = False) -> Callable[[Function], Function]:
    """Make a small function callable from kernels, always inlined by LLVM, so that loops around it vectorise."""
    return lambda function: _compiled(function, {**OPTIONS, "forceinline": True}, binary64)


def routine(*, binary64: bool = False) -> Callable[[Function], Function]:
    """Make a larger function callable from kernels; LLVM decides whether to inline it."""
    return lambda function: _compiled(function, OPTIONS, binary64)


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's intrinsic, typed: the function returns (signature, generator of LLVM IR)."""
    return cast(Callable[..., Any], extending.intrinsic(function))
