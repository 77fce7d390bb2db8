"""Two quiet themes, and which of them fits the terminal."""

import os

from textual.theme import Theme

__all__ = ["DARK", "LIGHT", "fitting"]

DARK = Theme(
    name="rwkv-dark",
    dark=True,
    primary="#8fb8d0",
    secondary="#d8b27c",
    accent="#d8b27c",
    success="#9fc48a",
    warning="#d8b27c",
    error="#e08c86",
    foreground="#d6dae1",
    background="#15171c",
    surface="#1c1e23",
    panel="#26292f",
    variables={
        "border": "#343a45",
        "border-blurred": "#2a2f38",
        "block-cursor-background": "#2b3340",
        "block-cursor-foreground": "#e8ebf0",
        "block-cursor-text-style": "none",
        "block-cursor-blurred-background": "#20242c",
        "block-cursor-blurred-foreground": "#d6dae1",
        "block-cursor-blurred-text-style": "none",
        "input-selection-background": "#8fb8d0 35%",
        "scrollbar": "#2b303a",
        "scrollbar-hover": "#3a414e",
        "scrollbar-active": "#8fb8d0",
        "scrollbar-background": "#15171c",
        "scrollbar-background-hover": "#15171c",
        "scrollbar-background-active": "#15171c",
    },
)

LIGHT = Theme(
    name="rwkv-light",
    dark=False,
    primary="#2c6484",
    secondary="#8a5a12",
    accent="#8a5a12",
    success="#3f7030",
    warning="#8a5a12",
    error="#a83a33",
    foreground="#26292e",
    background="#fbfaf7",
    surface="#f5f3ee",
    panel="#ebe8e1",
    variables={
        "border": "#cfcac0",
        "border-blurred": "#ddd9d0",
        "block-cursor-background": "#dfe7ec",
        "block-cursor-foreground": "#1c1f23",
        "block-cursor-text-style": "none",
        "block-cursor-blurred-background": "#ebe8e1",
        "block-cursor-blurred-foreground": "#26292e",
        "block-cursor-blurred-text-style": "none",
        "input-selection-background": "#2c6484 25%",
        "scrollbar": "#d6d2c8",
        "scrollbar-hover": "#c2bdb1",
        "scrollbar-active": "#2c6484",
        "scrollbar-background": "#fbfaf7",
        "scrollbar-background-hover": "#fbfaf7",
        "scrollbar-background-active": "#fbfaf7",
    },
)


def fitting(environ: dict[str, str] | None = None) -> str:
    """The theme for this terminal: light where `COLORFGBG` names a light background."""
    value = (os.environ if environ is None else environ).get("COLORFGBG", "")
    background = value.rpartition(";")[2]
    return LIGHT.name if background in ("7", "15") else DARK.name
