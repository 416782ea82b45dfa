"""What an API server answers when it does not do what it was asked."""


class Unavailable(Exception):
    """The server does not answer, or asks to come back later."""


class Conflict(Exception):
    """An object of that name exists, or is not the one that was meant any more."""


class NotThere(Exception):
    """There is no such object."""


class Refused(Exception):
    """The server understood and says no; the text is its reason."""
