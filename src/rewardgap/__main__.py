"""`python -m rewardgap`."""

from rewardgap.cli.app import main

main()
