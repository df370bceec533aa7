"""Floor 2: rows of users from files, libraries and simulations; splits of them; what they look like.

`load_dataset` and `DATASETS` are in `catalog`, `split_users` in `splits`.
"""
