"""`python -m aigc_fast.cli` is `aigc-fast`."""

from aigc_fast.cli import main

main()
