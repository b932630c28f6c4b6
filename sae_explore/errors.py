"""The exceptions that a user sees as one sentence.

    ExploreError            anything the user can act on; the command line prints it and exits with 2
    ├── InputError          a wrong option, text, file or link
    ├── SaeError            an SAE that cannot be read, or is not what it says
    ├── ModelError          a model that cannot be loaded or is not understood
    ├── SourceError         the Hub, a package index or a file that cannot be reached
    └── BundleError         a bundle that is missing, damaged or of another schema

Every message says what is wrong, what came and what is allowed or what to do.
"""


class ExploreError(Exception):
    """Base of all errors that are the user's to mend."""


class InputError(ExploreError, ValueError):
    """A wrong option, text, file or link."""


class SaeError(ExploreError):
    """An SAE that cannot be read or is inconsistent."""


class ModelError(ExploreError):
    """A model that cannot be loaded or whose structure is not understood."""


class SourceError(ExploreError):
    """A source (Hub, package index, file) that cannot be reached or read."""


class BundleError(ExploreError):
    """A bundle that is missing, damaged or of another schema version."""
