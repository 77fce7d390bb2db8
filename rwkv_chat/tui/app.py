"""The application: its layout, and the routing of messages and events."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import events as input_events
from textual.app import ComposeResult, SystemCommand
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.filter import LineFilter
from textual.screen import Screen

from rwkv_chat.chat import events
from rwkv_chat.chat.tree import Conversation
from rwkv_chat.tui import themes
from rwkv_chat.tui.actions import ACTIONS, bindings, help_groups, key_text
from rwkv_chat.tui.conversation_actions import ConversationActions
from rwkv_chat.tui.entry import Live
from rwkv_chat.tui.inbox import Inbox
from rwkv_chat.tui.layout import Layout
from rwkv_chat.tui.messages import (
    Descend,
    LeaveComposer,
    Opened,
    PanesResized,
    PaneWanted,
    SessionSpoke,
    StepSibling,
    Submitted,
    Typed,
)
from rwkv_chat.tui.pane_actions import PaneActions
from rwkv_chat.tui.terminal import (
    ControlFilter,
    catch_signals,
    exit_hard_after,
    know_alt_enter,
    terminal_is_there,
)
from rwkv_chat.tui.widgets.composer import Composer
from rwkv_chat.tui.widgets.pane import Pane
from rwkv_chat.tui.widgets.panes import NARROWEST, Panes
from rwkv_chat.tui.widgets.sidebar import WIDTH, Sidebar
from rwkv_chat.tui.widgets.status import StatusLine
from rwkv_chat.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from rwkv_chat.chat.session import Session

__all__ = ["ChatApp"]

_SIDEBAR_FROM = 100
_HARD_EXIT_SECONDS = 3.0


class ChatApp(PaneActions, ConversationActions):
    """The chat application.

    Args:
        session: Everything that can be done; it is told nothing of the screen.
        keymap: Other keys by binding id, such as `{"chat.new": "f12"}`.
        theme: The name of a theme; by default, or if unknown, one that fits the terminal.
        fresh: Begin with a new conversation instead of the last ones.
        layout: The panes of the last time.
        wanted: The name of a model to begin with: a conversation that remembers another one is
            not continued then.
        on_painted: Called once when the window is there: the place for slow beginnings.
        remember: Told by keyword what was chosen for the next start too: `theme`, `model`, and the
            choices of new conversations by their names in `Options`.
        remember_layout: Told which panes are open, whenever that changes.
    """

    TITLE = "rwkv-chat"
    CSS_PATH = Path(__file__).with_name("app.tcss")
    BINDINGS: ClassVar[list[BindingType]] = bindings()
    ENABLE_COMMAND_PALETTE = True

    def __init__(
        self,
        session: "Session",
        *,
        keymap: Mapping[str, str] | None = None,
        theme: str | None = None,
        fresh: bool = False,
        layout: Layout | None = None,
        wanted: str = "",
        on_painted: Callable[[], object] | None = None,
        remember: Callable[..., None] | None = None,
        remember_layout: Callable[[Layout], None] | None = None,
    ) -> None:
        super().__init__(session, keymap, remember, remember_layout)
        self._fresh = fresh
        self._last_layout = layout or Layout()
        self._wanted = wanted
        self._on_painted = on_painted
        self._awake = False
        self._inbox = Inbox(self._wake)
        session.subscribe(self._inbox.put)
        self._wall = ControlFilter()
        self._sidebar_wanted: bool | None = None
        self._ending = False
        self._warned = False
        self.animation_level = "none"
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (60, "-wide")]
        self.VERTICAL_BREAKPOINTS = [(0, "-short"), (20, "-tall")]
        know_alt_enter()
        for known in (themes.DARK, themes.LIGHT):
            self.register_theme(known)
        self._worn = theme if theme in self.available_themes else themes.fitting()
        self.theme = self._worn

    def compose(self) -> ComposeResult:
        """The layout."""
        with Horizontal(id="main"):
            yield Sidebar()
            with Vertical(id="centre"):
                yield Panes(self.key_of("answer.continue"))
                yield Composer()
        yield StatusLine()

    def watch_theme(self, theme: str) -> None:
        """What was chosen is worn at the next start too."""
        if theme != self._worn:
            self._worn = theme
            self.remember(theme=theme)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's filters, and the wall against control codes."""
        return [*super().get_line_filters(), self._wall]

    def on_mount(self) -> None:
        """Catch signals, listen to the session, and read from disk after the first paint."""
        if self.keymap:
            self.set_keymap(self.keymap)
        if not self.is_headless:
            catch_signals(asyncio.get_running_loop(), self.end)
            self.set_interval(1.0, self._watch_terminal)
        self.composer.focus()
        self._awake = True
        self._wake()
        self.call_after_refresh(self._start)

    def _wake(self) -> None:
        """Called from any thread; what comes before the first paint waits for it."""
        if self._awake:
            self.post_message(SessionSpoke())

    def _start(self) -> None:
        self.refresh_list()
        if not self._fresh and self.conversation is None and not self.restore(self._last_layout):
            _, summaries = self.attempt(self.session.conversations)
            if summaries:
                self.open_conversation(summaries[0].id)
        if self._wanted not in ("", self.session.model_name(self.conversation)):
            self.open_conversation(None)
        self.show_status()
        if self._on_painted is not None:
            self.call_after_refresh(self.attempt, self._on_painted)

    # -- showing -------------------------------------------------------------------------------

    def refresh_list(self) -> None:
        """Read the list of conversations again."""
        worked, summaries = self.attempt(self.session.conversations)
        if worked and summaries is not None:
            running = {s.id for s in summaries if self.session.busy(s.id)}
            beside = {pane.current for pane in self.panes.panes}
            self.sidebar.show(summaries, self.current, running, beside)
            self._place_sidebar()

    # -- messages of widgets -------------------------------------------------------------------

    def on_submitted(self, message: Submitted) -> None:
        """Send what was written, or make a branch of the turn that is edited."""
        text, pane = message.text, self.pane
        self._warned = False
        if not text.strip():
            return
        if pane.editing is not None:
            self.send_edited(text)
        else:
            self._send(text, pane)

    def _send(self, text: str, pane: Pane) -> None:
        def call() -> Conversation:
            if pane.conversation is None and pane.model:
                pane.bind(self.session.create(pane.model))
            return self.session.send(pane.current, text, parent=pane.leaf)

        _, conversation = self.attempt(call)
        if conversation is not None:
            self.composer.put("")
            pane.bind(conversation)
            pane.transcript.following = True
            self.show_pane(pane)
            self.panes_changed()

    def on_leave_composer(self, message: LeaveComposer) -> None:
        """Up in the empty composer looks at the transcript."""
        if self.transcript.target is not None:
            self.transcript.focus()

    def on_typed(self, message: Typed) -> None:
        """Letters typed in the transcript begin a message."""
        self.composer.focus()
        self.composer.insert(message.text)

    def on_descend(self, message: Descend) -> None:
        """Down at the end of a path that goes on."""
        if self.pane.leaf is not None:
            self.go_below(self.pane.leaf)

    def on_pane_wanted(self, message: PaneWanted) -> None:
        """A click in a pane."""
        self.focus_pane(self.panes.panes[message.number])

    def on_panes_resized(self, message: PanesResized) -> None:
        """Titles tell their place where not all panes are on screen."""
        self.show_status()

    def on_step_sibling(self, message: StepSibling) -> None:
        """Left and right in the transcript."""
        self.action_sibling(message.by)

    def on_opened(self, message: Opened) -> None:
        """Enter in the list."""
        self.open_conversation(message.conversation)
        self.hide_overlay()
        self.composer.focus()

    # -- events of the session -----------------------------------------------------------------

    def on_session_spoke(self, message: SessionSpoke) -> None:
        """Take over what the session told from its threads."""
        relist = False
        reload: set[str] = set()
        for event in self._inbox.drain():
            self.progress.take(event)
            match event:
                case events.ConversationChanged(conversation):
                    relist = True
                    reload.add(conversation)
                case events.Prefilling() | events.AnswerGrew():
                    live = self.progress.live.get(event.turn)
                    if live is not None and event.conversation not in reload:
                        self._grow(event.conversation, event.turn, live)
                case events.AnswerFinished(conversation):
                    relist = True
                    reload.add(conversation)
                case events.AnswerFailed(conversation, _, reason):
                    relist = True
                    reload.add(conversation)
                    self.tell(f"The answer ended early: {reason}", "error")
                case events.ModelReady(name):
                    reload |= self.answered_by(name)  # which snapshots are its is known now
                    self.chosen(name)
                case events.ModelFailed(name, reason):
                    self.opening = None
                    self.tell(f"{name} could not be opened. {reason}", "error")
                case events.Notice(text):
                    self.tell(text, "warning")
                case _:
                    pass
        for pane in self.panes.panes:
            if pane.current in reload:
                self.reload(pane)
        if relist:
            self.refresh_list()
        self.show_status()

    def _grow(self, conversation: str, turn: str, live: Live) -> None:
        for pane in self.panes.panes:
            if pane.current == conversation:
                pane.transcript.grow(turn, live)

    # -- the rest of the actions ---------------------------------------------------------------

    def _overlays(self, width: int) -> bool:
        """Whether there is no room for the list beside the panes."""
        return width < max(_SIDEBAR_FROM, WIDTH + NARROWEST * len(self.panes.panes))

    def _place_sidebar(self, width: int | None = None) -> None:
        wanted = self._sidebar_wanted
        over = self._overlays(self.size.width if width is None else width)
        fits = not over and self.sidebar.option_count > 0
        self.sidebar.display = fits if wanted is None else wanted
        self.sidebar.set_class(over, "-over")

    def on_resize(self, event: input_events.Resize) -> None:
        """Narrow terminals hide the list until it is asked for."""
        self._place_sidebar(event.size.width)  # that of the application is still the one before

    def hide_overlay(self) -> None:
        """Hide the list of conversations where it covers the transcript."""
        if self._overlays(self.size.width):
            self._sidebar_wanted = None
            self._place_sidebar()

    def action_sidebar(self) -> None:
        """Show the list and go there; hide it when one is there."""
        sidebar = self.sidebar
        if sidebar.display and sidebar.has_focus:
            self._sidebar_wanted = False
            self._place_sidebar()
            self.composer.focus()
            return
        self._sidebar_wanted = True
        self._place_sidebar()
        sidebar.focus()

    def action_help(self) -> None:
        """Show all keys."""
        from rwkv_chat.tui.screens.help import HelpScreen

        widgets = (
            ("Writing", Composer),
            ("In the transcript", Transcript),
            ("In the list", Sidebar),
        )
        local = [(title, bound) for title, widget in widgets for bound in widget.BINDINGS]
        self.push_screen(HelpScreen(help_groups(local, self.keymap)))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Every action, for the palette."""
        for action in ACTIONS:
            if action.palette:
                keys = self.keymap.get(action.id, action.keys)
                note = f"{action.group} · {key_text(keys)}" if keys else action.group
                yield SystemCommand(action.title, note, partial(self.run_action, action.name))

    def action_interrupt(self) -> None:
        """Ctrl+C: never loses anything."""
        if self.busy and self.current is not None:
            self.session.stop(self.current, self.pane.leaf)
            return
        self.tell(f"{self.key_of('app.quit')} quits. Everything is kept.")

    async def action_quit(self) -> None:
        """Stop what runs, keep it, and go; ask once when something typed was not sent."""
        texts = [(self.pane, self.composer.text)]
        texts += [(pane, pane.draft) for pane in self.panes.panes if pane is not self.pane]
        unsent = any(text.strip() and pane.editing is None for pane, text in texts)
        if unsent and not self._warned:
            self._warned = True
            self.tell(f"Your text was not sent. {self.key_of('app.quit')} again quits.", "warning")
            return
        self.end(0)

    def end(self, code: int) -> None:
        """Stop every answer, keep it, and leave with an exit code. Safe to call again."""
        if self._ending:
            return
        self._ending = True
        if not self.is_headless:
            exit_hard_after(_HARD_EXIT_SECONDS, code)
        for conversation in self.progress.running:
            self.attempt(partial(self.session.stop, conversation))
        self.exit(return_code=code)

    def _watch_terminal(self) -> None:
        if not terminal_is_there():
            self.end(129)
