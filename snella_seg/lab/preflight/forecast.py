"""What a preflight found, as data and as text."""

from dataclasses import asdict, dataclass, field

from ..text import duration, size


@dataclass
class Forecast:
    """What a training will do and cost.

    ``random_base`` are weights of the base that its file lacks and that are trained from scratch,
    though a pretrained backbone has them. Schedules and costs are those of a single process.
    Sizes are in bytes, times in seconds. ``problems`` would let the training silently end
    otherwise than its config says; ``warnings`` are worth a look. Figures that were not measured
    are None.
    """

    method: str = ""
    summary: str = ""
    base: str = ""
    random_base: list[str] = field(default_factory=list)
    coverage: str = ""
    unmatched: list[str] = field(default_factory=list)
    learnable: int = 0
    learnable_heads: int = 0
    weights: int = 0
    nonzero: int = 0
    nonzero_end: int = 0
    iterations: int = 0
    epochs: float | None = None
    allocations: list[tuple[int, int, int]] = field(default_factory=list)  # epoch, iter, budget
    due_at: float | None = None
    validations: int = 0
    validation_images: int = 0
    checkpoints: int = 0
    checkpoint_bytes: int | None = None
    disk_free_bytes: int | None = None
    seconds_per_iteration: float | None = None
    seconds_at_start: float | None = None
    seconds_at_end: float | None = None
    data_seconds: float | None = None
    reallocation_seconds: float | None = None
    seconds_per_validation_image: float | None = None
    peak_bytes: int | None = None
    gpu_peak_bytes: int | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def total_seconds(self) -> float | None:
        """How long the whole training takes, without its start and its checkpoints."""
        if self.seconds_per_iteration is None:
            return None
        validation = (self.seconds_per_validation_image or 0.0) * self.validation_images
        return (
            self.iterations * self.seconds_per_iteration
            + len(self.allocations[1:]) * (self.reallocation_seconds or 0.0)
            + self.validations * validation
        )

    @property
    def disk_bytes(self) -> int | None:
        """What all checkpoints that are kept take together."""
        return None if self.checkpoint_bytes is None else self.checkpoint_bytes * self.checkpoints

    def as_dict(self) -> dict:
        """All figures, those that are derived too."""
        derived = dict(total_seconds=self.total_seconds, disk_bytes=self.disk_bytes)
        return {**asdict(self), **derived}

    def text(self) -> str:
        """All that a reader wants to see, in sections."""
        sections = [
            ("Method", [self.method]),
            ("Base weights", [self.base]),
            ("Model", self.summary.splitlines()),
            ("Encoder blocks", [self.coverage or "nothing is known"]),
            ("Linear layers of the backbone that are not adapted", self.unmatched or ["none"]),
            ("Schedule", self._schedule()),
            ("Cost", self._cost()),
            ("Warnings", self.warnings or ["none"]),
            ("Problems", self.problems or ["none"]),
        ]
        return "\n".join(
            line
            for title, lines in sections
            for line in ("", title, *(f"  {one}" for one in lines))
        )

    def _schedule(self) -> list[str]:
        epochs = "" if self.epochs is None else f", {self.epochs:.1f} epochs of one process"
        lines = [
            f"{self.iterations} iterations{epochs}; {self.validations} validations of"
            f" {self.validation_images} images; {self.checkpoints} checkpoints kept"
        ]
        if not self.allocations:
            return [*lines, "no sparsity is allocated"]
        due = ""
        if self.due_at is not None:
            due = f" at most, where more than {self.due_at:.1%} of the budget would move"
        lines.append(f"{len(self.allocations) - 1} reallocations{due}; budgets in weights:")
        shown = self.allocations
        if len(shown) > 12:
            shown = [*shown[:6], None, *shown[-5:]]
        for entry in shown:
            if entry is None:
                lines.append("  ...")
                continue
            epoch, iteration, budget = entry
            lines.append(
                f"  epoch {epoch:>4}  iteration {iteration:>7}  {budget:>13,}  "
                f"({budget / max(1, self.weights):.1%} dense)"
            )
        return lines

    def _cost(self) -> list[str]:
        lines = []
        if self.seconds_per_iteration is not None:
            lines.append(
                f"{self.seconds_per_iteration:.3f} s per iteration ({self.seconds_at_start:.3f} at "
                f"the start, {self.seconds_at_end:.3f} at the end), {self.data_seconds:.3f} of it "
                "waiting for data"
            )
            if self.reallocation_seconds is not None:
                lines.append(f"{self.reallocation_seconds:.2f} s per reallocation")
            if self.seconds_per_validation_image is not None:
                lines.append(f"{self.seconds_per_validation_image:.3f} s per validation image")
            lines.append(f"{duration(self.total_seconds)} in all, on this machine as it is now")
        if self.peak_bytes is not None:
            lines.append(
                f"{size(self.peak_bytes)} of main memory at the peak, loader workers apart"
            )
        if self.gpu_peak_bytes is not None:
            lines.append(f"{size(self.gpu_peak_bytes)} of GPU memory at the peak, allocated")
        if self.checkpoint_bytes is not None:
            lines.append(
                f"{size(self.checkpoint_bytes)} per checkpoint, {size(self.disk_bytes)} for all "
                f"that are kept; {size(self.disk_free_bytes)} are free"
            )
        return lines or ["not measured"]
