"""Between clients and the engine: sessions, branches and calls; text to tokens and back.

Nothing here imports torch.
"""
