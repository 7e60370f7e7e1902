"""The commands of `digit-serving`, a module each. What a command does lies elsewhere."""
