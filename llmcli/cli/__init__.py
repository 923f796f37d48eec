"""The command line: options, terminal output, reports, one module per subcommand."""
