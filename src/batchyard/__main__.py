"""`python -m batchyard` is the command line."""

from batchyard.cli.main import main

main()
