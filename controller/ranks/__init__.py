"""Which pod of a job has which rank, so that who survives a failure keeps the files that are in its node's RAM."""
