"""The places that keep blobs and manifests, behind one interface."""
