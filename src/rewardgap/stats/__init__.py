"""Floor 1: rank correlation and user-clustered uncertainty. Imports core and numpy only."""
