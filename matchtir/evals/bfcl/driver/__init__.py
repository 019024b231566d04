"""What runs inside the environment of bfcl-eval, confined: the official code, with its `eval` replaced.

`start.py` is run by that environment's Python, where matchtir is not installed. Nothing here imports anything
but the standard library, bfcl_eval, and the sandbox's confinement.
"""
