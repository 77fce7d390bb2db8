"""What is kept on disk: conversations in SQLite, saved states in files beside it."""
