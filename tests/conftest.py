"""What every test shares: a private home, so that no test touches the person's own data."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A slow machine must not decide a test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """RWKV_CHAT_HOME in a fresh folder."""
    folder = tmp_path / "home"
    monkeypatch.setenv("RWKV_CHAT_HOME", str(folder))
    for name in ("RWKV_CHAT_BACKEND", "RWKV_CHAT_ISA"):
        monkeypatch.delenv(name, raising=False)
    return folder
