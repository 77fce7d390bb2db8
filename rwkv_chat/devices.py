"""The names of what can compute a model."""

import re

from rwkv_chat.errors import UsageError

__all__ = ["DEVICES", "check_device"]

DEVICES = "auto, cpu, cuda or cuda:N"

_NAME = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


def check_device(device: str) -> None:
    """Refuse what names no device.

    Raises:
        UsageError: it is none of DEVICES.
    """
    if not _NAME.fullmatch(device):
        raise UsageError(f'There is no device "{device}"; use {DEVICES}.')
