"""What a pretraining run shows of itself: log.jsonl, curves.png, a progress bar and, if asked for, TensorBoard."""

import json
from pathlib import Path

from tqdm.auto import tqdm

from .files import replacing


class RunLog:
    """Of a run in a folder, that goes on after `step` at the share `done` of its budget; later lines are forgotten."""

    def __init__(self, folder: Path, step: int, done: float, progress_bar: bool, tensorboard: bool):
        self.path, self.events = folder / "log.jsonl", None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(folder / "tensorboard", purge_step=step + 1)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.lines = [json.loads(line) for line in lines if line.endswith("}")]  # the last may have been cut
        self.lines = [line for line in self.lines if line["step"] <= step]
        with replacing(self.path) as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
        form = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(total=100, initial=100 * done, unit="%", disable=not progress_bar, bar_format=form)

    def write(self, line: dict[str, float], done: float) -> None:
        """`line`: step, tokens, seconds, length, and the means of the losses since the line before."""
        line = {name: round(value, 4) for name, value in line.items()}
        before = self.lines[-1] if self.lines else {"tokens": 0, "seconds": 0}
        speed = (line["tokens"] - before["tokens"]) / max(line["seconds"] - before["seconds"], 1e-4)
        self.lines.append(line)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        means = {name: value for name, value in line.items() if name not in ("step", "tokens", "seconds", "length")}
        if self.events:
            for name, value in (means | {"tokens_per_second": speed}).items():
                self.events.add_scalar(name, value, line["step"])
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in means.items())
        self.bar.set_postfix_str(f"step {line['step']}, {shown}, {speed:,.0f} tokens/s")
        self.bar.update(100 * min(done, 1) - self.bar.n)

    def draw(self) -> None:
        """curves.png, of what has been logged."""
        from .plots import training_curves  # matplotlib takes a second

        if self.lines:
            with replacing(self.path.with_name("curves.png")) as path:
                training_curves(self.lines, path)

    def close(self) -> None:
        self.bar.close()
        if self.events:
            self.events.close()
