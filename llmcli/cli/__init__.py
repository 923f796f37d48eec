"""The command line: options, terminal output, HTML pages, one module per subcommand."""
