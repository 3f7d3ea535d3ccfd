"""GSS: a class map painted as a picture, whose codes a network predicts (arXiv 2303.11316)."""
