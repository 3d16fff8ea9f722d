"""The entrance of ``python -m llmquant``."""

from llmquant.cli.app import main

if __name__ == "__main__":
    main()
