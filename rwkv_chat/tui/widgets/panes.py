"""The panes side by side, of which one is focused."""

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal

from rwkv_chat.tui.layout import MOST_PANES
from rwkv_chat.tui.messages import PanesResized, PaneWanted
from rwkv_chat.tui.widgets.pane import Pane

__all__ = ["NARROWEST", "Panes"]

NARROWEST = 50
"""The least columns of a pane; where they are not there for all, only the focused one shows."""


class Panes(Horizontal):
    """From one to MOST_PANES panes. Only the focused one takes part in moving through the screen
    with Tab; the composer is its."""

    def __init__(self, continue_key: str) -> None:
        super().__init__()
        self._continue_key = continue_key
        self._panes = [Pane(continue_key)]
        self.focused = self._panes[0]

    def compose(self) -> ComposeResult:
        """The first pane."""
        yield from self._panes

    @property
    def panes(self) -> tuple[Pane, ...]:
        """All, from left to right."""
        return tuple(self._panes)

    @property
    def number(self) -> int:
        """Which pane is focused, from 0."""
        return self._panes.index(self.focused)

    @property
    def full(self) -> bool:
        """Whether no other pane can be opened."""
        return len(self._panes) >= MOST_PANES

    @property
    def all_fit(self) -> bool:
        """Whether all panes are on screen."""
        return self.size.width >= NARROWEST * len(self._panes) or len(self._panes) == 1

    def add(self) -> Pane:
        """A new pane to the right of the focused one."""
        pane = Pane(self._continue_key)
        self._panes.insert(self.number + 1, pane)
        self.mount(pane, after=self.focused)
        self.rearrange()
        return pane

    def close(self, pane: Pane) -> None:
        """Take a pane away, not the last one; the focus goes to the one on its left."""
        at = self._panes.index(pane)
        self._panes.remove(pane)
        if pane is self.focused:
            self.focused = self._panes[max(0, at - 1)]
        pane.remove()
        self.rearrange()

    def focus_on(self, pane: Pane) -> None:
        """Let the composer, the status line and the keys be those of this pane."""
        self.focused = pane
        self.rearrange()

    def rearrange(self) -> None:
        """Show as many panes as fit."""
        fit, several = self.all_fit, len(self._panes) > 1
        for at, pane in enumerate(self._panes):
            focused = pane is self.focused
            pane.display = fit or focused
            pane.transcript.can_focus = focused
            pane.set_class(several, "-several")
            pane.set_class(several and fit and at > 0, "-beside")
            pane.set_class(focused, "-focused")

    def on_resize(self, event: events.Resize) -> None:
        """More or fewer fit."""
        self.rearrange()
        self.post_message(PanesResized())

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """A click turns to the pane that was clicked."""
        for number, pane in enumerate(self._panes):
            if pane.display and pane.region.contains(*event.screen_offset):
                self.post_message(PaneWanted(number))
