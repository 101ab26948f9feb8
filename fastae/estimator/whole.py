"""A fit takes effect as a whole: an estimator changes at its end, in all attributes at once, or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def changed_whole(model: Any) -> Iterator[Any]:
    """Yield a copy of `model` to fit. Where no error occurs, `model` then takes over what has changed in the copy.

    The copy shares all attributes with `model`: they are replaced in it, never written to. Attributes that others set
    on `model` meanwhile, such as a callback that calls ``set_params``, are kept.
    """
    before = dict(vars(model))
    copy = object.__new__(type(model))
    vars(copy).update(before)
    yield copy
    after = vars(copy)
    changed = {
        name: value for name, value in after.items() if name not in before or before[name] is not value
    }
    kept = {name: value for name, value in vars(model).items() if name in after or name not in before}
    model.__dict__ = kept | changed  # one assignment, which Ctrl-C does not divide
