"""What can be done with panes, and what each of them shows."""

from itertools import pairwise

from rwkv_chat.chat.tree import Role
from rwkv_chat.tui.layout import Layout, Place
from rwkv_chat.tui.progress import model_label
from rwkv_chat.tui.turn_actions import TurnActions
from rwkv_chat.tui.widgets.pane import Pane, Title

__all__ = ["PaneActions"]


class PaneActions(TurnActions):
    """Open, close, turn to another one; load, show, keep for the next start."""

    def action_open_pane(self) -> None:
        """Open a pane beside this one.

        With the focus on the list it shows the highlighted conversation, with the focus on the
        transcript the same conversation up to the selected turn, else a new conversation.
        """
        panes = self.panes
        if panes.full:
            close = self.key_of("pane.close")
            self.tell(f"There is room for {len(panes.panes)} panes; {close} closes one.", "warning")
            return
        conversation = leaf = None
        if self.screen.focused is self.sidebar:
            conversation = self.sidebar.selected
        elif self.screen.focused is self.transcript:
            conversation, leaf = self.current, self._exchange()
        for pane in panes.panes:  # a choice in one of them is not meant for the others
            pane.model = pane.model or self.session.model_name(None)
        new = panes.add()
        new.model = self.session.model_name(None)
        self.focus_pane(new)
        self.open_conversation(conversation, leaf)
        self.hide_overlay()
        self.composer.focus()

    def _exchange(self) -> str | None:
        """The selected turn, or the answer on screen to a selected message."""
        turn = self.transcript.target
        path = self.conversation.path() if self.conversation is not None else []
        for before, after in pairwise(path):
            if turn is not None and before.id == turn.id and turn.role is Role.USER:
                return after.id
        return turn.id if turn is not None else None

    def action_next_pane(self, by: int) -> None:
        """Turn to the pane `by` places further on, around the end."""
        panes = self.panes.panes
        if len(panes) == 1:
            self.tell(f"This is the only pane; {self.key_of('pane.open')} opens another.")
            return
        self.action_pane((self.panes.number + by) % len(panes))

    def action_pane(self, number: int) -> None:
        """Turn to a pane by its place, from 0."""
        panes = self.panes.panes
        if number >= len(panes):
            self.tell(f"There is no pane {number + 1}.")
            return
        from_transcript = self.screen.focused is self.transcript
        self.focus_pane(panes[number])
        if not from_transcript or self.transcript.target is None:
            self.composer.focus()
        else:
            self.transcript.focus()

    def action_close_pane(self) -> None:
        """Close the focused pane. What was typed there waits for its conversation."""
        pane = self.pane
        if len(self.panes.panes) == 1:
            self.tell("This is the only pane, and stays.")
            return
        self._set_draft_aside(pane)
        self.panes.close(pane)
        self._take_over()
        self.composer.focus()

    def focus_pane(self, pane: Pane) -> None:
        """Give a pane the composer, the status line and the keys."""
        if pane is self.pane:
            return
        self.pane.draft = self.composer.text
        self.panes.focus_on(pane)
        self._take_over()

    def _take_over(self) -> None:
        self.composer.put(self.pane.draft)
        self.mark_editing()
        self.panes_changed()

    def _set_draft_aside(self, pane: Pane) -> None:
        """Keep what was typed in a pane for the conversation there."""
        text = self.composer.text if pane.editing is None else pane.before_edit
        if text.strip():
            self.drafts[pane.current or ""] = text

    # -- showing -------------------------------------------------------------------------------

    def open_conversation(self, conversation_id: str | None, leaf: str | None = None) -> None:
        """Show a conversation, or (None) a new one, in the focused pane.

        It ends at `leaf`, or at the turn on which it was left. What was typed in the conversation
        before waits there.
        """
        pane = self.pane
        if pane.editing is not None:
            self.stop_editing()
        loaded = None
        if conversation_id is not None:
            worked, loaded = self.attempt(lambda: self.session.load(conversation_id))
            if not worked:
                return
        if conversation_id != pane.current:
            self._set_draft_aside(pane)
            self.composer.put(self.drafts.pop(conversation_id or "", ""))
            self.transcript.following = True
        pane.bind(loaded, leaf)
        self.show_pane(pane)
        self.panes_changed()

    def reload(self, pane: Pane, leaf: str | None = None) -> None:
        """Read the conversation of a pane again, and show it up to `leaf`, or as far as before."""
        current = pane.current
        if current is None:
            return
        worked, loaded = self.attempt(lambda: self.session.load(current))
        if worked and loaded is not None:
            pane.bind(loaded, leaf or pane.leaf)
            self.show_pane(pane)

    def show_pane(self, pane: Pane) -> None:
        """Bring what a pane shows onto the screen."""
        conversation = pane.conversation
        pane.kept = False
        if conversation is not None:
            self.progress.look_at(conversation, self.session.running(conversation.id))
            if not self.is_busy(pane):
                _, kept = self.attempt(lambda: self.session.kept(conversation))
                pane.kept = pane.leaf in (kept or ())
        pane.transcript.show(conversation, self.progress.live, self.progress.failures)
        self.show_status()
        self.keep_layout()

    def show_status(self) -> None:
        """Bring the status line and the titles up to date."""
        pane = self.pane
        name = self.model_name(pane)
        self.status_line.show(
            self.progress.status(
                pane.conversation,
                name,
                self.session.model(name),
                busy=self.busy,
                kept=pane.kept,
                continue_key=self.key_of("answer.continue"),
                hint=f"{self.key_of('app.help')} help",
            )
        )
        if pane.editing is None:
            stop = f"{self.key_of('answer.stop')} stops"
            self.composer.border_subtitle = stop if self.busy else self.composer.hint
        self._show_titles()

    def _show_titles(self) -> None:
        panes = self.panes.panes
        hidden = len(panes) > 1 and not self.panes.all_fit
        busy = [self.is_busy(pane) for pane in panes]
        for number, pane in enumerate(panes):
            title = pane.conversation.title if pane.conversation is not None else ""
            pane.title.show(
                Title(
                    title or "New conversation",
                    model_label(self.model_name(pane)),
                    focused=pane is self.pane,
                    running=busy[number],
                    place=f"{number + 1}/{len(panes)}" if hidden else "",
                    elsewhere=any(busy[:number] + busy[number + 1 :]),
                )
            )

    def panes_changed(self) -> None:
        """Tell the session, the list and the next start which conversations are on screen."""
        panes = self.panes.panes
        self.session.show({pane.current for pane in panes if pane.current is not None})
        self.refresh_list()
        self.show_status()
        self.keep_layout()

    # -- the next start ------------------------------------------------------------------------

    def keep_layout(self) -> None:
        """Remember the panes for the next start; those without a conversation are not worth it."""
        kept = [pane for pane in self.panes.panes if pane.current and pane.leaf]
        places = tuple(Place(pane.current or "", pane.leaf or "") for pane in kept)
        layout = Layout(places, kept.index(self.pane) if self.pane in kept else 0)
        if layout != self.layout:
            self.layout = layout
            self.remember_layout(layout)

    def restore(self, layout: Layout) -> bool:
        """Open the panes of the last time, as far as their conversations are still there."""
        known = {summary.id for summary in self.attempt(self.session.conversations)[1] or ()}
        places = [place for place in layout.places if place.conversation in known]
        for number, place in enumerate(places):
            if number:
                self.focus_pane(self.panes.add())
            self.open_conversation(place.conversation, place.leaf)
        if places:
            focused = layout.places[layout.focused]
            self.action_pane(places.index(focused) if focused in places else 0)
        return bool(places)
