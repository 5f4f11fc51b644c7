"""`python -m aigc_fast.cli` is `aigc-fast`."""

from aigc_fast_cli import main

main()
