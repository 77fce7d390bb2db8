"""What can be done with conversations and models."""

from rwkv_chat.chat.options import Options
from rwkv_chat.text.display import one_line
from rwkv_chat.tui.base import BaseApp
from rwkv_chat.tui.screens.ask import AskScreen

__all__ = ["ConversationActions"]


class ConversationActions(BaseApp):
    """New, rename, delete, bring back, settings, models."""

    def _chosen(self) -> str | None:
        """The conversation meant: the highlighted one with the focus on the list."""
        if self.screen.focused is self.sidebar:
            return self.sidebar.selected
        return self.current

    def action_new_chat(self) -> None:
        """Show the empty first screen; the conversation is made with its first message."""
        self.open_conversation(None)
        self.composer.focus()

    def action_rename(self) -> None:
        """Ask for another title."""
        chosen = self._chosen()
        if chosen is None:
            self.tell("This conversation has no title yet; send a message first.", "warning")
            return
        title = self._title(chosen)

        def done(text: str | None) -> None:
            if text is not None and text.strip():
                self.attempt(lambda: self.session.rename(chosen, text))

        self.push_screen(AskScreen("Title of the conversation", title), done)

    def action_delete(self) -> None:
        """Delete at once, and say how to bring it back."""
        chosen = self._chosen()
        if chosen is None:
            self.tell("There is nothing to delete here.", "warning")
            return
        title = one_line(self._title(chosen), 40)
        worked, _ = self.attempt(lambda: self.session.delete(chosen))
        if not worked:
            return
        self.deleted.append(chosen)
        for pane in self.panes.panes:
            if pane.current == chosen and pane is not self.pane:
                self.panes.close(pane)
        if chosen == self.current:
            self.open_conversation(None)
        self.panes_changed()
        self.tell(f"Deleted “{title}”. {self.key_of('chat.undelete')} brings it back.")

    def action_undelete(self) -> None:
        """Bring the last deleted conversation back, and show it."""
        if not self.deleted:
            self.tell("Nothing was deleted since the start.", "warning")
            return
        last = self.deleted[-1]
        worked, _ = self.attempt(lambda: self.session.undelete(last))
        if worked:
            self.deleted.pop()
            self.refresh_list()
            self.open_conversation(last)

    def _title(self, conversation: str) -> str:
        _, summaries = self.attempt(self.session.conversations)
        return next((s.title for s in summaries or () if s.id == conversation), "")

    def action_settings(self) -> None:
        """Show the choices of this conversation, or of new ones."""
        from rwkv_chat.tui.screens.settings import SettingsScreen

        conversation = self.current
        worked, options = self.attempt(lambda: self.session.options(conversation))
        if not worked or options is None:
            return

        def done(chosen: Options | None) -> None:
            if chosen is None or chosen == options:
                return
            names = ("sampling", "system", "think", "template", "max_tokens", "start", "own")
            changed = {
                name: getattr(chosen, name)
                for name in names
                if getattr(chosen, name) != getattr(options, name)
            }
            worked, _ = self.attempt(lambda: self.session.configure(conversation, **changed))
            changed.pop("start", None)  # it fits one model, and settings are for all of them
            if worked and conversation is None:
                self.remember(**changed)

        whose = "this conversation" if conversation is not None else "new conversations"
        model = self.session.model(self.model_name(self.pane))
        screen = SettingsScreen(options, whose, model.template if model is not None else None)
        self.push_screen(screen, done)

    def action_models(self) -> None:
        """Show the models of this machine."""
        from rwkv_chat.tui.screens.models import ModelsScreen

        worked, models = self.attempt(self.session.models)
        if not worked or models is None:
            return

        pane = self.pane
        conversation = pane.current

        def done(name: str | None) -> None:
            if name is not None:
                self.opening = (name, pane)
                self.attempt(lambda: self.session.open_model(name, conversation))

        self.push_screen(ModelsScreen(models, self.model_name(pane)), done)

    def chosen(self, name: str) -> None:
        """The model of this name is open; if it was chosen here, it is remembered."""
        if self.opening is not None and self.opening[0] == name:
            self.opening[1].model = name
            self.opening = None
            self.remember(model=name)

    def answered_by(self, name: str) -> set[str]:
        """The conversations on screen whose model is opened under this name."""
        panes = [pane for pane in self.panes.panes if self.model_name(pane) == name]
        return {pane.current for pane in panes if pane.current is not None}
