"""TensorBoard: event files in the run's folder."""

import time

from PIL import Image

from server.tracking.tracker import Entry, Tracker


class TensorBoard(Tracker):
    """Writes event files to `tensorboard/`.

    A line is one event, so that a full disk leaves no half of it. The library's `SummaryWriter` has
    a thread of its own, and blocks once that thread has failed; its file writer raises the error.
    """

    def begin(self, known: str | None) -> str:
        """Opens an event file in the folder of this name, or in a new one."""
        from tensorboardX.event_file_writer import EventsWriter

        name = known or self._free_name()
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        # The name has the second of its start: a number keeps files of one second apart.
        number = sum(1 for _ in folder.iterdir())
        self._writer = EventsWriter(str(folder / "events"), f".{number}")
        return name

    def take(self, entry: Entry) -> None:
        """Writes an event with all figures and pictures; it is on the disk when this returns."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value) for name, value in entry.figures.items()
        ]
        for name, path in entry.pictures.items():
            with Image.open(path) as picture:
                width, height = picture.size
            encoded = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
            )
            values.append(Summary.Value(tag=name, image=encoded))
        summary = Summary(value=values)
        self._writer.write_event(
            Event(wall_time=time.time(), step=entry.round_number, summary=summary)
        )
        self._writer.flush()

    def end(self, completed: bool) -> None:
        """Closes the file."""
        self._writer.close()

    def _free_name(self) -> str:
        number, name = 1, "tensorboard"
        while (self.folder / name).exists():
            number += 1
            name = f"tensorboard-{number}"
        return name
