"""Every failure that a person can meet, as one tree.

    RwkvChatError                 a sentence for the user: what, where, what to do
    |-- UsageError                a command or a call was given something it cannot use
    |-- SettingsError             the settings file or an environment variable is wrong
    |-- CheckpointError           a model file cannot be used
    |   |-- NotAModelError        it is not a model file at all
    |   |-- TruncatedError        it ends too early, or its sizes contradict each other
    |   |-- MissingTensorError    a tensor that the architecture needs is absent
    |   |-- ShapeError            a tensor has a shape or type that does not fit
    |   `-- UnsupportedModelError a real model of an architecture that is not supported
    |-- TokenizerError            a vocabulary cannot be read, or does not fit the model
    |-- EngineError               inference failed
    |   |-- NonFiniteError        the model produced NaN or infinity
    |   |-- DeviceLostError       the GPU failed
    |   `-- MemoryLimitError      the model does not fit into memory
    |-- SnapshotError             a saved state is damaged or belongs to another model
    `-- StoreError                conversations cannot be read or written
        |-- StoreVersionError     the store was written by a newer version
        |-- StoreDamagedError     the store fails its integrity check
        |-- StoreFullError        the disk is full
        |-- ConflictError         another window changed the same conversation
        `-- NotFoundError         no such conversation or turn

Raise the most exact class with a complete sentence; the interface shows `str(error)` as it is.
"""

__all__ = [
    "CheckpointError",
    "ConflictError",
    "DeviceLostError",
    "EngineError",
    "MemoryLimitError",
    "MissingTensorError",
    "NonFiniteError",
    "NotAModelError",
    "NotFoundError",
    "RwkvChatError",
    "SettingsError",
    "ShapeError",
    "SnapshotError",
    "StoreDamagedError",
    "StoreError",
    "StoreFullError",
    "StoreVersionError",
    "TokenizerError",
    "TruncatedError",
    "UnsupportedModelError",
    "UsageError",
]


class RwkvChatError(Exception):
    """Base of all failures; `str(error)` is a sentence for the user."""


class UsageError(RwkvChatError):
    """A command or a call was given something it cannot use."""


class SettingsError(RwkvChatError):
    """The settings file or an environment variable is wrong."""


class CheckpointError(RwkvChatError):
    """A model file cannot be used."""


class NotAModelError(CheckpointError):
    """The file is not a model file at all."""


class TruncatedError(CheckpointError):
    """The file ends too early, or its sizes contradict each other."""


class MissingTensorError(CheckpointError):
    """A tensor that the architecture needs is absent."""


class ShapeError(CheckpointError):
    """A tensor has a shape or a type that does not fit."""


class UnsupportedModelError(CheckpointError):
    """A real model of an architecture that is not supported."""


class TokenizerError(RwkvChatError):
    """A vocabulary cannot be read, or does not fit the model."""


class EngineError(RwkvChatError):
    """Inference failed."""


class NonFiniteError(EngineError):
    """The model produced NaN or infinity."""


class DeviceLostError(EngineError):
    """The GPU failed, and with it what it was computing."""


class MemoryLimitError(EngineError):
    """The model does not fit into memory."""


class SnapshotError(RwkvChatError):
    """A saved state is damaged or belongs to another model."""


class StoreError(RwkvChatError):
    """Conversations cannot be read or written."""


class StoreVersionError(StoreError):
    """The store was written by a newer version."""


class StoreDamagedError(StoreError):
    """The store fails its integrity check."""


class StoreFullError(StoreError):
    """The disk is full."""


class ConflictError(StoreError):
    """Another window changed the same conversation."""


class NotFoundError(StoreError):
    """No such conversation or turn."""
