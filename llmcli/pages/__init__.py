"""HTML pages and their data: explanations, model files, the server's page."""
