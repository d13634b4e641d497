"""What loading refuses."""


class CheckpointError(RuntimeError):
    """A checkpoint that does not fit the model; nothing of it has been loaded into the base."""


def some(names: list[str], limit: int = 6) -> str:
    """The first names of a list, for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
