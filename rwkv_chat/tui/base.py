"""What every part of the application works with: session, widgets, and messages to the person."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, TypeVar

from textual.app import App

from rwkv_chat.chat.tree import Conversation, Turn
from rwkv_chat.errors import RwkvChatError
from rwkv_chat.text.display import one_line
from rwkv_chat.tui.actions import ACTIONS, key_text
from rwkv_chat.tui.layout import Layout
from rwkv_chat.tui.progress import Progress
from rwkv_chat.tui.widgets.composer import Composer
from rwkv_chat.tui.widgets.pane import Pane
from rwkv_chat.tui.widgets.panes import Panes
from rwkv_chat.tui.widgets.sidebar import Sidebar
from rwkv_chat.tui.widgets.status import StatusLine
from rwkv_chat.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from rwkv_chat.chat.session import Session

__all__ = ["BaseApp"]

_T = TypeVar("_T")


class BaseApp(App[None]):
    """State and small helpers; the actions are in the classes built on it."""

    def __init__(
        self,
        session: "Session",
        keymap: Mapping[str, str] | None = None,
        remember: Callable[..., None] | None = None,
        remember_layout: Callable[[Layout], None] | None = None,
    ) -> None:
        super().__init__()
        self.session = session
        self._remember = remember
        self.remember_layout = remember_layout or (lambda layout: None)
        self.layout = Layout()
        self.keymap = dict(keymap or {})
        self.progress = Progress()
        self.drafts: dict[str, str] = {}
        self.deleted: list[str] = []
        self.opening: tuple[str, Pane] | None = None

    # -- the widgets ---------------------------------------------------------------------------

    @property
    def panes(self) -> Panes:
        """The centre."""
        return self.screen_stack[0].query_one(Panes)

    @property
    def pane(self) -> Pane:
        """The pane that everything is done in."""
        return self.panes.focused

    @property
    def transcript(self) -> Transcript:
        """That of the focused pane."""
        return self.pane.transcript

    @property
    def composer(self) -> Composer:
        """Where messages are written."""
        return self.screen_stack[0].query_one(Composer)

    @property
    def sidebar(self) -> Sidebar:
        """The list of conversations."""
        return self.screen_stack[0].query_one(Sidebar)

    @property
    def status_line(self) -> StatusLine:
        """The line at the bottom."""
        return self.screen_stack[0].query_one(StatusLine)

    # -- helpers -------------------------------------------------------------------------------

    @property
    def conversation(self) -> Conversation | None:
        """The conversation in the focused pane; its head is the end of the path there."""
        return self.pane.conversation

    @property
    def current(self) -> str | None:
        """Its id."""
        return self.pane.current

    @property
    def busy(self) -> bool:
        """Whether an answer is running at the end of the path in the focused pane."""
        return self.is_busy(self.pane)

    def is_busy(self, pane: Pane) -> bool:
        """Whether an answer is running at the end of the path there."""
        current = pane.current
        return current is not None and pane.leaf in self.session.running(current)

    def refuses(self) -> bool:
        """Whether the focused pane is busy; says so then. What would hide an answer waits for it:
        nobody could stop it there.
        """
        if self.busy:
            stop = self.key_of("answer.stop")
            self.tell(f"An answer is still running here; {stop} stops it.", "warning")
        return self.busy

    def model_name(self, pane: Pane) -> str:
        """The name under which the model of a pane is opened, "" while there is none."""
        if pane.conversation is None and pane.model:
            return pane.model
        return self.session.model_name(pane.conversation)

    def tell(
        self, text: str, severity: Literal["information", "warning", "error"] = "information"
    ) -> None:
        """Show a notification; the text may come from anywhere."""
        self.notify(
            one_line(text, 400),
            severity=severity,
            timeout=8 if severity == "error" else 5,
            markup=False,
        )

    def attempt(self, call: Callable[[], _T]) -> tuple[bool, _T | None]:
        """Do something that may fail with a sentence for the person, and show the sentence.

        Returns:
            Whether it worked, and its result.
        """
        try:
            return True, call()
        except RwkvChatError as error:
            self.tell(str(error), "error")
        except OSError as error:
            self.tell(f"The system refused: {error.strerror or error}.", "error")
        return False, None

    def remember(self, **choices: object) -> None:
        """Keep choices for the next start, where the application was given a way to."""
        remember = self._remember
        if remember is not None:
            self.attempt(lambda: remember(**choices))

    def key_of(self, action_id: str) -> str:
        """The key of an action as people read it, with the person's own keys."""
        keys = next((action.keys for action in ACTIONS if action.id == action_id), "")
        return key_text(self.keymap.get(action_id, keys).split(",")[0])

    def target(self) -> Turn | None:
        """The turn that actions apply to; says so when there is none."""
        turn = self.transcript.target
        if turn is None:
            self.tell("There is no turn yet.", "warning")
        return turn

    # -- what the application provides ---------------------------------------------------------

    def open_conversation(self, conversation_id: str | None, leaf: str | None = None) -> None:
        """Show a conversation up to `leaf`, or (None) a new one, in the focused pane."""
        raise NotImplementedError

    def reload(self, pane: Pane, leaf: str | None = None) -> None:
        """Read the conversation of a pane again, and show it up to `leaf`, or as far as before."""
        raise NotImplementedError

    def panes_changed(self) -> None:
        """Tell the session, the list and the next start which conversations are on screen."""
        raise NotImplementedError

    def hide_overlay(self) -> None:
        """Hide the list of conversations where it covers the transcript."""
        raise NotImplementedError

    def refresh_list(self) -> None:
        """Read the list of conversations again."""
        raise NotImplementedError
