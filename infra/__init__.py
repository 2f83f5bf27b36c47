"""What runs it all: command line, demo, weekly job, serving, cluster files."""
