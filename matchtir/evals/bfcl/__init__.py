"""The paper's third benchmark, BFCL's multi-turn and agentic tasks, measured by its own code: bfcl-eval.

`campaign.py` is the way of a run. `drive.py` starts the official code out of process and watches it,
`driver/` is what runs there. `results.py` and `scores.py` read the official files.
"""
