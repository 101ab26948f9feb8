"""``python -m fastae``: the command ``fastae``."""

from fastae.cli import main

if __name__ == "__main__":
    main()
