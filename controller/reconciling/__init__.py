"""The controller: what it sees, what it concludes, and what it does about it."""
