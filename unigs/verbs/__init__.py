"""One function per verb of the command line; its signature is its help."""
