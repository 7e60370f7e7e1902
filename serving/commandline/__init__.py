"""How commands are parsed and help is written, for all programs. Nothing of serving itself."""
