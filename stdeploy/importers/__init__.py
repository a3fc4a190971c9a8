"""Other people's files as graphs, one package per format."""
