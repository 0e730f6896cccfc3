"""The CSI node plugin."""
