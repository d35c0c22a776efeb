"""How far a command is: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def shown_steps(unit: str = "", *, every_s: float = 0.0) -> Iterator[Callable[[float, float, str], None]]:
    """Give a function that shows how many steps are done, of how many, and what is being done.

    Without a terminal it is a line every `every_s` seconds.
    """
    console = Console(stderr=True)
    started = last = time.monotonic()
    columns = (TextColumn("{task.fields[count]}"), BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, count="")

        def show(done: float, total: float, text: str) -> None:
            nonlocal last
            now = time.monotonic()
            left = (now - started) * (total / max(done, 0.5) - 1)
            count = f"{done:.0f} of {total:.0f}{unit}, {left:.0f} s left"
            bar.update(task, completed=done, total=total, description=text, count=count)
            if not console.is_terminal and now - last >= every_s:
                last = now
                console.print(f"{text} ({count})", highlight=False, soft_wrap=True)

        yield show
