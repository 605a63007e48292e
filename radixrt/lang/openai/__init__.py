"""Programs on other people's servers: any endpoint that speaks OpenAI's API.

`OpenAI` is a backend like any other. Its engine (`engine.py`) executes the same protocol messages a
runtime does, so the language has one code path: a branch is a transcript here (`prompt.py`), a
generation becomes an HTTP request (`request.py`) and its answer is read back (`answer.py`). What an
endpoint cannot enforce is checked or emulated (`demand.py`, `select.py`), or refused.
"""

from radixrt.lang.openai.backend import OpenAI

__all__ = ["OpenAI"]
