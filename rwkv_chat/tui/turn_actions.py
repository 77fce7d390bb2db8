"""What can be done with the turns of the conversation on screen."""

from collections.abc import Callable

from rwkv_chat.chat.tree import Role, Turn
from rwkv_chat.errors import UsageError
from rwkv_chat.tui.base import BaseApp
from rwkv_chat.tui.clip import last_code_block
from rwkv_chat.tui.screens.ask import AskScreen
from rwkv_chat.tui.terminal import clipboard_sequence, copy_with_tool

__all__ = ["TurnActions"]


class TurnActions(BaseApp):
    """Stop, continue, regenerate, edit, step between alternatives, fork, label, copy."""

    def action_leave(self) -> None:
        """Leave what one is in: editing, then a running answer, then another part of the screen."""
        if self.pane.editing is not None:
            self.stop_editing()
        elif self.busy and self.current is not None:
            self.session.stop(self.current, self.pane.leaf)
        else:
            self.hide_overlay()
            self.composer.focus()

    def action_continue(self) -> None:
        """Go on with the answer at the head."""
        if self.conversation is None:
            self.tell("There is no answer to continue yet.", "warning")
            return
        conversation = self.conversation.id
        head = self.conversation.turns.get(self.conversation.head or "")
        self.transcript.following = True
        if head is not None and head.role in (Role.USER, Role.TEXT):
            self._follow(lambda: self.session.regenerate(conversation, head.id))
        else:
            leaf = self.pane.leaf
            self.attempt(lambda: self.session.continue_answer(conversation, leaf))

    def action_regenerate(self) -> None:
        """Make another answer beside the selected one, or below the selected message."""
        turn = self.target()
        if turn is None or self.current is None or self.refuses():
            return
        conversation = self.current
        self.transcript.following = True
        self._follow(lambda: self.session.regenerate(conversation, turn.id))

    def _follow(self, call: Callable[[], Turn]) -> bool:
        """Do what ends the path of this pane at another turn, and show it; whether it worked."""
        _, turn = self.attempt(call)
        if turn is not None:
            self.reload(self.pane, turn.id)
        return turn is not None

    def send_edited(self, text: str) -> None:
        """Make a branch of the turn that is edited."""
        conversation, turn = self.current, self.pane.editing
        if conversation is None or turn is None or self.refuses():
            return
        if self._follow(lambda: self.session.edit(conversation, turn, text)):
            self.transcript.following = True
            self.stop_editing()

    def action_edit(self) -> None:
        """Load a turn into the composer: the selected one, or the last message of the person."""
        turn = self.transcript.target
        if self.conversation is not None and self.screen.focused is not self.transcript:
            asked = [t for t in self.conversation.path() if t.role in (Role.USER, Role.TEXT)]
            turn = asked[-1] if asked else turn
        if turn is None:
            self.tell("There is no turn to edit yet.", "warning")
            return
        if self.pane.editing is None:
            self.pane.before_edit = self.composer.text
        self.pane.editing = turn.id
        self.composer.put(self.transcript.text_of(turn.id))
        self.mark_editing()
        self.composer.focus()

    def mark_editing(self) -> None:
        """Let the composer look as it is used in this pane."""
        conversation, turn_id = self.conversation, self.pane.editing
        turn = conversation.turns.get(turn_id or "") if conversation is not None else None
        self.composer.set_class(turn is not None, "-editing")
        self.composer.border_subtitle = None if turn is not None else self.composer.hint
        self.composer.border_title = None
        if turn is not None:
            what = "an answer" if turn.role is Role.ASSISTANT else "a message"
            self.composer.border_title = f"Editing {what}: Enter makes a branch, Esc cancels"

    def stop_editing(self) -> None:
        """Give the composer back, with what was in it before."""
        self.pane.editing = None
        self.mark_editing()
        self.composer.put(self.pane.before_edit)
        self.pane.before_edit = ""

    def action_step(self, by: int) -> None:
        """Select another turn, and look at the transcript."""
        if self.transcript.target is None:
            return
        focused = self.screen.focused is self.transcript
        self.transcript.focus()
        if focused:
            self.transcript.action_step(by)

    def action_fold(self) -> None:
        """Fold or unfold thoughts."""
        self.transcript.action_fold()

    def action_sibling(self, by: int) -> None:
        """Show another alternative at the selected turn, or at the last one that has any."""
        conversation = self.conversation
        turn = self.target()
        if turn is None or conversation is None:
            return
        siblings = conversation.siblings(turn.id)
        if len(siblings) == 1 and self.screen.focused is not self.transcript:
            for earlier in reversed(conversation.path()):
                siblings = conversation.siblings(earlier.id)
                if len(siblings) > 1:
                    turn = earlier
                    break
        if len(siblings) == 1:
            self.tell("There is no alternative here.")
            return
        if self.refuses():
            return
        at = [sibling.id for sibling in siblings].index(turn.id)
        other = siblings[(at + by) % len(siblings)].id
        if self.go_below(other):
            self.transcript.select(other)

    def go_below(self, turn_id: str) -> bool:
        """Show the newest leaf below a turn; whether it worked."""
        conversation = self.conversation
        if conversation is None:
            return False
        worked, _ = self.attempt(lambda: self.session.select(conversation.id, turn_id))
        if worked:
            self.reload(self.pane, conversation.newest_leaf(turn_id).id)
        return worked

    def action_fork(self) -> None:
        """Open a new conversation that begins with the path to the selected turn."""
        turn = self.target()
        if turn is None or self.current is None:
            return
        conversation = self.current
        _, new = self.attempt(lambda: self.session.fork(conversation, turn.id))
        if new is not None:
            self.open_conversation(new.id)
            self.tell("Forked. The conversation it came from is in the list, unchanged.")

    def action_label(self) -> None:
        """Ask for the label of the selected turn."""
        turn = self.target()
        if turn is None or self.current is None:
            return
        conversation = self.current

        def done(text: str | None) -> None:
            if text is not None:
                self.attempt(lambda: self.session.label(conversation, turn.id, text))

        self.push_screen(AskScreen("Label of this turn", turn.label, "empty takes it away"), done)

    def action_copy(self) -> None:
        """Copy the selected turn."""
        turn = self.target()
        if turn is not None:
            self.copy_text(self.transcript.text_of(turn.id), "The turn")

    def action_copy_code(self) -> None:
        """Copy the last code block of the selected turn, or of the conversation."""
        turn = self.target()
        if turn is None or self.conversation is None:
            return
        turns = [turn]
        if self.screen.focused is not self.transcript:
            turns = list(reversed(self.conversation.path()))
        for each in turns:
            code = last_code_block(self.transcript.text_of(each.id))
            if code is not None:
                self.copy_text(code, "The code block")
                return
        self.tell("There is no code block here.", "warning")

    def copy_text(self, text: str, what: str) -> None:
        """Send text to the clipboard, and say how it went. Only ever called for a key."""
        worked, sequence = self.attempt(lambda: clipboard_sequence(text))
        if not worked or sequence is None:
            return
        self.send_to_terminal(sequence)
        self.run_worker(lambda: self._copy_locally(text), thread=True)
        self.tell(f"{what} is copied.")

    def _copy_locally(self, text: str) -> None:
        try:
            copy_with_tool(text)
        except UsageError as error:
            self.call_from_thread(self.tell, str(error), "warning")

    def send_to_terminal(self, sequence: str) -> None:
        """Write a control sequence of ours."""
        if self._driver is not None:
            self._driver.write(sequence)

    def copy_to_clipboard(self, text: str) -> None:
        """Called by Textual's own widgets for their copy keys."""
        self._clipboard = text
        self.copy_text(text, "The marked text")
