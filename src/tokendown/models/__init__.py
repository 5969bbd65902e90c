"""From what the user named to a pipeline: the built-in model, folders, files, the Hub."""
