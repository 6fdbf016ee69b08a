"""The stages of a run, one file each, in this order; each also serves a command of its own.

check         all inputs are read once, and what will be done is said
activations   what the SAE is trained on
sinks         tokens that say nothing, which are left out from here on
train         the SAE
embed         codes of corpus and targets
score         one score a row
select        the curated rows
evaluate      numbers about them
report        the page
manifest      what was run, on what
sets          of several target sets: scores, selection, page and manifest above those of each
"""

from finescope.activations.hookpoints import last_block

__all__ = ["last_block"]
