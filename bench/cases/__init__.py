"""The cases: each checks the answers, then times them. A wrong answer stops the benchmark."""
