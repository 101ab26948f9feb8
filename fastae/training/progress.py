"""A progress bar for the terminal, drawn by rich, which is imported only if a bar is shown."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastae.training.history import Epoch


@contextmanager
def progress_bar(wanted: bool, epochs: int, rows: int) -> Iterator[Callable[[Epoch], None]]:
    """Show a bar on stderr and yield the function that moves it; if not `wanted`, that function does nothing."""
    if not wanted:
        yield lambda epoch: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    # In a narrow terminal, the bar becomes shorter before anything is cut
    columns = (
        BarColumn(),
        TextColumn("epoch {task.completed}/{task.total}{task.fields[text]}"),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
    )
    # Refreshed here, not by a thread of its own, which cannot be started everywhere
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        task = bar.add_task("training", total=epochs, text="")
        shown, last = 0.0, None

        def draw(epoch: Epoch) -> None:
            text = f", loss {epoch.loss:.5g}"
            if epoch.validation_loss is not None:
                text += f", validation {epoch.validation_loss:.5g}"
            text += f", {epoch.number * rows / epoch.seconds:,.0f} rows/s"
            bar.update(task, completed=epoch.number, text=text, refresh=True)

        def show(epoch: Epoch) -> None:
            nonlocal shown, last
            last = epoch
            if epoch.seconds - shown > 0.1:  # an update costs as much as a small epoch
                shown = epoch.seconds
                draw(epoch)

        try:
            yield show
        finally:
            if last is not None:  # where training ended, also before the last epoch
                draw(last)
