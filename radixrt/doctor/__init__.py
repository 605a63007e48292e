"""``radixrt doctor``: whether the runtime can run here, how well, and the command that mends it.

``facts`` gathers what there is, ``checks`` judges it, ``command`` says it.
"""
