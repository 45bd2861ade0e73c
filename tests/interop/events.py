"""Writes the events of a test with TensorBoard's own writer, or reads event files that amscript wrote.

    pip install tensorboard pillow
    python tests/interop/events.py make                  # tests/golden/tensorboard
    amscript report RUN.. --tensorboard /tmp/events
    python tests/interop/events.py read /tmp/events RUN..

Reading checks every scalar of each run's metrics.jsonl against the events, and that images decode to the sizes that are written beside them.
"""

import io
import json
import math
import sys
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

GOLDEN = Path("tests/golden/tensorboard")
TIME = 1_790_000_000.25


def make():
    GOLDEN.mkdir(exist_ok=True)
    picture = Image.new("RGB", (3, 2), (200, 30, 60))
    picture.save(GOLDEN / "pixel.png")
    png = (GOLDEN / "pixel.png").read_bytes()

    def scalars(**values):
        return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])

    image = Summary.Image(height=2, width=3, colorspace=3, encoded_image_string=png)
    events = [
        Event(wall_time=TIME, file_version="brain.Event:2"),
        Event(wall_time=TIME, step=0, summary=scalars(loss=0.0)),
        Event(wall_time=TIME, step=1, summary=scalars(**{"loss": -1.5, "reward, ü": math.nan})),
        Event(wall_time=TIME, step=300, summary=Summary(value=[Summary.Value(tag="samples", image=image)])),
        Event(wall_time=TIME, step=1 << 40, summary=scalars(loss=math.inf)),
    ]
    with open(GOLDEN / "events.tfevents", "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())


def same(ours, theirs):
    return math.isclose(ours, theirs, rel_tol=1e-6) or (math.isnan(ours) and math.isnan(theirs))


def read(events, runs):
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

    for run in map(Path, runs):
        folder = events / run.name
        found = EventAccumulator(str(folder), size_guidance={SCALARS: 0, IMAGES: 0}).Reload()
        checked = 0
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
            step = line.pop("step")
            for name, value in line.items():
                values = [math.nan if v is None else v for v in (value if isinstance(value, list) else [value])]
                wanted = {name: sum(values) / len(values)}
                if name == "intensity":
                    wanted = {f"{name}/end-{k:02}": v for k, v in enumerate(reversed(values))}
                for tag, number in wanted.items():
                    event = next(e for e in found.Scalars(tag) if e.step == step)
                    assert same(event.value, number), (tag, step, event.value, number)
                    checked += 1
        images = 0
        for tag in found.Tags()["images"]:
            for event in found.Images(tag):
                picture = Image.open(io.BytesIO(event.encoded_image_string))
                picture.load()
                assert picture.size == (event.width, event.height), tag
                images += 1
        print(f"{run}: {checked} scalars are those of the log, {images} images decode")


if __name__ == "__main__":
    if sys.argv[1:] == ["make"]:
        make()
    else:
        read(Path(sys.argv[2]), sys.argv[3:])
