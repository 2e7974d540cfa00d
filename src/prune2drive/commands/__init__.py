"""What the command line does, one file per command. Heavy imports happen inside ``run``."""
