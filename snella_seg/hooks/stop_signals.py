"""Ends a run in good order when it is told to stop: the step is finished, a checkpoint written."""

import signal
import threading

from mmengine.dist import get_world_size
from mmengine.hooks import Hook

#: Signals that ask a run to stop, as Ctrl-C and batch systems send them.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals(Hook):
    """Notes the first signal to stop; a second one ends the run at once.

    A part of :class:`SnellaCheckpointHook`, which writes the checkpoint.

    Attributes:
        received: the number of the signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict = {}

    def before_train(self, runner) -> None:
        # Only the main thread may handle signals, and processes would not stop at the same step.
        if threading.current_thread() is not threading.main_thread() or get_world_size() > 1:
            return
        self._runner = runner
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)

    def after_train(self, runner) -> None:
        self.release()

    def release(self) -> None:
        """Give signals back to whoever handled them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame) -> None:
        self.received = number
        self.release()
        self._runner.logger.warning(
            f"{signal.Signals(number).name}: the run ends after this step; once more ends it now"
        )
