"""A config's values as JSON has them, and back."""

_TUPLE = "__tuple__"


def plain_config(value, mark_tuples: bool = False):
    """A config's value as JSON has it: tuples become lists, classes and functions their names.

    Args:
        value: of any kind.
        mark_tuples: let :func:`restore_tuples` bring tuples back.
    """
    if isinstance(value, dict):
        return {str(key): plain_config(item, mark_tuples) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain_config(item, mark_tuples) for item in value]
        return {_TUPLE: items} if mark_tuples and isinstance(value, tuple) else items
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if hasattr(value, "tolist"):  # numpy
        return plain_config(value.tolist(), mark_tuples)
    return getattr(value, "__name__", None) or str(value)


def restore_tuples(value):
    """Undo what :func:`plain_config` did to tuples."""
    if isinstance(value, dict):
        if set(value) == {_TUPLE}:
            return tuple(restore_tuples(item) for item in value[_TUPLE])
        return {key: restore_tuples(item) for key, item in value.items()}
    return [restore_tuples(item) for item in value] if isinstance(value, list) else value
