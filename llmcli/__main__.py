"""`python -m llmcli` is `llm`."""

from llmcli.cli import main

if __name__ == "__main__":
    main()
