"""The coordinator: who is alive, who has what, who has mounted what."""
