"""A loaded model with text in and answers out (`text_engine`), and the conversations on it."""
