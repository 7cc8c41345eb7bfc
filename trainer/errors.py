"""The one exception that means "the input is wrong, the program is fine"."""


class BadInput(ValueError):
    """Bad recipe, ds_config, data or command line. The message is one line for a person: it names the file or the key
    and the mend. The commands print it without a traceback and exit with code 2."""
