"""Processes and sockets: the server, the processes that it watches, and what it reports."""
