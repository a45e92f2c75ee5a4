"""The devnet's progress on stderr: a live board on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pnode.devnet.board import Board, Moment, Track

_MOMENTS = 8
_PER_SECOND = 8
# It looks far more often than that.
_END_S = 10.0
_STYLES = {"serving": "green", "left": "dim"}
# Plain lines tell of every tenth of a training.
_TENTH = 10


@contextmanager
def shown(board: Board) -> Iterator[None]:
    """Show the board while the body runs."""
    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(get_renderable=lambda: render(board), console=console, refresh_per_second=_PER_SECOND):
            yield
    else:
        with _Lines(board):
            yield


def line(moment: Moment) -> str:
    """A moment as one plain line."""
    return f"{moment.at_s:7.2f} s  {moment.text}"


class _Lines:
    """Plain lines: every moment, and now and then how far the trainings are. A thread of its own watches those."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._told = 0
        self._tenths = {"training": 0, "reference": 0}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="view", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._ending.set()
        self._thread.join(_END_S)
        self._tell()

    def _watch(self) -> None:
        while not self._ending.wait(1 / _PER_SECOND):
            self._tell()

    def _tell(self) -> None:
        board = self._board
        with board.lock:
            moments = board.moments[self._told :]
            self._told += len(moments)
            progress = [self._progress("training", board.run), self._progress("reference", board.reference)]
            at_s = board.seconds
        for moment in [*moments, *(Moment(at_s, text) for text in progress if text)]:
            sys.stderr.write(line(moment) + "\n")
        sys.stderr.flush()

    def _progress(self, name: str, track: Track) -> str:
        tenth = (track.last_step + 1) * _TENTH // track.steps
        if tenth <= self._tenths[name]:
            self._tenths[name] = min(tenth, self._tenths[name])
            return ""
        self._tenths[name] = tenth
        return f"{name}: step {track.last_step + 1} of {track.steps}, loss {track.losses[track.last_step]:.4f}"


def render(board: Board) -> RenderableType:
    """The board as rich draws it."""
    with board.lock:
        tracks = [_track("PNodes", board.run), _track("one process", board.reference)]
        parts = [_head(board), Text(), _nodes(board), Text(), *tracks, Text(), _moments(board)]
        return Panel(Group(*parts), title=board.title, border_style="dim")


def _head(board: Board) -> RenderableType:
    return Text.assemble((board.phase, "bold"), f"   {board.seconds:.0f} s")


def _nodes(board: Board) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("process", "pid", "address", "VNodes", "state"):
        table.add_column(column)
    for row in board.rows.values():
        style = "red" if row.state.startswith(("killed", "ended")) else _STYLES.get(row.state, "yellow")
        table.add_row(row.name, str(row.pid), row.address, " ".join(row.vnodes), Text(row.state, style=style))
    return table


def _track(name: str, track: Track) -> RenderableType:
    done = track.last_step + 1
    loss = f"loss {track.losses[track.last_step]:.4f}" if done else ""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(f"{name:<12}", ProgressBar(total=track.steps, completed=done, width=40), f"{done}/{track.steps}", loss)
    return grid


def _moments(board: Board) -> RenderableType:
    return Text(
        "\n".join(line(moment) for moment in board.moments[-_MOMENTS:]), style="dim", no_wrap=True, overflow="ellipsis"
    )
