"""`python -m mistral_portable`."""

from mistral_portable.cli import main

main()
