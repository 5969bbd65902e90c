"""How the built-in text-to-image model was made; README.md has the commands."""
