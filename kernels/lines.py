"""Sets lines to zero, and adds lines to others, in vectors and matrices of any layout."""

from fastae.kernels.layout import LINE
from fastae.kernels.simd import Words, vector_kernel


def _write_zero(words: Words, target, lines):  # type: ignore[no-untyped-def]
    """Set target (lines, lanes) to zero."""

    def line(target):  # type: ignore[no-untyped-def]
        words.store(words.constant(0.0), target)
        return [words.offset(target, LINE)]

    words.loop(lines, [target], line)


zero_lines = vector_kernel(_write_zero)


def _write_add(words: Words, target, source, lines, accumulate):  # type: ignore[no-untyped-def]
    """target = source, or target += source if `accumulate` is 1.

    target  (lines, lanes)     source  (lines, lanes)
    """
    for add in (0, 1):
        with words.when(accumulate, "==", add):

            def line(target, source, add=add):  # type: ignore[no-untyped-def]
                value = words.load(source)
                words.store(words.add(words.load(target), value) if add else value, target)
                return [words.offset(target, LINE), words.offset(source, LINE)]

            words.loop(lines, [target, source], line)


add_lines = vector_kernel(_write_add)
