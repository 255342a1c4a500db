"""Words that documents and code do not use."""

BANNED = (
    r"of which",
    r"by lot",
    r"held? against",
    r"what nobody trained",
    r"whoever",
    r"nobody",
    r"judg(?:e|es|ed|ing|ement|ements)",
    r"pull(?:s|ed|ing)?",
    r"way back",
    r"wish(?:es)?",
    r"source path",
    r"rivals?",
    r"shards?",
    r"unit gradients?",
    r"releases?",
    r"(?:head|classifier|network|model|denoiser|UNet) (?:sees|knows|looks|says|thinks|believes)",
)
"""Former words, and networks as persons; `docs/glossary.md` has the terms."""

BANNED_IN_CODE = (
    *BANNED,
    r"hospitals?",
    r"somebody",
    r"anybody",
    r"what (?:is|are|was|were)",
    r"(?:head|classifier|network|model|denoiser|autoencoder|UNet)s? (?:already )?"
    r"(?:sees?|saw|knows?|knew|looks?|says?|thinks?|believes?)",
)
"""The same for code: docstrings, comments, messages and names."""
