"""The exit codes of every verb, each as an exception with one clear sentence for the user."""


class EdgemimError(Exception):
    """Base of every error that a user sees as one sentence, without a traceback.

    The message names the file or key at fault and the remedy.
    """

    exit_code = 1


class UserError(EdgemimError):
    """The user's input or configuration is at fault."""

    exit_code = 2


class GateRefused(EdgemimError):
    """A gate refused: parity, INT8 slower or worse, a benchmark regression."""

    exit_code = 3


class MissingLibrary(EdgemimError):
    """A runtime library is missing; the message says which extra installs it."""

    exit_code = 4


class NoGpu(EdgemimError):
    """The verb needs a GPU and none is usable."""

    exit_code = 5


class ModelRefused(EdgemimError):
    """A parser or builder refused the model."""

    exit_code = 6


class SavedOnSignal(EdgemimError):
    """Work was saved on SIGTERM or SIGUSR1; start the same command with --resume to go on."""

    exit_code = 75


class Interrupted(EdgemimError):
    """The user pressed Ctrl-C; what could be saved was saved."""

    exit_code = 130
