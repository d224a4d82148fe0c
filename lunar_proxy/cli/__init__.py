"""The command line: each command is a module with `add(subparsers)`; nothing else prints."""
