"""The entrance of ``llmquant`` and ``python -m llmquant``."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is imported, before a command starts, prints a line too."""
    try:
        from llmquant.cli.app import main

        main()
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
