"""The installed command; `python -m llmcli` is the same. Ctrl-C is answered even while modules are imported."""

import os
import sys


def main() -> None:
    try:
        from llmcli.cli import app
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
        sys.exit(130)
    app.main()


if __name__ == "__main__":
    main()
