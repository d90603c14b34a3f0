"""`python -m hlsrelay`."""

from hlsrelay.cli import main

main()
