"""``python -m polymoe``."""

from polymoe.cli import main

main()
