"""`python -m dct`."""

from dct.cli import main

main()
