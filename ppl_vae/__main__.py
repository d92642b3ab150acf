"""`python -m ppl_vae`: the command line."""

from ppl_vae.cli import main

main()
