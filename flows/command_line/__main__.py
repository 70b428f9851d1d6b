"""`python -m flows.command_line`: the same as the command `spin`."""

from flows.command_line.main import main

main()
