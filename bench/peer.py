"""What a peer is: a library that does the work of a case."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

from fastae.bench import cases
from fastae.kernels.target import TARGET


class Work(NamedTuple):
    """`run(times)` repeats the work with a library; `answer` turns its result into what ``Case.check`` takes."""

    run: Callable[[int], Any]
    answer: Callable[[Any], dict[str, Any]]


Maker = Callable[["cases.Case", int], Work | None]


class Peer(NamedTuple):
    """A library's way to do the work of a case.

    Attributes
    ----------
    module : str
        The required module.
    forms : mapping of str to callable
        (case, threads) -> Work by form, of which the fastest counts; None where a form does not suit the case.
    bfloat16 : bool or None
        Whether its products are computed in bfloat16; None: where the case asks for it.
    sized : bool
        Its thread count can be set, and it is timed on one thread and on all.
    needs : callable
        Why it cannot run here although its module is installed; "" if it can.
    """

    module: str
    forms: Mapping[str, Maker]
    bfloat16: bool | None = False
    sized: bool = True
    needs: Callable[[], str] = lambda: ""

    def competes(self, case: "cases.Case") -> bool:
        """Whether it computes in the precision of the case."""
        return self.bfloat16 in (None, case.dtype == "bfloat16")

    def rough(self, case: "cases.Case") -> bool:
        """Whether it computes the case in bfloat16."""
        return case.dtype == "bfloat16" if self.bfloat16 is None else self.bfloat16

    def why_not(self, case: "cases.Case") -> str:
        """Why it cannot be timed; "" if it can."""
        if find_spec(self.module) is None:
            return f"{self.module} is not installed"
        if self.bfloat16 and case.dtype == "float64":
            return "computes in bfloat16"
        return self.needs()


def no_bfloat16() -> str:
    """Why fastae cannot compute in bfloat16 here; "" if it can."""
    return "" if TARGET.bfloat16 else "this CPU has no AVX512_BF16"
