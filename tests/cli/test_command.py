"""``snella-seg`` itself: which commands there are, and what is no command."""

import sys

import pytest

from snella_seg.cli import COMMANDS, main


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_lists_its_commands(argv, capsys):
    main(argv=argv)
    shown = capsys.readouterr().out
    assert shown.startswith("usage: snella-seg COMMAND")
    assert all(f"  {name} " in shown and about in shown for name, about in COMMANDS.items())


@pytest.mark.parametrize("spelling", ["inspect-adapter", "inspect_adapter"])
def test_a_command_tells_its_own_usage(spelling, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["snella-seg", spelling, "-h"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "usage: snella-seg inspect_adapter" in capsys.readouterr().out


def test_unknown_command():
    with pytest.raises(SystemExit, match="unknown command 'trian'; choose one of new, wrap, train"):
        main(argv=["trian"])
