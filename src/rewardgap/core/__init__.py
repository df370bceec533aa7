"""Floor 0: values, errors, names, seeds and files. Imports the standard library only."""
