"""``radixrt bench``: five workloads on the engine in process, and through a server.

``command`` runs both one after the other, each in processes of its own, so that neither holds the
device's memory while the other runs.
"""
