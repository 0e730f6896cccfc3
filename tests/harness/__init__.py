"""What the tests stand on: which needs are met here, which log lines were announced, real clusters."""
