"""The only reader of files and environment: YAML in, frozen values out."""
