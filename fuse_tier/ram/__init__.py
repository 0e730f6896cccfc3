"""The RAM tier's files: their layout, and how live files become immutable content."""
