"""The processes that are timed, one file each; all of them but `engine` run without any package of the project."""
