"""What travels between processes and nodes: control calls, bulk streams, TLS."""

import os

# gRPC's core reads this when it is first imported. Without it, it writes the handshake failures of strangers to
# stderr, among our structured lines; what matters is in our errors and logs.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
