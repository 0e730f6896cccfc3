"""Bytes of blobs between nodes, over TCP streams of their own: ``client``, ``server``, ``sessions``.

A control call opens a session for named blobs and hands out its token; a stream begins with that token, and then
carries exactly those blobs, in that order.
"""
